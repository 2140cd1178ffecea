"""Event loops: connections of their own, which end with them, and a bound for how many there are."""

from __future__ import annotations

import asyncio
import gc
import os
from functools import partial
from typing import Any

import pytest

from kvreplay import (
    AsyncReplay,
    OutcomeUnknownError,
    StoreError,
    StoreUnavailableError,
    open_store,
)
from kvreplay.testing.threads import at_once
from support.cutting_proxy import CuttingProxy
from support.waiting import until


def sockets() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:
            pass
    return found


def test_one_store_on_one_loop_after_the_other(etcd: Any) -> None:
    """Nobody closes the loops' connections: the next loop, or the store, does."""
    before = sockets()
    with open_store(etcd.url) as store:
        replay = AsyncReplay(store, "pay", ttl=60)

        async def ask(n: int) -> Any:
            return await replay.execute(("s", f"{n % 2}"), {}, lambda: n % 2)

        answers = [asyncio.run(ask(n)) for n in range(6)]
        assert [each.response for each in answers] == [0, 1] * 3
        assert [each.replayed for each in answers] == [False] * 2 + [True] * 4
        assert sockets() <= before + 2  # the blocking one's, and the last loop's
        assert len(store.awaited._sessions) == 1  # type: ignore[attr-defined]
    gc.collect()
    assert sockets() == before


def test_a_loop_that_is_closed_in_the_middle_of_calls(etcd: Any) -> None:
    before = sockets()
    with CuttingProxy(etcd.one_url) as proxy, open_store(proxy.url) as store:
        proxy.stall("to client")
        loop = asyncio.new_event_loop()

        async def begin() -> list[Any]:
            calls = (store.awaited.read("p", "s", "k"), store.awaited.write("p", "s", "k", b"v"))
            tasks = [asyncio.ensure_future(each) for each in calls]
            while not proxy.holds_back:
                await asyncio.sleep(0)
            return tasks

        tasks = loop.run_until_complete(begin())
        loop.close()
        for task in tasks:
            task._log_destroy_pending = False
        del tasks, task
        gc.collect()
        proxy.mend()
        assert asyncio.run(store.awaited.list("p", "s")) in ([], ["k"])
    gc.collect()
    assert sockets() == before


def test_no_more_connections_than_the_pool_has(etcd: Any) -> None:
    async def ask(store: Any) -> list[Any]:
        writes = (store.write("p", "s", f"k{n}", b"v") for n in range(200))
        await asyncio.gather(*writes)
        return await asyncio.gather(*(store.read("p", "s", f"k{n}") for n in range(200)))

    with CuttingProxy(etcd.one_url) as proxy, open_store(f"{proxy.url}?pool_size=3") as store:
        opened = len(proxy.connections)
        assert asyncio.run(ask(store.awaited)) == [b"v"] * 200
        assert len(proxy.connections) - opened == 3


def test_a_change_that_is_cancelled_first_hears_how_it_ended(etcd: Any) -> None:
    async def cancelled(proxy: CuttingProxy, store: Any) -> None:
        await store.write("p", "s", "k", b"old")
        proxy.stall("to client")
        change = asyncio.ensure_future(store.write("p", "s", "k", b"new"))
        while not proxy.holds_back:
            await asyncio.sleep(0)
        for _ in range(3):  # as often as somebody likes
            change.cancel()
            await asyncio.sleep(0)
            assert not change.done()
        proxy.mend()
        with pytest.raises(asyncio.CancelledError):
            await change
        assert await store.read("p", "s", "k") == b"new"
        await store.write("p", "s", "k", b"newer")
        assert await store.read("p", "s", "k") == b"newer"

    with CuttingProxy(etcd.one_url) as proxy, open_store(proxy.url) as store:
        asyncio.run(cancelled(proxy, store.awaited))


def test_a_read_that_is_cancelled_waits_for_nobody(etcd: Any) -> None:
    async def cancelled(proxy: CuttingProxy, store: Any) -> None:
        await store.write("p", "s", "k", b"v")
        proxy.stall("to client")
        reading = asyncio.ensure_future(store.read("p", "s", "k"))
        while not proxy.holds_back:
            await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        proxy.mend()
        assert await store.read("p", "s", "k") == b"v"

    with CuttingProxy(etcd.one_url) as proxy, open_store(proxy.url) as store:
        asyncio.run(cancelled(proxy, store.awaited))


def test_connections_that_have_gone_silent_cost_one_call(etcd: Any) -> None:
    """As a firewall leaves them: open, and nobody there. The blocking store has as many as the loop."""
    with CuttingProxy(etcd.one_url) as proxy, open_store(f"{proxy.url}?timeout=3s") as store:

        async def use() -> None:
            awaited = store.awaited  # type: ignore[attr-defined]
            proxy.delay(0.05)  # so that those at once need connections of their own
            await asyncio.gather(*(awaited.list("p", "s") for _ in range(5)))
            at_once(*[partial(store.list, "p", "s")] * 5)
            proxy.delay(0)
            assert proxy.open_connections == 10
            proxy.stall("to client")
            with pytest.raises(StoreUnavailableError):
                await awaited.list("p", "s")
            until(lambda: proxy.open_connections == 6)  # with the one that the proxy holds
            with pytest.raises(StoreUnavailableError):
                store.list("p", "s")
            until(lambda: proxy.open_connections == 2)
            proxy.mend()
            assert await awaited.list("p", "s") == store.list("p", "s") == []

        asyncio.run(use())


def test_a_closed_store_answers_no_loop(etcd: Any) -> None:
    store = open_store(etcd.url)

    async def use() -> None:
        await store.awaited.write("p", "s", "k", b"v")
        store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.awaited.read("p", "s", "k")

    before = sockets()
    asyncio.run(use())
    assert sockets() < before


@pytest.mark.parametrize("after", [0, 130])
def test_garbage_is_no_answer(etcd: Any, after: int) -> None:
    with CuttingProxy(etcd.one_url) as proxy, open_store(f"{proxy.url}?timeout=1s") as store:

        async def use() -> None:
            proxy.garble(after=after)
            with pytest.raises(StoreUnavailableError):
                await store.awaited.read("p", "s", "k")
            proxy.garble(after=after)
            with pytest.raises(OutcomeUnknownError):
                await store.awaited.write("p", "s", "k", b"v")
            proxy.garble(after=after)
            with pytest.raises(StoreUnavailableError):
                store.read("p", "s", "k")
            proxy.garble(after=after)
            with pytest.raises(OutcomeUnknownError):
                store.write("p", "s", "k", b"w")

        asyncio.run(use())
        proxy.mend()
        assert store.read("p", "s", "k") == b"w"


def test_a_connection_that_ended_meanwhile_is_not_used_again(etcd: Any) -> None:
    """Even a change goes through: nothing was sent on the old one."""
    with CuttingProxy(etcd.one_url) as proxy, open_store(proxy.url) as store:

        async def use() -> None:
            for how in ("close", "reset"):
                await store.awaited.write("p", "s", how, b"v")
                store.write("p", "s", how, b"w")
                proxy.cut_all(how)
                store.write("p", "s", how, b"x")
                await store.awaited.write("p", "s", how, b"y")

        asyncio.run(use())
        assert sorted(store.list("p", "s")) == ["close", "reset"]
