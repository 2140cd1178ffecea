"""A node's own plain store, through the explicit wrapper."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvreplay import (
    ConfigError,
    InProcessAtomicStore,
    InvalidValueError,
    ParamsMismatchError,
    Replay,
    StoreError,
    SweepResult,
)
from support.plain_stores import PlainStore, WalkableStore
from support.replaying import FakeClock, Handler
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, abandon


def test_a_plain_store_needs_the_wrapper(face: Any) -> None:
    with pytest.raises(ConfigError, match=r"no check_and_put.*InProcessAtomicStore"):
        face(PlainStore(), NAMESPACE, ttl=1)


def test_a_wrapped_plain_store_replays(face: Any) -> None:
    replay = face(InProcessAtomicStore(PlainStore()), NAMESPACE, ttl=60)
    handler = Handler("r")
    assert replay.execute(KEY, PARAMS, handler).response == "r"
    assert replay.execute(KEY, PARAMS, handler).replayed
    with pytest.raises(ParamsMismatchError):
        replay.execute(KEY, OTHER, handler)
    with pytest.raises(ConfigError, match="list_all_keys"):
        replay.sweep()


class Proxy:
    """A store behind one that only passes calls on, as metrics or tracing do."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_proxy_is_as_capable_as_its_store(face: Any, store: Any, clock: FakeClock) -> None:
    replay = face(Proxy(store), NAMESPACE, ttl=60, clock=clock)
    replay.execute(KEY, PARAMS, Handler("r"))
    clock.pass_seconds(60)
    assert replay.sweep().removed == 1
    walkable = face(Proxy(InProcessAtomicStore(Proxy(WalkableStore()))), NAMESPACE, ttl=60)
    walkable.execute(KEY, PARAMS, Handler("r"))
    assert walkable.sweep().visited == 1


def test_a_store_without_an_index_is_swept_by_walking(face: Any, clock: FakeClock) -> None:
    inner = WalkableStore()
    inner.write("ledger", "", "hash", b"paid")
    replay = face(InProcessAtomicStore(inner), NAMESPACE, ttl=60, tombstone_ttl=60, clock=clock)
    for number in range(5):
        replay.execute(("s", str(number)), PARAMS, Handler(number))
    abandon(replay, ("s", "claimed"))
    clock.pass_seconds(60)
    replay.execute(("s", "young"), PARAMS, Handler("young"))
    inner.write(NAMESPACE, "s", "damaged", b"?")
    totals = []
    while not totals or totals[-1].more:
        totals.append(replay.sweep(limit=3))
    assert [each.visited for each in totals] == [3, 3, 2]
    assert sum(each.removed for each in totals) == 0  # they are tombstones now
    clock.pass_seconds(60)
    assert sum(replay.sweep(limit=8).removed for _ in range(2)) == 5
    assert sorted(inner.list(NAMESPACE, "s")) == ["claimed", "damaged", "young"]
    assert inner.read("ledger", "", "hash") == b"paid"


def test_a_walk_keeps_to_its_namespace_and_to_what_is_still_there(face: Any) -> None:
    class Listing(WalkableStore):
        def list_all_keys(self) -> Any:
            yield NAMESPACE, "s", "gone-since"
            yield from super().list_all_keys()

    store = InProcessAtomicStore(Listing())
    for namespace in ("before", NAMESPACE, "south"):
        face(store, namespace, ttl=60).execute(("s", namespace), PARAMS, Handler("r"))
    replay = face(store, NAMESPACE, ttl=60)
    assert [record.key.id for record in replay.records()] == [NAMESPACE]
    assert replay.sweep() == SweepResult(1, 0, False)


def test_a_walk_that_fails_begins_a_new_round(face: Any, clock: FakeClock) -> None:
    """It does not say that nothing is left."""
    inner = WalkableStore()
    replay = face(InProcessAtomicStore(inner), NAMESPACE, ttl=60, clock=clock)
    for number in range(4):
        replay.execute(("s", str(number)), PARAMS, Handler(number))
    clock.pass_seconds(60)
    assert replay.sweep(limit=1) == SweepResult(1, 1, True)
    read, left = inner.read, [True]

    def fail_once(*address: str) -> bytes:
        if left:
            left.clear()
            raise OSError("injected")
        return read(*address)

    inner.read = fail_once  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        replay.sweep()
    assert replay.sweep() == SweepResult(3, 3, False)


def test_a_child_forked_in_a_walk_walks_by_itself(clock: FakeClock, fork: Any) -> None:
    """Another thread of its parent is in the middle of a walk."""
    inner = WalkableStore()
    replay = Replay(InProcessAtomicStore(inner), NAMESPACE, ttl=60, clock=clock)
    for number in range(4):
        replay.execute(("s", str(number)), PARAMS, Handler(number))
    clock.pass_seconds(60)
    assert replay.sweep(limit=1).more
    inside, over = threading.Event(), threading.Event()
    read = inner.read

    def stay(*address: str) -> bytes:
        inside.set()
        assert over.wait(30)
        return read(*address)

    def child() -> None:
        inner.read = read  # type: ignore[method-assign]
        assert replay.sweep() == SweepResult(3, 3, False)

    inner.read = stay  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        sweeping = pool.submit(replay.sweep)
        assert inside.wait(30)
        fork(child).join()
        over.set()
        assert sweeping.result(30) == SweepResult(3, 3, False)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_walking_sweep_has_a_sane_limit(face: Any, limit: Any) -> None:
    replay = face(InProcessAtomicStore(WalkableStore()), NAMESPACE, ttl=60)
    with pytest.raises(InvalidValueError, match="nothing was swept"):
        replay.sweep(limit)
    assert replay.sweep(1) == SweepResult(0, 0, False)
