"""An answer in a transaction of the caller's own: it counts once that is committed."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from kvreplay import (
    Applied,
    AsyncReplay,
    ClaimLostError,
    ConfigError,
    IndeterminateError,
    InDoubtError,
    InFlightError,
    InvalidParamsError,
    InvalidResponseError,
    NotStored,
    ParamsMismatchError,
    Replay,
    ReplayClosedError,
    ResponseTypeError,
    open_store,
)
from kvreplay._runtime.singleflight import flights
from support.ends import elsewhere
from support.final_failures import Declined
from support.joinable import Connection, JoinableStore
from support.replaying import Caller, Interrupt, Sync, never
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, abandon, entry
from support.waiting import PATIENCE, until


@attrs.frozen
class Receipt:
    msat: int


@pytest.fixture
def store() -> Any:
    return JoinableStore(open_store("memory:"))


@pytest.fixture
def connection(store: JoinableStore) -> Connection:
    return store.connect().begin()


def paying(*ends: Any) -> Callable[[Connection], Any]:
    """A handler that inserts a row into the ledger, and ends so."""
    left = list(ends)

    def pay(connection: Connection) -> Any:
        connection.insert("paid")
        end = left.pop(0)
        if isinstance(end, BaseException):
            raise end
        return end

    return pay


def joined(replay: Any, connection: Any, handler: Any = None, **options: Any) -> Any:
    return replay.execute_in_transaction(
        KEY, PARAMS, paying("r") if handler is None else handler, connection=connection, **options
    )


# Committed or not.


def test_the_row_and_the_answer_count_together(
    replay: Any, store: Any, connection: Any, events: list[str]
) -> None:
    outcome = joined(replay, connection)
    assert (outcome.response, outcome.replayed) == ("r", False)
    assert outcome.expires_at is not None
    assert (store.rows, entry(store)) == ([], None)
    assert replay.lookup(KEY, PARAMS) is None
    connection.commit()
    assert store.rows == ["paid"]
    assert attrs.evolve(replay.lookup(KEY, PARAMS), replayed=False) == outcome
    assert replay.execute(KEY, PARAMS, never).replayed
    assert events == ["started", "joined", "replayed", "replayed"]


def test_after_a_rollback_the_key_is_as_it_was(replay: Any, store: Any, connection: Any) -> None:
    joined(replay, connection)
    connection.rollback()
    assert (store.rows, entry(store)) == ([], None)
    assert not joined(replay, connection.begin()).replayed
    connection.commit()
    assert store.rows == ["paid"]


def test_twice_in_one_transaction_the_handler_runs_once(
    replay: Any, store: Any, connection: Any, events: list[str]
) -> None:
    first = joined(replay, connection)
    second = joined(replay, connection, never)
    assert (second.response, second.created_at) == (first.response, first.created_at)
    assert second.replayed
    with pytest.raises(ParamsMismatchError):
        replay.execute_in_transaction(KEY, OTHER, never, connection=connection)
    connection.commit()
    assert store.rows == ["paid"]
    assert events == ["started", "joined", "replayed", "params_mismatch"]


def test_a_committed_answer_is_replayed_in_a_transaction(replay: Any, connection: Any) -> None:
    replay.execute(KEY, PARAMS, lambda: "before")
    assert joined(replay, connection, never).response == "before"
    with pytest.raises(ParamsMismatchError):
        replay.execute_in_transaction(KEY, OTHER, never, connection=connection)


def test_no_flight_is_taken(replay: Any, connection: Any) -> None:
    """So nobody shares what may be undone, and none waits for a row that another flight holds."""

    def looks(connection: Connection) -> Any:
        assert flights.table == {}
        return "r"

    joined(replay, connection, looks)


# What undoes it.

ENDS: dict[str, tuple[Any, type[BaseException], list[str]]] = {
    "an exception": (ValueError("no"), ValueError, ["released"]),
    "one that leaves doubt elsewhere": (TimeoutError(), TimeoutError, ["released"]),
    "a handler that cannot tell": (IndeterminateError(), IndeterminateError, ["released"]),
    "the end of an iteration": (StopIteration(), StopIteration, ["released"]),
    "an interrupt": (Interrupt(), Interrupt, []),
    "no msgpack": (object(), InvalidResponseError, ["released"]),
    "an answer that is not kept, and no msgpack": (
        *(NotStored(object()), InvalidResponseError, ["released"]),
    ),
    "an answer that is too large": ("r" * 2000, InvalidResponseError, ["released"]),
}


@pytest.mark.parametrize("end", ENDS)
def test_an_error_undoes_the_block_and_leaves_the_transaction_usable(
    make: Any, store: Any, connection: Any, events: list[str], face: Any, end: str
) -> None:
    """Also if the caller swallows it and commits."""
    ended, error, told = ENDS[end]
    if isinstance(ended, StopIteration) and face is not Sync:
        error = RuntimeError  # a coroutine can raise no other
    replay = make(max_record_bytes=1000)
    connection.insert("before")
    with pytest.raises(error) as raised:
        joined(replay, connection, paying(ended))
    if not isinstance(raised.value, InvalidResponseError) and error is not RuntimeError:
        assert raised.value is ended
        assert not getattr(ended, "__notes__", None)
    connection.insert("after")
    connection.commit()
    assert store.rows == ["before", "after"]
    assert (entry(store), list(replay.records())) == (None, [])
    assert events == ["started", *told]
    assert not joined(replay, connection.begin()).replayed


@pytest.mark.parametrize("end", [ValueError("no"), Declined()])
def test_no_error_leads_back_to_itself(make: Any, connection: Any, end: Exception) -> None:
    with pytest.raises(type(end)) as raised:
        joined(make(store_errors=(Declined,)), connection, paying(end))
    assert raised.value.__cause__ is None


def test_params_that_are_too_large_run_nothing(make: Any, store: Any, connection: Any) -> None:
    with pytest.raises(InvalidParamsError):
        joined(make(max_record_bytes=10), connection, never)
    connection.commit()
    assert entry(store) is None


def test_a_handler_that_commits_is_told_so_and_its_key_is_in_doubt(
    replay: Any, store: Any, connection: Any, events: list[str]
) -> None:
    def commits(connection: Connection) -> str:
        connection.insert("paid")
        connection.commit()
        return "r"

    with pytest.raises((ClaimLostError, AssertionError)):
        joined(replay, connection, commits)
    assert store.rows == ["paid"]
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, never)
    (record,) = replay.records(in_doubt=True)
    assert replay.resolve(KEY, response="r", seen=record)


# Final failures, and answers that are not kept.


def test_a_final_failure_is_an_answer_and_undoes_its_rows(
    make: Any, store: Any, connection: Any, events: list[str]
) -> None:
    replay = make(store_errors=(Declined,))
    with pytest.raises(Declined) as raised:
        joined(replay, connection, paying(error := Declined("funds")))
    assert raised.value is error
    with pytest.raises(Declined):
        joined(replay, connection, never)
    connection.commit()
    assert store.rows == []
    with pytest.raises(Declined) as again:
        replay.execute(KEY, PARAMS, never)
    assert again.value.args == ("funds",)
    assert events == ["started", "joined", "replayed", "replayed"]


def test_the_rows_of_an_answer_that_is_not_kept_stay(
    replay: Any, store: Any, connection: Any, events: list[str]
) -> None:
    outcome = joined(replay, connection, paying(NotStored("pending")))
    assert (outcome.response, outcome.expires_at) == ("pending", None)
    connection.commit()
    assert (store.rows, entry(store)) == (["paid"], None)
    assert events == ["started", "released"]


# Types.


def test_a_typed_answer(replay: Any, connection: Any) -> None:
    for handler in (lambda connection: Receipt(5), never):
        assert joined(replay, connection, handler, returns=Receipt).response == Receipt(5)
    connection.commit()
    assert replay.lookup(KEY, PARAMS, returns=Receipt).response == Receipt(5)


def test_an_answer_that_cannot_be_made_again_undoes_all(
    make: Any, store: Any, connection: Any, events: list[str]
) -> None:
    def cannot(value: object) -> Any:
        raise TypeError

    replay = make(encode=lambda value: value, decode=cannot)
    with pytest.raises(InvalidResponseError):
        joined(replay, connection, paying("r"))
    connection.commit()
    assert (store.rows, entry(store), events) == ([], None, ["started", "released"])
    joined(make(on_event=None), connection.begin())
    with pytest.raises(ResponseTypeError):
        joined(replay, connection, never)
    assert events[2:] == ["response_type"]


# Who waits.


def test_a_duplicate_waits_for_the_others_transaction(
    make: Any, store: Any, connection: Any
) -> None:
    joined(make(on_event=None), connection)
    second = Caller(joined, make(wait_timeout=None), store.connect().begin(), never)
    connection.commit()
    assert second.result().replayed


def test_after_a_rollback_one_of_those_who_wait_runs(
    make: Any, store: Any, connection: Any
) -> None:
    joined(make(on_event=None), connection)
    ran: list[int] = []

    def call(number: int) -> bool:
        mine = store.connect().begin()
        try:
            return bool(joined(make(), mine, lambda connection: ran.append(number)).replayed)
        finally:
            mine.commit()

    callers = [Caller(call, number) for number in range(4)]
    connection.rollback()
    assert sorted(caller.result() for caller in callers) == [False, True, True, True]
    assert len(ran) == 1


@pytest.mark.parametrize("wait_timeout", [0, "20ms"])
def test_its_time_to_wait_ends(
    make: Any, store: Any, connection: Any, wait_timeout: Any, events: list[str]
) -> None:
    joined(make(on_event=None), connection)
    mine = store.connect().begin()
    with pytest.raises(InFlightError):
        joined(make(), mine, never, wait_timeout=wait_timeout)
    assert events == ["in_flight"]
    connection.commit()
    assert joined(make(), mine, never).replayed, "its transaction is usable"


@pytest.mark.parametrize("wait_timeout", [0, 30, None])
def test_a_handler_that_asks_for_its_own_key_does_not_wait(
    replay: Any, make: Any, connection: Any, wait_timeout: Any, events: list[str]
) -> None:
    blocking = Sync(
        JoinableStore(connection.store), NAMESPACE, ttl=60, on_event=lambda e: events.append(e.kind)
    )

    def asks(connection: Connection) -> Any:
        return joined(blocking, connection, never, wait_timeout=wait_timeout)

    with pytest.raises(InFlightError):
        joined(replay, connection, asks)
    assert events == ["started", "in_flight", "released"]


def test_a_claim_of_another_owner_is_waited_for_if_its_answer_would_show(
    make: Any, store: Any, connection: Any, events: list[str]
) -> None:
    store.write(NAMESPACE, *KEY, elsewhere())
    with pytest.raises(InFlightError):
        joined(make(), connection, never, wait_timeout="20ms")
    assert events == ["waited", "in_flight"]
    events.clear()
    store.sees_commits = False
    with pytest.raises(InFlightError):
        joined(make(), connection, never, wait_timeout=None)
    assert events == ["in_flight"]


# A key in doubt.


def test_a_key_in_doubt(make: Any, connection: Any, events: list[str]) -> None:
    abandon(make(on_event=None))
    with pytest.raises(InDoubtError):
        joined(make(), connection, never)
    assert joined(make(on_in_doubt=lambda record: Applied("found")), connection).replayed
    assert events == ["in_doubt", "joined"]
    connection.rollback()
    assert not joined(make(on_in_doubt="rerun"), connection.begin()).replayed
    connection.commit()
    assert make().execute(KEY, PARAMS, never).response == "r"


def test_a_reconciler_that_fails(make: Any, connection: Any, events: list[str]) -> None:
    def cannot(record: Any) -> Any:
        raise LookupError

    abandon(make(on_event=None))
    with pytest.raises(LookupError):
        joined(make(on_in_doubt=cannot), connection, never)
    assert events == ["in_doubt"]


# The database's own errors.


class Conflict(Exception):
    """What a driver raises of two transactions that cannot both be."""


class Conflicting:
    """A connection's store whose ``method`` raises."""

    def __init__(self, store: Any) -> None:
        self._lock = store.lock
        store.lock = self.lock
        self.left = 0

    def lock(self, *args: Any) -> None:
        if self.left == 0:
            raise Conflict
        self.left -= 1
        self._lock(*args)


@pytest.mark.parametrize("puts", [0, 1])
def test_a_conflict_comes_out_as_it_is(
    replay: Any, store: Any, connection: Any, events: list[str], puts: int
) -> None:
    Conflicting(store).left = puts
    with pytest.raises(Conflict) as raised:
        joined(replay, connection)
    assert raised.value.__cause__ is None
    assert events[-1] == "released"
    connection.commit()
    assert (store.rows, entry(store)) == ([], None)


# Closed.


def test_a_closed_replay_runs_nothing(
    replay: Any, store: Any, connection: Any, events: list[str]
) -> None:
    replay.close()
    with pytest.raises(ReplayClosedError):
        joined(replay, connection, never)
    connection.commit()
    assert (entry(store), events) == (None, ["released"])


def test_close_waits_for_it(replay: Any, connection: Any) -> None:
    go, began = threading.Event(), threading.Event()

    def held(connection: Connection) -> Any:
        began.set()
        assert go.wait(PATIENCE)
        return "r"

    caller = Caller(joined, replay, connection, held)
    assert began.wait(PATIENCE)
    assert replay.close(0) == 1
    closing = Caller(replay.close)
    go.set()
    assert caller.result().response == "r"
    assert closing.result() == 0


# What is refused.


def test_a_store_that_joins_none_is_refused(make_on: Any, face: Any) -> None:
    with pytest.raises(ConfigError, match=r"JoinableKVStore, and \w+ has no join"):
        joined(make_on(open_store("memory:")), object(), never)


def test_a_connection_without_a_transaction_is_refused(
    replay: Any, store: Any, events: list[str]
) -> None:
    with pytest.raises(ConfigError, match="no transaction open"):
        joined(replay, store.connect(), never)
    assert events == []


def test_a_handler_that_would_not_run_is_refused(replay: Any, connection: Any, face: Any) -> None:
    def generates(connection: Connection) -> Any:
        yield

    for handler in ("no handler", generates):
        with pytest.raises(ConfigError):
            joined(replay, connection, handler)


async def later(connection: Connection) -> str:
    connection.insert("paid")
    await asyncio.sleep(0)
    return "r"


def test_a_coroutine_function_is_for_asyncreplay(store: Any, connection: Any) -> None:
    with pytest.raises(ConfigError, match="use AsyncReplay and an asynchronous connection"):
        joined(Replay(store, NAMESPACE, ttl=60), connection, later)
    awaited = AsyncReplay(store, NAMESPACE, ttl=60)
    asked = awaited.execute_in_transaction(KEY, PARAMS, later, connection=connection)
    assert asyncio.run(asked).response == "r"


class Blocking:
    """A store whose connections are all blocking."""

    awaited = None

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_blocking_store_joins_no_asynchronous_connection(store: Any, connection: Any) -> None:
    replay = AsyncReplay(Blocking(store), NAMESPACE, ttl=60)
    asked = replay.execute_in_transaction(KEY, PARAMS, later, connection=connection)
    with pytest.raises(ConfigError, match="use Replay in a thread"):
        asyncio.run(asked)
    assert joined(Sync(Blocking(store), NAMESPACE, ttl=60), connection).response == "r"


# An event loop.


def test_it_runs_in_the_callers_own_task_and_a_cancelled_caller_undoes_it(
    store: Any, connection: Any
) -> None:
    replay = AsyncReplay(store, NAMESPACE, ttl=60)

    async def main() -> None:
        began, tasks = asyncio.Event(), list[Any]()

        async def held(connection: Connection) -> None:
            tasks.append(asyncio.current_task())
            connection.insert("paid")
            began.set()
            await asyncio.Event().wait()

        call = functools.partial(joined, replay, connection)
        caller = asyncio.create_task(call(held))
        await began.wait()
        assert tasks == [caller]
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert not (await call(later)).replayed

    asyncio.run(main())
    connection.commit()
    assert store.rows == ["paid"]


def test_one_loop_runs_many_at_once(store: Any) -> None:
    replay = AsyncReplay(store, NAMESPACE, ttl=60)

    async def main() -> None:
        all_began = asyncio.Barrier(20)

        async def meets(connection: Connection) -> str:
            await all_began.wait()
            return "r"

        await asyncio.gather(
            *(
                replay.execute_in_transaction(
                    ("scope", str(number)), 1, meets, connection=store.connect().begin()
                )
                for number in range(20)
            )
        )

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_nothing_is_left_of_a_run(replay: Any, connection: Any) -> None:
    from kvreplay._runtime.run import _joined

    joined(replay, connection)
    with pytest.raises(ValueError, match="no"):
        replay.execute_in_transaction(
            ("s", "2"), PARAMS, paying(ValueError("no")), connection=connection
        )
    until(lambda: not _joined)
