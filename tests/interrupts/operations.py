"""The operations that are interrupted. Each is a generator: it prepares, yields the call, and is sent how that ended.

What a call that was interrupted may leave is asserted after the ``yield``; :meth:`World.check` asserts the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Final

from interrupts.points import Ended
from interrupts.world import World
from kvreplay import AsyncReplay, Change, Entry, InDoubtError, Outcome
from kvreplay.errors import KeyNotFoundError

__all__ = ["ASYNC", "ENGINES", "OPERATIONS", "operations_of"]

Operation = Generator[Callable[[], Any], Ended, None]

ENGINES: Final = ("lmdb", "memory", "filesystem")
KEY: Final = ("peer", "session")
PARAMS: Final = {"amount": 1}


def found(world: World, key: str) -> bytes | None:
    try:
        value: bytes = world.store.read("p", "s", key)
    except KeyNotFoundError:
        return None
    return value


# Stores.


def opening(world: World) -> Operation:
    world.close()
    if world.engine == "memory":
        world.kept = {}  # it forgets
    ended = yield world.open
    world.store = world.open() if ended.error else ended.result
    world.store.write("p", "s", "first", b"1")


def reading(world: World) -> Operation:
    ended = yield lambda: world.store.read("p", "kept", "kept1")
    assert ended.error or ended.result == world.kept["kept1"]


def reading_an_entry(world: World) -> Operation:
    world.store.check_and_put("p", "s", "k", expected=None, value=b"v", expires_at=5)
    ended = yield lambda: world.store.read_entry("p", "s", "k")
    assert ended.error or ended.result == Entry(b"v", 5)


def writing(world: World) -> Operation:
    world.store.write("p", "s", "k", b"old")
    ended = yield lambda: world.store.write("p", "s", "k", b"new")
    assert found(world, "k") in ((b"old", b"new") if ended.error else (b"new",))


def putting(world: World) -> Operation:
    """A check-and-put that replaces an entry that expires, as a completed claim does."""
    put = world.store.check_and_put
    put("p", "s", "k", expected=None, value=b"old", expires_at=5)
    ended = yield lambda: put("p", "s", "k", expected=b"old", value=b"new", expires_at=9)
    assert ended.error or ended.result == b"old"
    now = found(world, "k")
    assert now in ((b"old", b"new") if ended.error else (b"new",))
    assert world.store.sweep("p", 9, 10).removed == 1, "its expiry was lost"


def batching(world: World) -> Operation:
    changes = [Change("p", "s", f"k{n}", None, b"mine", 5) for n in range(3)]
    ended = yield lambda: world.store.check_and_put_each(changes)
    assert ended.error or ended.result == [None] * 3, "told that another was faster"
    assert {found(world, f"k{n}") for n in range(3)} in ({None}, {b"mine"}), "half of a batch"


def sweeping(world: World) -> Operation:
    for n in range(3):
        world.store.check_and_put("p", "s", f"k{n}", expected=None, value=b"v", expires_at=n)
    world.store.check_and_put("p", "s", "alive", expected=None, value=b"v", expires_at=100)
    ended = yield lambda: world.store.sweep("p", 10, 10)
    assert ended.error or ended.result.removed == 3
    world.store.sweep("p", 10, 10)
    assert world.store.list("p", "s") == ["alive"]
    assert world.store.sweep("p", 100, 10).removed == 1


def listing(world: World) -> Operation:
    ended = yield lambda: world.store.list("p", "kept")
    assert ended.error or sorted(ended.result) == sorted(world.kept)


def transaction(world: World) -> Operation:
    def transact() -> None:
        with world.store.transaction() as txn:
            txn.write("p", "s", "a", b"1")
            txn.check_and_put("p", "s", "b", expected=None, value=b"1", expires_at=5)

    ended = yield transact
    both = {found(world, "a"), found(world, "b")}
    assert both in (({None}, {b"1"}) if ended.error else ({b"1"},)), "half of a transaction"


def undone_transaction(world: World) -> Operation:
    def transact() -> None:
        with world.store.transaction() as txn:
            txn.write("p", "s", "a", b"1")
            raise ZeroDivisionError

    ended = yield transact
    assert ended.error is not None
    assert found(world, "a") is None


def closing(world: World) -> Operation:
    world.store.write("p", "s", "k", b"v")
    ended = yield world.store.close
    if ended.error:
        world.store.close()
    if world.engine == "memory":
        world.kept = {}
    world.close()
    world.store = world.open()


# Requests. ``ask`` makes the call of one kind of replay.


def execute(replay: Any, handler: Callable[..., Any], method: str = "execute") -> Any:
    call = getattr(replay, method)(KEY, PARAMS, handler)
    return asyncio.run(call) if isinstance(replay, AsyncReplay) else call


def request(asynchronous: bool, **settings: Any) -> Callable[[World], Operation]:
    def requesting(world: World) -> Operation:
        make = world.async_replay if asynchronous else world.replay
        replay = make(**settings)
        handler = world.async_handler if asynchronous else world.handler
        ended = yield lambda: execute(replay, handler)
        assert world.runs <= 1
        if not ended.error:
            assert ended.result == Outcome("answer", False)
        again = _ask_again(world)
        claimed = settings.get("lease", 30) is not None
        if again == Outcome("answer", True):
            assert world.runs == 1
        elif again is None:
            assert world.runs == 0 or not claimed, "it ran, and is forgotten"
            assert ended.error
        else:
            assert claimed
            assert ended.error
            world.in_doubt_for_nothing = world.runs == 0
            assert world.replay().release(KEY)

    return requesting


def request_in_transaction(asynchronous: bool) -> Callable[[World], Operation]:
    def requesting(world: World) -> Operation:
        replay = world.async_replay() if asynchronous else world.replay()

        def handler(txn: Any) -> str:
            txn.write("p", "s", "effect", b"1")
            return world.handler()

        ended = yield lambda: execute(replay, handler, "execute_in_transaction")
        assert world.runs <= 1
        if not ended.error:
            assert ended.result == Outcome("answer", False)
        again = _ask_again(world)
        assert again in (
            (None, Outcome("answer", True)) if ended.error else (Outcome("answer", True),)
        )
        assert (found(world, "effect") is not None) == (again is not None)

    return requesting


def _ask_again(world: World) -> Any:
    """What the key is now: an outcome, ``None`` if it is free, or the error that it is in doubt."""
    try:
        return world.replay().lookup(KEY, PARAMS)
    except InDoubtError as error:
        return error


def hit(asynchronous: bool, method: str = "execute") -> Callable[[World], Operation]:
    def hitting(world: World) -> Operation:
        world.replay().execute(KEY, PARAMS, world.handler)
        replay = world.async_replay() if asynchronous else world.replay()
        if method == "lookup":
            call = replay.lookup
            ask = lambda: asyncio.run(call(KEY, PARAMS)) if asynchronous else call(KEY, PARAMS)  # noqa: E731
        else:
            ask = lambda: execute(replay, world.handler)  # noqa: E731
        ended = yield ask
        assert ended.error or ended.result == Outcome("answer", True)
        assert world.runs == 1
        assert _ask_again(world) == Outcome("answer", True)

    return hitting


def settling(asynchronous: bool, how: str) -> Callable[[World], Operation]:
    def settling(world: World) -> Operation:
        def interrupted() -> None:
            raise KeyboardInterrupt

        try:
            world.replay().execute(KEY, PARAMS, interrupted)
        except KeyboardInterrupt:
            pass
        assert isinstance(_ask_again(world), InDoubtError), "the key is not in doubt"
        replay = world.async_replay() if asynchronous else world.replay()
        options = {"response": "answer"} if how == "resolve" else {}
        call = getattr(replay, how)
        ended = (
            yield lambda: (
                asyncio.run(call(KEY, **options)) if asynchronous else call(KEY, **options)
            )
        )
        assert ended.error or ended.result is True
        again = _ask_again(world)
        settled = Outcome("answer", True) if how == "resolve" else None
        assert again == settled or (ended.error and isinstance(again, InDoubtError))

    return settling


STORES: Final[dict[str, Callable[[World], Operation]]] = {
    "open": opening,
    "read": reading,
    "read_entry": reading_an_entry,
    "write": writing,
    "check_and_put": putting,
    "check_and_put_each": batching,
    "sweep": sweeping,
    "list": listing,
    "transaction": transaction,
    "undone transaction": undone_transaction,
    "close": closing,
}


def _requests(asynchronous: bool) -> dict[str, Callable[[World], Operation]]:
    return {
        "execute": request(asynchronous),
        "execute, lease=None": request(asynchronous, lease=None),
        "execute, renew=True": request(asynchronous, renew=True),
        "execute_in_transaction": request_in_transaction(asynchronous),
        "hit": hit(asynchronous),
        "lookup": hit(asynchronous, "lookup"),
        "resolve": settling(asynchronous, "resolve"),
        "release": settling(asynchronous, "release"),
    }


ASYNC: Final = "async "
OPERATIONS: Final = {
    **STORES,
    **_requests(asynchronous=False),
    **{f"{ASYNC}{name}": each for name, each in _requests(asynchronous=True).items()},
}


def operations_of(engine: str) -> list[str]:
    """The names of what this engine can do."""
    lacks: set[str] = set()
    if engine == "filesystem":
        lacks |= {name for name in OPERATIONS if "transaction" in name}
    if engine != "lmdb":
        lacks.add("check_and_put_each")
    return [name for name in OPERATIONS if name not in lacks]
