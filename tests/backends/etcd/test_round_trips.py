"""How often etcd is asked: counted between the client and the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvreplay import AsyncReplay, Replay, open_store
from support.cutting_proxy import CuttingProxy

pytestmark = pytest.mark.any_python

ADDRESS = ("p", "s", "k")
PARAMS = {"msat": 5}
DUE = 100


@pytest.fixture
def proxy(etcd: Any) -> Iterator[CuttingProxy]:
    with CuttingProxy(etcd.one_url) as proxy:
        yield proxy


@pytest.fixture(params=["blocking", "awaited"])
def calls(request: pytest.FixtureRequest, proxy: CuttingProxy) -> Iterator[Callable[..., int]]:
    """``calls("read", "p", "s", "k")`` makes a call, and returns its round trips."""
    with (
        open_store(proxy.url) as opened,
        asyncio.Runner() as runner,
    ):  # one loop: it keeps its connection
        store: Any = opened

        def trips(method: str, *arguments: Any, **named: Any) -> int:
            before = proxy.passed()
            if request.param == "blocking":
                getattr(store, method)(*arguments, **named)
            else:
                runner.run(_awaited(getattr(store.awaited, method), *arguments, **named))
            return (proxy.passed() - before).round_trips

        yield trips
        runner.run(_awaited(store.awaited.close))
    assert len(proxy.connections) == (1 if request.param == "blocking" else 2)


async def _awaited(method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return await method(*arguments, **named)


def test_a_call_is_one_round_trip(calls: Callable[..., int]) -> None:
    def put(expected: bytes | None, value: bytes | None, **more: Any) -> int:
        return calls("check_and_put", *ADDRESS, expected=expected, value=value, **more)

    counted = {
        "new": put(None, b"1"),
        "new, and lost": put(None, b"2"),
        "swapped": put(b"1", b"3"),
        "swapped, with an expiry": put(b"3", b"4", expires_at=5),
        "swapped, and lost": put(b"1", b"5"),
        "read": calls("read", *ADDRESS),
        "read with its expiry": calls("read_entry", *ADDRESS),
        "dropped": put(b"4", None),
        "expected, and absent": put(b"4", b"5"),
        "absent, and asked": put(None, None),
        "new, with an expiry": put(None, b"6", expires_at=5),
        "written": calls("write", *ADDRESS, b"7"),
        "removed": calls("remove", *ADDRESS),
        "a page": calls("list_paginated", "p", "s"),
    }
    assert set(counted.values()) == {1}, counted


def test_a_sweep_of_a_hundred_is_two(calls: Callable[..., int]) -> None:
    for number in range(DUE + 1):
        calls("check_and_put", "p", "s", f"k{number}", expected=None, value=b"v", expires_at=5)
    assert calls("sweep", "p", 5, DUE) == 2
    assert calls("sweep", "p", 5, DUE) == 2  # one is left
    assert calls("sweep", "p", 5, DUE) == 1  # and now nothing


def test_a_thousand_keys_are_one_and_one_more_are_two(calls: Callable[..., int]) -> None:
    for number in range(1000):
        calls("write", "p", "s", f"k{number}", b"v")
    assert calls("list", "p", "s") == 1
    calls("write", "p", "s", "one-more", b"v")
    assert calls("list", "p", "s") == 2


@pytest.mark.parametrize("awaited", [False, True])
def test_a_replay_is_one_and_a_first_request_three(proxy: CuttingProxy, awaited: bool) -> None:
    with open_store(proxy.url) as store, asyncio.Runner() as runner:
        if awaited:
            replay: Any = AsyncReplay(store, "ns", ttl=60, renew=False)
        else:
            replay = Replay(store, "ns", ttl=60, renew=False)

        def ask(key: str) -> int:
            before = proxy.passed()
            asked = replay.execute(("s", key), PARAMS, lambda: "r")
            if awaited:
                runner.run(asked)
            return (proxy.passed() - before).round_trips

        assert [(ask(key), ask(key)) for key in ("one", "two")] == [(3, 1), (3, 1)]


def test_opening_is_two(etcd: Any, proxy: CuttingProxy) -> None:
    """The version of the cluster, and the mark of the store: found or made."""
    for _ in range(2):
        before = proxy.passed()
        open_store(proxy.url).close()
        assert (proxy.passed() - before).round_trips == 2
