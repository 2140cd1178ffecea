"""The operations that are interrupted. Each is a generator: it prepares, yields the call, and is sent how that ended.

What a call that was interrupted may leave is asserted after the ``yield``; :meth:`World.check` asserts the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final

import attrs

from interrupts.points import Ended
from interrupts.world import World, enter_as_it_is, open_store
from kvreplay import (
    AsyncReplay,
    Change,
    Entry,
    InDoubtError,
    NotStored,
    Outcome,
    Replay,
    ReplayClosedError,
    State,
)
from kvreplay.asgi import IdempotencyMiddleware as ASGILayer
from kvreplay.errors import KeyNotFoundError
from kvreplay.ldk import TurnStore
from kvreplay.wsgi import IdempotencyMiddleware as WSGILayer

__all__ = ["ASYNC", "ENGINES", "OPERATIONS", "operations_of"]

Operation = Generator[Callable[[], Any], Ended, None]

ENGINES: Final = ("lmdb", "memory", "filesystem", "sqlite", "postgresql", "etcd")
KEY: Final = ("peer", "session")
FINAL: Final = (ZeroDivisionError,)  # what a walk takes for the call's own
PARAMS: Final = {"amount": 1}
SMALL: Final = 1 << 17  # a map in bytes: four databases and a few entries fit in


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


def putting(method: str) -> Callable[[World], Operation]:
    """A check-and-put that replaces an entry that expires, as a completed claim does."""

    def putting(world: World) -> Operation:
        put = getattr(world.store, method)
        put("p", "s", "k", expected=None, value=b"old", expires_at=5)
        ended = yield lambda: put("p", "s", "k", expected=b"old", value=b"new", expires_at=9)
        assert ended.error or ended.result == b"old"
        now = found(world, "k")
        assert now in ((b"old", b"new") if ended.error else (b"new",))
        assert world.store.sweep("p", 9, 10).removed == 1, "its expiry was lost"

    return putting


def removing(world: World) -> Operation:
    """Of an entry that expires, with its place in the index."""
    world.store.check_and_put("p", "s", "k", expected=None, value=b"old", expires_at=5)
    ended = yield lambda: world.store.remove("p", "s", "k")
    now = found(world, "k")
    assert now in ((b"old", None) if ended.error else (None,))
    assert world.store.sweep("p", 5, 10).removed == (now is not None)


def removing_lazily(world: World) -> Operation:
    world.store.check_and_put("p", "s", "k", expected=None, value=b"old", expires_at=5)
    ended = yield lambda: world.store.remove("p", "s", "k", lazy=True)
    now = found(world, "k")
    assert now in ((b"old", None) if ended.error else (None,))
    assert world.store.list("p", "s") == ["k"] * (now is not None), "half of a removal"
    assert world.store.sweep("p", 5, 5).removed == (now is not None)


def removed_lazily(world: World) -> None:
    world.store.write("p", "s", "k", b"old")
    world.store.write("p", "s", "gone", b"old")
    for key in ("k", "gone"):
        world.store.remove("p", "s", key, lazy=True)


def writing_after_lazy_removals(world: World) -> Operation:
    removed_lazily(world)
    ended = yield lambda: world.store.write("p", "s", "k", b"new")
    assert found(world, "k") in ((None, b"new") if ended.error else (b"new",))
    assert found(world, "gone") is None


def transaction_after_lazy_removals(world: World) -> Operation:
    removed_lazily(world)

    def transact() -> None:
        with world.store.transaction() as txn:
            assert txn.check_and_put("p", "s", "k", expected=None, value=b"new") is None

    ended = yield transact
    assert found(world, "k") in ((None, b"new") if ended.error else (b"new",))
    assert found(world, "gone") is None


def reading_after_lazy_removals(world: World) -> Operation:
    removed_lazily(world)

    def read() -> list[Any]:
        pages = world.store.list_paginated("p", "s").keys
        return [found(world, "k"), world.store.list("p", "s"), list(pages)]

    ended = yield read
    assert ended.error or ended.result == [None, [], []]


def closing_after_lazy_removals(world: World) -> Operation:
    removed_lazily(world)
    ended = yield world.store.close
    if ended.error:
        world.store.close()
    if world.engine == "memory":
        world.kept = {}
    world.close()
    world.store = world.open()
    assert world.store.list("p", "s") == [], "the second close has not ended what the first began"


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


def paging(world: World) -> Operation:
    ended = yield lambda: world.store.list_paginated_with_values("p", "kept", limit=2)
    assert ended.error or list(ended.result.entries) == list(world.kept.items())[:-3:-1]


def listing_all(world: World) -> Operation:
    ended = yield lambda: list(world.store.list_all_keys())
    assert ended.error or sorted(ended.result) == [("p", "kept", key) for key in sorted(world.kept)]


def scanning(world: World) -> Operation:
    ended = yield lambda: list(world.store.scan("p"))
    told = {("p", "kept", key): Entry(value, None) for key, value in world.kept.items()}
    assert ended.error or dict(ended.result) == told


def checking(world: World) -> Operation:
    ended = yield lambda: list(world.store.check())
    assert ended.error or ended.result == []


def backing_up(world: World) -> Operation:
    place = world.folder / "copy"
    ended = yield lambda: world.store.backup(place)
    assert ended.error or place.exists()
    if place.exists():
        with open_store(world.engine, place) as copy:
            assert {key: copy.read("p", "kept", key) for key in world.kept} == world.kept


def compacting(world: World) -> Operation:
    for n in range(3):
        world.store.write("p", "s", f"k{n}", bytes(20_000))
        world.store.remove("p", "s", f"k{n}")
    ended = yield world.store.compact
    assert ended.error or ended.result.after <= ended.result.before


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


def creating(elsewhere_first: bool) -> Callable[[World], Operation]:
    """Make a store; then another process opens what is there, before this one does or after it."""

    def creating(world: World) -> Operation:
        world.leave()
        assert not world.path.exists()
        ended = yield world.open
        if elsewhere_first:
            world.use_elsewhere()
        world.store = world.open() if ended.error else ended.result
        world.keep()

    return creating


def fill_map(world: World, value: bytes) -> None:
    """Go to a new store with a small map, and store this."""
    world.leave()
    world.map_size = SMALL
    world.store = world.open()
    world.keep()
    world.store.write("p", "s", "old", value)
    assert world.store._opened().handle.map_size == SMALL


def has_grown(world: World) -> bool:
    grown: bool = world.store._opened().handle.map_size > SMALL
    return grown


def growing(world: World) -> Operation:
    """A write for which the map is too small, twice."""
    fill_map(world, b"v")
    value = bytes(200_000)
    ended = yield lambda: world.store.write("p", "s", "k", value)
    assert found(world, "k") in ((None, value) if ended.error else (value,))
    assert ended.error or has_grown(world)


def growing_transaction(world: World) -> Operation:
    """A transaction before which the map grows, since it is nearly full."""
    fill_map(world, bytes(48_000))

    def transact() -> None:
        with world.store.transaction() as txn:
            txn.write("p", "s", "k", b"v")

    ended = yield transact
    assert found(world, "k") in ((None, b"v") if ended.error else (b"v",))
    assert found(world, "old") == bytes(48_000)
    assert ended.error or has_grown(world)


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


@attrs.frozen(eq=False)
class Answered:
    """What an outcome is equal to, whenever its run began."""

    response: Any
    replayed: bool

    def __eq__(self, other: object) -> bool:
        told = isinstance(other, Outcome) and (other.response, other.replayed)
        return told == (self.response, self.replayed)


def execute(
    world: World,
    replay: Any,
    handler: Callable[..., Any],
    method: str = "execute",
    **options: Any,
) -> Any:
    call = getattr(replay, method)(KEY, PARAMS, handler, **options)
    return world.run(call) if isinstance(replay, AsyncReplay) else call


def request(asynchronous: bool, **settings: Any) -> Callable[[World], Operation]:
    def requesting(world: World) -> Operation:
        make = world.async_replay if asynchronous else world.replay
        replay = make(**settings)
        handler = world.async_handler if asynchronous else world.handler
        ended = yield lambda: execute(world, replay, handler)
        assert world.runs <= 1
        if not ended.error:
            assert ended.result == Answered("answer", False)
        again = _ask_again(world)
        claimed = settings.get("lease", 30) is not None
        if again == Answered("answer", True):
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

        ended = yield lambda: execute(world, replay, handler, "execute_in_transaction")
        assert world.runs <= 1
        if not ended.error:
            assert ended.result == Answered("answer", False)
        again = _ask_again(world)
        assert again in (
            (None, Answered("answer", True)) if ended.error else (Answered("answer", True),)
        )
        assert (found(world, "effect") is not None) == (again is not None)

    return requesting


def joined(ends_with: Any, store_errors: Any = FINAL) -> Callable[[World], Operation]:
    """A request in a transaction of the caller's own, who swallows the interrupt and commits."""

    def joined(world: World) -> Operation:
        own, replay = world.connect(), world.replay(store_errors=store_errors)
        world.ends_with = ends_with
        own.begin()
        ended = yield lambda: execute_joined(world, replay, own)
        commit_more(own, ended)
        check_joined(world, own, ended, store_errors)

    return joined


def joined_and_committed(ends_with: Any) -> Callable[[World], Operation]:
    """The whole of the caller's transaction is interrupted: its begin and its commit too."""

    def joined(world: World) -> Operation:
        own, replay = world.connect(), world.replay()
        world.ends_with = ends_with

        def transact() -> Any:
            with own.transaction():
                return execute_joined(world, replay, own)

        ended = yield transact
        own.end()
        check_joined(world, own, ended, ())

    return joined


def joined_hit(world: World) -> Operation:
    world.replay().execute(KEY, PARAMS, world.handler)
    own, replay = world.connect(), world.replay()
    own.begin()
    ended = yield lambda: execute_joined(world, replay, own)
    assert ended.error or ended.result == Answered("answer", True)
    commit_more(own, ended)
    assert "paid" not in own.payments()
    assert world.runs == 1
    assert _ask_again(world) == Answered("answer", True)


def execute_joined(world: World, replay: Any, own: Any) -> Any:
    def handler(connection: Any) -> Any:
        connection.execute("INSERT INTO ledger VALUES ('paid')")
        return world.handler()

    # Its annotations are not looked at.
    return replay.execute_in_transaction(KEY, PARAMS, partial(handler), connection=own.given)


def commit_more(own: Any, ended: Ended) -> None:
    """The transaction that was joined goes on as it was, or no part of it can be committed."""
    goes_on = own.is_open
    if goes_on:
        own.pay("of the caller")
        own.commit()
        assert own.patience() == own.patience_before, "the caller's own patience with locks is lost"
    else:
        assert ended.point is not None
        own.give_up()
    assert own.payments() == [] if not goes_on else "of the caller" in own.payments()


def check_joined(world: World, own: Any, ended: Ended, store_errors: Any) -> None:
    """The handler's row and the answer are both there, or neither, and nobody waits for the key."""
    assert world.runs <= 1
    paid, again = own.payments().count("paid"), _ask_again(world)
    assert not isinstance(again, InDoubtError)
    if isinstance(world.ends_with, Exception):
        assert not paid
        assert again is None or store_errors
        assert again is not None or ended.point is not None or not store_errors
    elif isinstance(world.ends_with, NotStored):
        assert again is None
        assert paid or ended.error
    else:
        assert ended.error or ended.result == Answered("answer", False)
        assert again in (None, Answered("answer", True))
        assert paid == (again is not None), "half of a transaction"
        assert again is not None or ended.error
    if not isinstance(again, FINAL):
        world.ends_with = "answer"
        other = world.connect()
        other.begin()
        outcome = execute_joined(world, world.replay(), other)
        assert outcome == Answered("answer", again is not None)
        other.commit()


def _ask_again(world: World, **options: Any) -> Any:
    """What the key is now: an outcome, ``None`` if it is free, or the error that it is in doubt.

    A stored failure is an error too.
    """
    try:
        return world.replay(store_errors=FINAL).lookup(KEY, PARAMS, **options)
    except (InDoubtError, *FINAL) as error:
        return error


def failing(asynchronous: bool, method: str = "execute") -> Callable[[World], Operation]:
    """A request whose handler ends with a final failure."""

    def failing(world: World) -> Operation:
        world.ends_with = ZeroDivisionError("refused")
        make = world.async_replay if asynchronous else world.replay
        replay, handler = make(store_errors=FINAL), _handler_of(world, asynchronous, method)
        ended = yield lambda: execute(world, replay, handler, method)
        assert world.runs <= 1
        again = _ask_again(world)
        if isinstance(again, ZeroDivisionError):
            assert again.args == ("refused",)
            assert world.runs == 1
            return
        assert ended.point is not None, "a final failure that is not stored"
        if isinstance(again, InDoubtError):
            assert method == "execute"
            world.in_doubt_for_nothing = world.runs == 0
            assert world.replay().release(KEY)
        else:
            assert again is None
            assert world.runs == 0 or method != "execute", "it failed finally, and is forgotten"

    return failing


def not_stored(asynchronous: bool, method: str = "execute") -> Callable[[World], Operation]:
    """A request whose answer is not to be kept."""

    def not_stored(world: World) -> Operation:
        world.ends_with = NotStored("answer")
        make = world.async_replay if asynchronous else world.replay
        replay, handler = make(), _handler_of(world, asynchronous, method)
        ended = yield lambda: execute(world, replay, handler, method)
        assert world.runs <= 1
        if not ended.error:
            assert ended.result == Answered("answer", False)
        again = _ask_again(world)
        if isinstance(again, InDoubtError):
            assert method == "execute"
            assert ended.error
            world.in_doubt_for_nothing = world.runs == 0
            assert world.replay().release(KEY)
        else:
            assert again is None, "what was not to be kept is kept"

    return not_stored


def _handler_of(world: World, asynchronous: bool, method: str) -> Callable[..., Any]:
    if method == "execute_in_transaction":
        return lambda txn: world.handler()
    return world.async_handler if asynchronous else world.handler


@attrs.frozen
class Invoice:
    """What a typed request answers."""

    amount: int


def typed(asynchronous: bool) -> Callable[[World], Operation]:
    def typed(world: World) -> Operation:
        world.ends_with = Invoice(1)
        # What a type becomes is made once, and whatever that needs is imported then.
        world.replay().execute(("peer", "first"), PARAMS, world.handler, returns=Invoice)
        world.runs = 0
        replay = world.async_replay() if asynchronous else world.replay()
        handler = world.async_handler if asynchronous else world.handler
        ended = yield lambda: execute(world, replay, handler, returns=Invoice)
        assert world.runs <= 1
        if not ended.error:
            assert ended.result == Answered(Invoice(1), False)
        again = _ask_again(world, returns=Invoice)
        if again == Answered(Invoice(1), True):
            assert world.runs == 1
        elif again is None:
            assert ended.error
            assert world.runs == 0, "it ran, and is forgotten"
        else:
            assert ended.error
            world.in_doubt_for_nothing = world.runs == 0
            assert world.replay().release(KEY)

    return typed


def over_http(asynchronous: bool) -> Callable[[World], Operation]:
    """A request with an Idempotency-Key, by the layer for WSGI or for ASGI."""

    def requesting(world: World) -> Operation:
        request = partial(_over_asgi if asynchronous else _over_wsgi, world)
        ended = yield request
        assert world.runs <= 1
        if not ended.error:  # an Exception in the layer itself becomes an answer too
            assert ended.result == 201 or ended.point is not None
        record = world.replay().record(("peer", "k"))
        if record is None:
            assert ended.point is not None
            assert world.runs == 0, "it ran, and is forgotten"
        elif record.state is State.COMPLETED:
            assert request() == 201
            assert world.runs == 1
        else:
            assert ended.point is not None  # the layer had begun, if not the application
            assert request() == 409, "it is in doubt"
            assert world.replay().release(("peer", "k"))

    return requesting


def _over_wsgi(world: World) -> int:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        world.handler()
        start_response("201 Created", [])
        return [b"answer"]

    told: list[str] = []
    layer = WSGILayer(application, world.replay(), scope=lambda environ: "peer")
    environ = {"REQUEST_METHOD": "POST", "wsgi.input": None, "HTTP_IDEMPOTENCY_KEY": '"k"'}
    layer(environ, lambda status, headers: told.append(status))
    return int(told[0][:3])


def _over_asgi(world: World) -> int:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        world.handler()
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        told.append(message)

    told: list[Any] = []
    replay = world.async_replay()
    layer = ASGILayer(application, replay, scope=lambda scope: "peer")
    headers = [(b"idempotency-key", b'"k"')]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    world.run(layer(scope, receive, send))
    status: int = told[0]["status"]
    return status


def forgetting(asynchronous: bool) -> Callable[[World], Operation]:
    def forgetting(world: World) -> Operation:
        world.replay().execute(KEY, PARAMS, world.handler)
        seen = world.replay().record(KEY)
        replay = world.async_replay() if asynchronous else world.replay()
        call = partial(replay.forget, KEY, seen=seen)
        ended = yield lambda: world.run(call()) if asynchronous else call()
        assert ended.error or ended.result is True
        again = _ask_again(world)
        assert again is None or (ended.error and again == Answered("answer", True))

    return forgetting


def looking_at_the_record(asynchronous: bool) -> Callable[[World], Operation]:
    def looking(world: World) -> Operation:
        world.replay().execute(KEY, PARAMS, world.handler)
        replay = world.async_replay() if asynchronous else world.replay()
        ended = yield lambda: world.run(replay.record(KEY)) if asynchronous else replay.record(KEY)
        assert ended.error or ended.result.state is State.COMPLETED
        assert _ask_again(world) == Answered("answer", True)

    return looking


def closing_a_replay(asynchronous: bool) -> Callable[[World], Operation]:
    def closing(world: World) -> Operation:
        replay = world.async_replay() if asynchronous else world.replay()
        handler = world.async_handler if asynchronous else world.handler
        assert execute(world, replay, handler) == Answered("answer", False)
        close = lambda: world.run(replay.close()) if asynchronous else replay.close()  # noqa: E731
        ended = yield close
        world.enter = enter_as_it_is
        assert ended.error or ended.result == 0
        assert close() == 0
        assert execute(world, replay, handler) == Answered("answer", True)
        try:
            if asynchronous:
                world.run(replay.execute(("peer", "other"), PARAMS, handler))
            else:
                replay.execute(("peer", "other"), PARAMS, handler)
        except ReplayClosedError:
            return
        raise AssertionError("a handler has begun after close()")

    return closing


def hit(asynchronous: bool, method: str = "execute") -> Callable[[World], Operation]:
    def hitting(world: World) -> Operation:
        world.replay().execute(KEY, PARAMS, world.handler)
        replay = world.async_replay() if asynchronous else world.replay()
        if method == "lookup":
            call = replay.lookup
            ask = lambda: world.run(call(KEY, PARAMS)) if asynchronous else call(KEY, PARAMS)  # noqa: E731
        else:
            ask = lambda: execute(world, replay, world.handler)  # noqa: E731
        ended = yield ask
        assert ended.error or ended.result == Answered("answer", True)
        assert world.runs == 1
        assert _ask_again(world) == Answered("answer", True)

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
            yield lambda: world.run(call(KEY, **options)) if asynchronous else call(KEY, **options)
        )
        assert ended.error or ended.result is True
        again = _ask_again(world)
        settled = Answered("answer", True) if how == "resolve" else None
        assert again == settled or (ended.error and isinstance(again, InDoubtError))

    return settling


def sweeping_answers(asynchronous: bool) -> Callable[[World], Operation]:
    """A sweep of expired answers, by way of a replay."""

    def sweeping(world: World) -> Operation:
        world.replay().execute(KEY, PARAMS, world.handler, ttl=0)
        replay = world.async_replay() if asynchronous else world.replay()
        ended = yield lambda: world.run(replay.sweep()) if asynchronous else replay.sweep()
        assert ended.error or ended.result.removed == 1
        world.replay().sweep()
        assert world.replay().execute(KEY, PARAMS, world.handler) == Answered("answer", False)

    return sweeping


# Turns of a node. None may stay open for the thread.


def turn(world: World) -> Operation:
    turns, said = TurnStore(world.store), list[str]()

    def take_turn() -> None:
        with turns.turn():
            turns.write("p", "s", "a", b"1")
            turns.after_commit(partial(said.append, "said"))
            with turns.transaction() as part:
                part.write("p", "s", "b", b"1")
                part.check_and_put("p", "s", "c", expected=None, value=b"1", expires_at=5)

    ended = yield take_turn
    stored = {found(world, key) for key in "abc"}
    assert stored in (({None}, {b"1"}) if ended.error else ({b"1"},)), "half of a turn"
    assert said == ["said"] if not ended.error else said in ([], ["said"])
    assert not said or stored == {b"1"}, "it told of what is not stored"
    assert not turns._turns


def interrupted_part(world: World) -> Operation:
    """A turn that goes on whatever broke off its part."""
    turns = TurnStore(world.store)

    def take_turn() -> None:
        caught = None
        with turns.turn():
            turns.write("p", "s", "a", b"1")
            try:
                with turns.transaction() as part:
                    part.write("p", "s", "b", b"1")
                    part.check_and_put("p", "s", "c", expected=None, value=b"1", expires_at=5)
            except BaseException as error:
                caught = error
            turns.write("p", "s", "d", b"1")
        if caught is not None:
            raise caught

    ended = yield take_turn
    part, rest = ({found(world, key) for key in keys} for keys in ("bc", "ad"))
    assert part in ({None}, {b"1"}), "half of a part"
    assert rest in ({None}, {b"1"}), "half of a turn"
    assert rest == {b"1"} or part == {None}
    assert ended.error or part == {b"1"}
    assert not turns._turns


def request_in_a_turn(world: World) -> Operation:
    turns = TurnStore(world.store)
    replay = Replay(turns, "pay", ttl=600)

    def handler(txn: Any) -> str:
        txn.write("p", "s", "effect", b"1")
        return world.handler()

    def take_turn() -> Outcome[Any]:
        with turns.turn():
            turns.write("p", "s", "a", b"1")
            return replay.execute_in_transaction(KEY, PARAMS, handler)

    ended = yield take_turn
    assert ended.error or ended.result == Answered("answer", False)
    again = _ask_again(world)
    assert again in (
        (None, Answered("answer", True)) if ended.error else (Answered("answer", True),)
    )
    stored = {found(world, key) is not None for key in ("a", "effect")}
    assert stored == {again is not None}, "half of a turn"
    assert not turns._turns


STORES: Final[dict[str, Callable[[World], Operation]]] = {
    "create": creating(elsewhere_first=False),
    "create, elsewhere first": creating(elsewhere_first=True),
    "open": opening,
    "read": reading,
    "read_entry": reading_an_entry,
    "write": writing,
    "write, map grows": growing,
    "check_and_put": putting("check_and_put"),
    "check_and_put_at_once": putting("check_and_put_at_once"),
    "remove": removing,
    "lazy remove": removing_lazily,
    "write after lazy removes": writing_after_lazy_removals,
    "transaction after lazy removes": transaction_after_lazy_removals,
    "reads after lazy removes": reading_after_lazy_removals,
    "close after lazy removes": closing_after_lazy_removals,
    "check_and_put_each": batching,
    "sweep": sweeping,
    "list": listing,
    "list_all_keys": listing_all,
    "list_paginated": paging,
    "scan": scanning,
    "check": checking,
    "backup": backing_up,
    "compact": compacting,
    "transaction": transaction,
    "transaction, map grows": growing_transaction,
    "undone transaction": undone_transaction,
    "close": closing,
}
JOINED: Final[dict[str, Callable[[World], Operation]]] = {
    "joined": joined("answer"),
    "joined, a hit": joined_hit,
    "joined, a failure": joined(ZeroDivisionError("refused"), store_errors=()),
    "joined, a final failure": joined(ZeroDivisionError("refused")),
    "joined, an answer that is not kept": joined(NotStored("answer")),
    "joined and committed": joined_and_committed("answer"),
    "joined and undone": joined_and_committed(ZeroDivisionError("refused")),
}


def _requests(asynchronous: bool) -> dict[str, Callable[[World], Operation]]:
    return {
        "execute": request(asynchronous),
        "execute, lease=None": request(asynchronous, lease=None),
        "execute, renew=True": request(asynchronous, renew=True),
        "execute, a final failure": failing(asynchronous),
        "execute, an answer that is not kept": not_stored(asynchronous),
        "execute, typed": typed(asynchronous),
        "execute_in_transaction": request_in_transaction(asynchronous),
        "execute_in_transaction, a final failure": failing(asynchronous, "execute_in_transaction"),
        "execute_in_transaction, not kept": not_stored(asynchronous, "execute_in_transaction"),
        "hit": hit(asynchronous),
        "lookup": hit(asynchronous, "lookup"),
        "resolve": settling(asynchronous, "resolve"),
        "release": settling(asynchronous, "release"),
        "forget": forgetting(asynchronous),
        "over HTTP": over_http(asynchronous),
        "record": looking_at_the_record(asynchronous),
        "close a replay": closing_a_replay(asynchronous),
        "sweep answers": sweeping_answers(asynchronous),
    }


ASYNC: Final = "async "
TURNS: Final[dict[str, Callable[[World], Operation]]] = {
    "turn": turn,
    "turn, interrupted part": interrupted_part,
    "turn, execute_in_transaction": request_in_a_turn,
}
OPERATIONS: Final = {
    **STORES,
    **JOINED,
    **TURNS,
    **_requests(asynchronous=False),
    **{f"{ASYNC}{name}": each for name, each in _requests(asynchronous=True).items()},
}


ON_MEMORY: Final = (
    "execute, an answer that is not kept",
    "execute, typed",
    "forget",
    "over HTTP",
    "record",
    "close a replay",
)
"""What asks an engine for nothing that other operations do not ask for too."""


ASKED_OF_SERVERS: Final = (
    *("create", "read", "write", "check_and_put", "remove", "sweep", "list_all_keys", "close"),
    *("transaction", "undone transaction", "execute", "hit", f"{ASYNC}execute", f"{ASYNC}hit"),
    *("joined", "joined, a hit", "joined, a failure", "joined, a final failure"),
    "joined and committed",
)
"""What asks an engine whose entries are on a server for something of its own."""


def operations_of(engine: str) -> list[str]:
    """The names of what this engine can do."""
    if engine == "postgresql":
        return [name for name in OPERATIONS if name in ASKED_OF_SERVERS]
    if engine == "etcd":
        able = [name for name in ASKED_OF_SERVERS if "trans" not in name and "joined" not in name]
        return [name for name in OPERATIONS if name in able]
    lacks: set[str] = set()
    if engine != "memory":
        lacks |= {prefix + name for prefix in ("", ASYNC) for name in ON_MEMORY}
    if engine == "filesystem":
        lacks |= {name for name in OPERATIONS if "transaction" in name or name in TURNS}
    if engine != "lmdb":
        lacks |= {"write, map grows", "transaction, map grows"}
    if engine != "sqlite":
        lacks |= JOINED.keys()
    if engine not in ("lmdb", "sqlite"):
        lacks |= {"check_and_put_each", "compact"}
    if engine == "memory":
        lacks |= {"check", "backup"}
    if engine != "memory":
        lacks.add("check_and_put_at_once")
    if engine == "memory":
        lacks |= {name for name in OPERATIONS if name.startswith("create")}
    return [name for name in OPERATIONS if name not in lacks]
