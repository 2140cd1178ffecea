"""Many changes of one caller, and a thousand tasks without a thousand threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from kvreplay import AsyncReplay, Change, InvalidNameError, InvalidValueError, StoreError
from kvreplay._runtime.batching import Batcher, change_each
from kvreplay._runtime.singleflight import flights
from kvreplay._runtime.threads import Threads
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.store import BatchingKVStore
from support.group_commits import change, found
from support.lmdb_stores import commits


def test_each_of_many_changes_has_its_own_outcome(store: LMDBStore) -> None:
    assert isinstance(store, BatchingKVStore)
    before = commits(store)
    outcomes = store.check_and_put_each(
        [
            change("a", None, b"1"),
            change("a", None, b"2"),
            change("not legal", None, b"v"),
            change("a", b"1", b"3"),
            Change("p", "s", "b", None, "text"),  # type: ignore[arg-type]
            change("c", None, b"v"),
        ]
    )
    assert commits(store) == before + 1
    assert [type(each) for each in outcomes] == [
        *(type(None), bytes, InvalidNameError, bytes, InvalidValueError, type(None))
    ]
    assert (outcomes[1], outcomes[3]) == (b"1", b"1")
    assert {key: found(store, key) for key in store.list("p", "s")} == {"a": b"3", "c": b"v"}
    assert store.check_and_put_each([]) == []


def test_many_changes_are_refused_inside_a_transaction(store: LMDBStore) -> None:
    with store.transaction(), pytest.raises(StoreError, match="holds a transaction"):
        store.check_and_put_each([change("a", None, b"1")])


def test_more_changes_than_a_batch_holds(store: LMDBStore, limits: Callable[..., None]) -> None:
    limits(changes=3)
    outcomes = store.check_and_put_each([change(f"k{n}", None, b"v") for n in range(10)])
    assert list(outcomes) == [None] * 10
    assert len(store.list("p", "s")) == 10


class Counting:
    """The store, with the batches that came counted; ``hold`` keeps the first one on its way."""

    reads_are_local = True

    def __init__(self, store: LMDBStore, *, held: bool = False) -> None:
        self._store = store
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.under_way, self._go = threading.Event(), threading.Event()
        if not held:
            self._go.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def let_go(self) -> None:
        self._go.set()

    def check_and_put_each(self, changes: Sequence[Change]) -> Any:
        self.batches.append(len(changes))
        self.threads.add(threading.get_ident())
        self.under_way.set()
        assert self._go.wait(30)
        return self._store.check_and_put_each(changes)


def test_a_thousand_tasks_share_their_trips(store: LMDBStore) -> None:
    counting = Counting(store)
    replay = AsyncReplay(counting, "ns", ttl=60)  # type: ignore[arg-type]
    before = threading.active_count()

    async def main() -> list[Any]:
        runs = (replay.execute(("s", f"{n}"), n, lambda n=n: n) for n in range(1000))
        outcomes = await asyncio.gather(*runs)
        assert threading.active_count() - before <= 2  # one for the trips, at a time
        return [outcome.response for outcome in outcomes]

    commits_before = commits(store)
    assert asyncio.run(main()) == list(range(1000))
    assert counting.batches == [1000, 1000]
    assert commits(store) - commits_before == 2
    assert len(flights) == 0


def batcher_of(store: Any) -> Batcher:
    return Batcher(partial(change_each, store), Threads("own", 2))


def test_a_change_cancelled_before_its_trip_does_not_happen(store: LMDBStore) -> None:
    counting = Counting(store, held=True)
    batcher = batcher_of(counting)

    async def main() -> None:
        first = asyncio.create_task(batcher.ask(change("first", None, b"v")))
        while not counting.under_way.is_set():
            await asyncio.sleep(0)
        second, third = (
            asyncio.create_task(batcher.ask(change(key, None, b"v"))) for key in ("second", "third")
        )
        await asyncio.sleep(0)
        second.cancel()
        counting.let_go()
        assert (await first, await third) == (None, None)
        with pytest.raises(asyncio.CancelledError):
            await second

    asyncio.run(main())
    assert sorted(store.list("p", "s")) == ["first", "third"]


def test_a_change_cancelled_on_its_way_happens_and_harms_nobody(store: LMDBStore) -> None:
    counting = Counting(store, held=True)
    batcher = batcher_of(counting)

    async def main() -> None:
        first, second = (
            asyncio.create_task(batcher.ask(change(key, None, b"v"))) for key in ("first", "second")
        )
        while not counting.under_way.is_set():
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        counting.let_go()
        assert await second is None
        assert await batcher.ask(change("first", b"v", None)) == b"v"

    asyncio.run(main())
    assert counting.batches == [2, 1]


def test_a_trip_that_fails_as_a_whole_fails_everybody_with_their_own(store: LMDBStore) -> None:
    batcher = batcher_of(store)

    async def main() -> None:
        store.close()
        errors = await asyncio.gather(
            *(batcher.ask(change(f"k{n}", None, b"v")) for n in range(3)),
            return_exceptions=True,
        )
        assert [type(error) for error in errors] == [StoreError] * 3
        assert len({id(error) for error in errors}) == 3

    asyncio.run(main())


def test_threads_that_cannot_start_are_told(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    batcher = Batcher(partial(change_each, store), Threads("own", 1))

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await batcher.ask(change("k", None, b"v"))

    asyncio.run(main())
    monkeypatch.undo()
    assert store.list("p", "s") == []
