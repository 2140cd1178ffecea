"""A final failure is stored, and raised again for every retry."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvreplay import (
    NOT_APPLIED,
    ClaimLostError,
    ConfigError,
    ExpiredError,
    IndeterminateError,
    InDoubtError,
    NotAppliedError,
    ParamsMismatchError,
    State,
    StoredFailureError,
    StoreFullError,
    StoreUnavailableError,
)
from kvreplay._protocol.record import decode
from kvreplay._runtime.singleflight import flights
from kvreplay.testing import FaultyStore
from support.final_failures import Declined, DeclinedByBank, Formats, KeywordOnly
from support.replaying import START, Caller, FakeClock, Handler, never
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, abandon, entry, reopened
from support.waiting import until

NAME = "support.final_failures.Declined"


@pytest.fixture
def declining(make: Callable[..., Any]) -> Any:
    return make(store_errors=(Declined,))


def state_of(store: Any) -> State:
    return decode(entry(store) or b"").state


@pytest.mark.parametrize("lease", [30.0, None])
def test_a_retry_gets_the_same_class_and_arguments(
    engine: Any, make_on: Callable[..., Any], lease: float | None, events: list[str]
) -> None:
    store = engine.open()
    settings = {"store_errors": (KeyError, Declined), "lease": lease}
    error = Declined("funds", 51, [1, None], {"a": b"\x00"})
    with pytest.raises(Declined) as first:
        make_on(store, **settings).execute(KEY, PARAMS, Handler(error))
    assert first.value is error
    store = reopened(engine, store)
    again = make_on(store, **settings)
    for ask in (
        lambda: again.execute(KEY, PARAMS, never),
        lambda: again.lookup(KEY, PARAMS),
        lambda: again.execute(KEY, PARAMS, never, returns=list[int]),
    ):
        with pytest.raises(Declined) as told:
            ask()
        assert type(told.value) is Declined
        assert told.value.args == error.args
    assert events == ["started", "failed", "replayed", "replayed", "replayed"]


def test_a_failure_is_a_record_like_an_answer(declining: Any, store: Any, clock: FakeClock) -> None:
    with pytest.raises(Declined):
        declining.execute(KEY, PARAMS, Handler(Declined("funds")), ttl=10)
    record = declining.record(KEY)
    assert record.state is State.FAILED
    assert record.load_failure() == (NAME, ["funds"])
    assert record.load_response() is None
    assert (record.created_at, record.expires_at) == (START, START + 10_000)
    assert "funds" not in repr(record)
    with pytest.raises(ParamsMismatchError):
        declining.execute(KEY, OTHER, never)
    assert declining.forget(KEY) is True
    assert declining.execute(KEY, OTHER, Handler("anew")).response == "anew"


def test_what_is_not_listed_frees_the_key(declining: Any, store: Any, events: list[str]) -> None:
    with pytest.raises(ValueError, match="transient"):
        declining.execute(KEY, PARAMS, Handler(ValueError("transient")))
    assert entry(store) is None
    assert declining.execute(KEY, PARAMS, Handler("r")).response == "r"
    assert events == ["started", "released", "started", "completed"]


# What cannot be built again.


@pytest.mark.parametrize(
    ("error", "arguments", "why"),
    [
        (DeclinedByBank("iban", 1), ("iban", 1), "does not list it"),
        (KeywordOnly(7, reason="x"), ("7: x",), "cannot be built"),
        (Formats(7), ("declined with 7",), "other arguments"),
        (Declined(object()), None, "could not be stored"),
        (Declined("x" * 2000), None, "could not be stored"),
    ],
    ids=["a subclass", "keywords", "a class that formats", "no msgpack", "too large"],
)
def test_what_cannot_be_built_again_is_told_by_its_name(
    make: Callable[..., Any], error: Exception, arguments: Any, why: str
) -> None:
    settings = {"store_errors": (Declined, KeywordOnly, Formats), "max_record_bytes": 1000}
    with pytest.raises(type(error)) as first:
        make(**settings).execute(KEY, PARAMS, Handler(error))
    assert first.value is error
    with pytest.raises(StoredFailureError, match=why) as told:
        make(**settings).execute(KEY, PARAMS, never)
    assert told.value.name == f"support.final_failures.{type(error).__name__}"
    assert told.value.arguments == arguments
    for secret in ("iban", "7", "xxx"):
        assert secret not in str(told.value) + repr(told.value)


def test_who_lists_no_failures_is_told_of_one(declining: Any, make: Callable[..., Any]) -> None:
    with pytest.raises(Declined):
        declining.execute(KEY, PARAMS, Handler(Declined("funds")))
    with pytest.raises(StoredFailureError, match="nothing ran") as told:
        make().execute(KEY, PARAMS, never)
    assert (told.value.name, told.value.arguments) == (NAME, ("funds",))


def test_no_module_is_imported_by_its_name(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "with_a_side_effect.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nclass Refused(Exception): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import with_a_side_effect  # type: ignore[import-not-found]

    refused = with_a_side_effect.Refused
    with pytest.raises(refused):
        make(store_errors=(refused,)).execute(KEY, PARAMS, Handler(refused(1)))
    del sys.modules["with_a_side_effect"]
    assert mark.exists()
    mark.unlink()
    with pytest.raises(StoredFailureError, match="does not list it"):
        make(store_errors=(Declined,)).execute(KEY, PARAMS, never)
    assert not mark.exists()
    assert "with_a_side_effect" not in sys.modules


# It expires.


@pytest.mark.parametrize("swept", [False, True])
def test_a_failure_expires_like_an_answer(
    make: Callable[..., Any], store: Any, clock: FakeClock, swept: bool
) -> None:
    replay = make(store_errors=(Declined,), tombstone_ttl=100)
    with pytest.raises(Declined):
        replay.execute(KEY, PARAMS, Handler(Declined("funds")))
    clock.pass_seconds(59.999)
    with pytest.raises(Declined):
        replay.execute(KEY, PARAMS, never)
    clock.pass_seconds(0.001)
    if swept:
        assert replay.sweep().removed == 0
    for _ in range(2):
        with pytest.raises(ExpiredError):
            replay.execute(KEY, PARAMS, never)
    tombstone = replay.record(KEY)
    assert (tombstone.state, tombstone.response) == (State.TOMBSTONE, None)
    clock.pass_seconds(100)
    assert replay.sweep().removed == 1
    assert replay.execute(KEY, OTHER, Handler("anew")).response == "anew"


def test_a_sweep_removes_a_failure(declining: Any, store: Any, clock: FakeClock) -> None:
    with pytest.raises(Declined):
        declining.execute(KEY, PARAMS, Handler(Declined()))
    clock.pass_seconds(60)
    assert declining.sweep().removed == 1
    assert entry(store) is None


# What else ends a run stays what it was.


@pytest.mark.parametrize("store_errors", [(Exception,), (OSError, ExceptionGroup, Declined)])
@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (NotAppliedError("nothing happened"), False),
        (IndeterminateError("who knows"), True),
        (TimeoutError("no answer"), True),
        (ConnectionResetError("lost"), True),
        (ExceptionGroup("legs", [Declined()]), False),
        (ExceptionGroup("legs", [Declined(), TimeoutError()]), True),
    ],
    ids=lambda each: type(each).__name__,
)
def test_doubt_and_groups_are_never_final(
    make: Callable[..., Any], store: Any, error: Exception, is_kept: bool, store_errors: Any
) -> None:
    if ExceptionGroup in store_errors:
        with pytest.raises(ConfigError, match="never a final failure"):
            make(store_errors=store_errors)
        store_errors = (OSError, Declined)
    replay = make(store_errors=store_errors)
    with pytest.raises(InDoubtError if is_kept else type(error)):
        replay.execute(KEY, PARAMS, Handler(error))
    assert (entry(store) is not None) == is_kept
    if is_kept:
        assert state_of(store) is State.IN_PROGRESS


@pytest.mark.parametrize(
    ("error", "settings"),
    [
        (ConnectionRefusedError("refused"), {"store_errors": (OSError,)}),
        (Declined("funds"), {"store_errors": (Declined,), "doubt_on": (Exception,)}),
        (TimeoutError("late"), {"store_errors": (TimeoutError,), "doubt_on": ()}),
    ],
    ids=["refused", "nearer", "no doubt"],
)
def test_a_failure_that_is_named_more_closely_than_a_doubt_is_final(
    make: Callable[..., Any], store: Any, error: Exception, settings: Any
) -> None:
    replay = make(**settings)
    for _ in range(2):
        with pytest.raises((type(error), StoredFailureError)):
            replay.execute(KEY, PARAMS, Handler(error, "never"))
    assert state_of(store) is State.FAILED


@pytest.mark.parametrize(
    "store_errors",
    [Declined, (Declined(),), (KeyboardInterrupt,), (NotAppliedError,), ("Declined",)],
    ids=repr,
)
def test_store_errors_must_be_classes_that_can_be_final(
    make: Callable[..., Any], store_errors: Any
) -> None:
    with pytest.raises(ConfigError, match="store_errors"):
        make(store_errors=store_errors)


@pytest.mark.parametrize("lease", [30.0, None])
def test_a_rerun_that_fails_finally_keeps_the_doubt_about_the_run_before(
    make: Callable[..., Any], store: Any, lease: float | None, events: list[str]
) -> None:
    abandon(make())
    before = entry(store)
    replay = make(on_in_doubt="rerun", store_errors=(Declined,), lease=lease)
    for _ in range(2):
        with pytest.raises(Declined):
            replay.execute(KEY, PARAMS, Handler(Declined("used before")))
        assert entry(store) == before
    with pytest.raises(InDoubtError):
        make().execute(KEY, PARAMS, never)
    assert "failed" not in events
    assert replay.execute(KEY, PARAMS, Handler("third")).response == "third"


def test_a_failure_of_a_run_that_a_reconciler_allowed_is_final(make: Callable[..., Any]) -> None:
    abandon(make())
    replay = make(on_in_doubt=lambda record: NOT_APPLIED, store_errors=(Declined,))
    for _ in range(2):
        with pytest.raises(Declined):
            replay.execute(KEY, PARAMS, Handler(Declined("funds"), "never"))


# The store.


@pytest.mark.parametrize("lost", [False, True])
def test_a_failure_that_may_not_be_stored_leaves_doubt(
    make_on: Callable[..., Any], store: Any, lost: bool, events: list[str]
) -> None:
    faulty = FaultyStore(store)
    replay = make_on(faulty, store_errors=(Declined,))
    if lost:
        faulty.lose_outcome(applied=True, after=1)
    else:
        faulty.fail(StoreFullError("no room"), after=1)
    with pytest.raises(InDoubtError) as told:
        replay.execute(KEY, PARAMS, Handler(Declined("secret")))
    assert told.value.response is None
    assert told.value.__notes__ == ["the handler had raised a Declined, a final failure"]
    assert events == ["started", "doubt_begun"]
    with pytest.raises(Declined if lost else InDoubtError):
        replay.execute(KEY, PARAMS, never)


def test_a_failure_without_a_claim_is_stored_first_or_not_at_all(
    make_on: Callable[..., Any], store: Any
) -> None:
    settings = {"store_errors": (Declined,), "lease": None}
    faulty = FaultyStore(store)
    faulty.fail(StoreFullError("no room"))
    with pytest.raises(InDoubtError):
        make_on(faulty, **settings).execute(KEY, PARAMS, Handler(Declined()))
    other = make_on(store, **settings)

    def overtaken() -> Any:
        del flights.table[next(iter(flights.table))]  # as in another process
        Caller(other.execute, KEY, PARAMS, Handler("faster")).result()
        raise Declined("slower")

    assert other.execute(KEY, PARAMS, overtaken).response == "faster"


def test_a_failure_is_not_stored_over_another_owners_answer(
    make: Callable[..., Any], store: Any, events: list[str]
) -> None:
    replay = make(store_errors=(Declined,))

    def overtaken() -> Any:
        store.write(NAMESPACE, *KEY, b"another's")
        raise Declined("late")

    with pytest.raises(ClaimLostError) as told:
        replay.execute(KEY, PARAMS, overtaken)
    assert "a final failure" in told.value.__notes__[0]
    assert entry(store) == b"another's"
    assert events == ["started", "claim_lost"]


def test_followers_get_the_failure(declining: Any, events: list[str]) -> None:
    handler = Handler(Declined("funds", 51), held=True)
    leader = Caller(declining.execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)
    followers = [Caller(declining.execute, KEY, PARAMS, never) for _ in range(3)]
    (flight,) = flights.table.values()
    until(lambda: len(flight.wakers) == 3)
    handler.let_go()
    for caller in (leader, *followers):
        with pytest.raises(Declined) as told:
            caller.result()
        assert told.value.args == ("funds", 51)
    assert sorted(events) == ["failed", *["replayed"] * 3, "started", *["waited"] * 3]


# In a transaction.


def test_the_writes_of_a_transaction_are_undone_and_its_failure_stored(
    transactional_engine: Any, make_on: Callable[..., Any], events: list[str]
) -> None:
    store = transactional_engine.open()

    def handler(transaction: Any) -> Any:
        transaction.write("ledger", "", "k", b"1")
        raise Declined("funds")

    replay = make_on(store, store_errors=(Declined,))
    with pytest.raises(Declined):
        replay.execute_in_transaction(KEY, PARAMS, handler)
    store = reopened(transactional_engine, store)
    assert store.list("ledger", "") == []
    for ask in ("execute_in_transaction", "execute"):
        with pytest.raises(Declined) as told:
            getattr(make_on(store, store_errors=(Declined,)), ask)(KEY, PARAMS, never)
        assert told.value.args == ("funds",)
    assert events == ["started", "failed", "replayed", "replayed"]


def test_a_transaction_under_rerun_keeps_the_doubt(
    make_on: Callable[..., Any], transactional: Any
) -> None:
    abandon(make_on(transactional))
    before = entry(transactional)

    def handler(transaction: Any) -> Any:
        raise Declined("used before")

    replay = make_on(transactional, store_errors=(Declined,), on_in_doubt="rerun")
    with pytest.raises(Declined):
        replay.execute_in_transaction(KEY, PARAMS, handler)
    assert entry(transactional) == before
    assert replay.execute_in_transaction(KEY, PARAMS, lambda txn: "third").response == "third"


def test_a_transaction_whose_failure_cannot_be_stored_has_changed_nothing(
    make_on: Callable[..., Any], transactional: Any, events: list[str]
) -> None:
    faulty = FaultyStore(transactional)
    replay = make_on(faulty, store_errors=(Declined,))

    def handler(transaction: Any) -> Any:
        faulty.fail(on="check_and_put")
        transaction.write("ledger", "", "k", b"1")
        raise Declined("funds")

    with pytest.raises(StoreUnavailableError):
        replay.execute_in_transaction(KEY, PARAMS, handler)
    assert entry(transactional) is None
    assert transactional.list("ledger", "") == []
    assert events == ["started", "store_error"]


def test_a_transaction_that_lost_the_race_gives_the_winners_answer(
    make_on: Callable[..., Any], transactional: Any, clock: FakeClock
) -> None:
    """The winner answers between the undoing of the writes and the storing of the failure."""
    winner = make_on(transactional)

    class Losing(FaultyStore):
        def check_and_put(self, *args: Any, **options: Any) -> Any:
            if not raced and declined:
                raced.append(1)
                del flights.table[next(iter(flights.table))]  # as in another process
                Caller(winner.execute, KEY, PARAMS, Handler("winner")).result()
            return super().check_and_put(*args, **options)

        check_and_put_at_once = check_and_put_each = None  # type: ignore[assignment]

    raced: list[int] = []
    declined: list[int] = []

    def handler(transaction: Any) -> Any:
        declined.append(1)
        raise Declined("slower")

    replay = make_on(Losing(transactional), store_errors=(Declined,))
    outcome = replay.execute_in_transaction(KEY, PARAMS, handler)
    assert (outcome.response, outcome.replayed, len(declined)) == ("winner", True, 1)
