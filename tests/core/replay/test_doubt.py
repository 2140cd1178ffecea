"""Exceptions of the handler, and keys in doubt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from kvreplay import (
    NOT_APPLIED,
    Applied,
    ConfigError,
    IndeterminateError,
    InDoubtError,
    InFlightError,
    InvalidParamsError,
    InvalidResponseError,
    NotAppliedError,
    ParamsMismatchError,
    ReplayKey,
    ReplayRecord,
    ResponseNotStorableError,
    State,
    StoreFullError,
    Unknown,
)
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import Claim, decode, encode
from support.replaying import Caller, FakeClock, Handler, Interrupt, OneByOne
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, abandon, entry
from support.told import told


def test_an_exception_frees_the_key(replay: Any, store: Any, events: list[str]) -> None:
    handler = Handler(ValueError("declined"), "second")
    with pytest.raises(ValueError, match="declined"):
        replay.execute(KEY, PARAMS, handler)
    assert entry(store) is None
    assert replay.execute(KEY, OTHER, handler).response == "second"
    assert events == ["started", "released", "started", "completed"]


@pytest.mark.parametrize(
    "error",
    [TimeoutError("no answer"), ExceptionGroup("legs", [ValueError(), IndeterminateError()])],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_that_leaves_doubt_is_told_as_doubt(
    make: Callable[..., Any], error: Exception, events: list[str]
) -> None:
    replay = make(on_in_doubt="rerun")
    with pytest.raises(InDoubtError) as told:
        replay.execute(KEY, PARAMS, Handler(error))
    assert told.value.__cause__ is error
    assert events == ["started", "doubt_begun"]  # once
    with pytest.raises(InDoubtError):
        make().execute(KEY, PARAMS, Handler("never"))
    assert replay.execute(KEY, PARAMS, Handler("again")).response == "again"


def test_doubt_on_is_the_callers_to_choose(make: Callable[..., Any], store: Any) -> None:
    class Refused(Exception):
        pass

    for doubt_on, error, doubts in (
        ((Refused,), Refused(), True),
        ((Refused,), TimeoutError(), False),
        ((Exception,), ValueError(), True),
        ((Exception,), NotAppliedError("nothing happened"), False),
        ((), TimeoutError(), False),
    ):
        key = ("s", f"{doubt_on} {error!r}")
        with pytest.raises(InDoubtError if doubts else type(error)):
            make(doubt_on=doubt_on).execute(key, PARAMS, Handler(error))
        assert (entry(store, key) is not None) == doubts


def test_a_rerun_that_raises_keeps_the_doubt_about_the_run_before(
    make: Callable[..., Any], store: Any, events: list[str]
) -> None:
    replay = make(on_in_doubt="rerun")
    abandon(replay)
    before = entry(store)
    for error in (ValueError("declined"), NotAppliedError("declined")):
        events.clear()
        with pytest.raises(type(error)):
            replay.execute(KEY, PARAMS, Handler(error))
        assert entry(store) == before
        assert events == ["taken_over", "started", "in_doubt"]
    with pytest.raises(InDoubtError):
        make().execute(KEY, PARAMS, Handler("never"))
    assert replay.execute(KEY, PARAMS, Handler("third")).response == "third"


@pytest.mark.parametrize("error", [IndeterminateError("timeout"), Interrupt(), SystemExit(3)])
def test_an_indeterminate_end_leaves_the_key_in_doubt_at_once(
    replay: Any, error: BaseException, events: list[str]
) -> None:
    with pytest.raises(type(error)):
        replay.execute(KEY, PARAMS, Handler(error))
    handler = Handler("never")
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, handler)
    with pytest.raises(InDoubtError):
        replay.lookup(KEY, PARAMS)
    with pytest.raises(ParamsMismatchError):
        replay.execute(KEY, OTHER, handler)
    assert handler.runs == 0
    assert events == ["started", "doubt_begun", "in_doubt", "in_doubt", "params_mismatch"]


def test_a_claim_never_expires_and_is_never_swept(replay: Any, clock: FakeClock) -> None:
    abandon(replay)
    clock.pass_seconds(100 * 86_400)
    assert replay.sweep().removed == 0
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, Handler("never"))


def test_rerun_runs_again_and_says_so(make: Callable[..., Any], events: list[str]) -> None:
    replay = make(on_in_doubt="rerun")
    abandon(replay)
    handler = Handler("again")
    assert replay.execute(KEY, PARAMS, handler).response == "again"
    assert handler.runs == 1
    assert events == ["started", "doubt_begun", "taken_over", "started", "completed"]


def test_reconcile_answers_from_the_ledger(make: Callable[..., Any]) -> None:
    asked = []

    def reconcile(record: Any) -> Any:
        asked.append((record.key, record.load_params()))
        return Applied({"from": "ledger"})

    replay = make(on_in_doubt=reconcile)
    abandon(replay)
    handler = Handler("never")
    outcome = replay.execute(KEY, PARAMS, handler)
    assert (outcome.response, outcome.replayed) == ({"from": "ledger"}, True)
    assert replay.execute(KEY, PARAMS, handler).response == {"from": "ledger"}
    assert handler.runs == 0
    assert asked == [(ReplayKey(*KEY), PARAMS)]


def test_reconcile_that_finds_nothing_runs(make: Callable[..., Any]) -> None:
    replay = make(on_in_doubt=lambda record: NOT_APPLIED)
    abandon(replay)
    assert replay.execute(KEY, PARAMS, Handler("now")).response == "now"


@pytest.mark.parametrize("retry_after", [None, 0, 2.5])
def test_a_reconciler_that_does_not_know_yet_leaves_the_key_in_doubt(
    make: Callable[..., Any], store: Any, retry_after: float | None
) -> None:
    verdicts = [Unknown(retry_after), Applied("found")]
    replay = make(on_in_doubt=lambda record: verdicts.pop(0))
    abandon(replay)
    before = entry(store)
    with pytest.raises(InDoubtError, match="does not know yet") as error:
        replay.execute(KEY, PARAMS, Handler("never"))
    assert error.value.retry_after == retry_after
    assert entry(store) == before
    assert replay.execute(KEY, PARAMS, Handler("never")).response == "found"


@pytest.mark.parametrize("retry_after", [-1, float("nan"), float("inf"), True, "1 sec"])
def test_a_reconciler_says_in_seconds_when_to_ask_again(retry_after: Any) -> None:
    with pytest.raises(ConfigError, match="retry_after"):
        Unknown(retry_after)


def test_reconcile_that_fails_leaves_the_key_in_doubt(make: Callable[..., Any], store: Any) -> None:
    verdicts: list[Any] = [OSError("ledger is down"), "no verdict", Applied(object())]

    def reconcile(record: Any) -> Any:
        verdict = verdicts.pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    replay = make(on_in_doubt=reconcile)
    abandon(replay)
    before = entry(store)
    for error in (OSError, ConfigError, InvalidResponseError):
        with pytest.raises(error):
            replay.execute(KEY, PARAMS, Handler("never"))
    assert entry(store) == before
    with pytest.raises(InDoubtError):
        make().execute(KEY, PARAMS, Handler("never"))


def test_an_operator_resolves_or_releases(replay: Any, events: list[str]) -> None:
    assert replay.resolve(KEY, response="x") is False
    abandon(replay)
    assert replay.resolve(KEY, response={"found": 1}) is True
    assert replay.resolve(KEY, response="other") is False
    assert replay.execute(KEY, PARAMS, Handler("never")).response == {"found": 1}
    abandon(replay, ("s", "2"))
    assert replay.release(("s", "2")) is True
    assert replay.release(("s", "2")) is False
    assert replay.execute(("s", "2"), OTHER, Handler("anew")).response == "anew"
    assert "resolved" in events
    assert "released_by_operator" in events
    assert "released" not in events


def test_an_operator_settles_the_run_that_was_looked_at_and_no_newer_one(
    make: Callable[..., Any],
) -> None:
    replay, rerun = make(), make(on_in_doubt="rerun")
    abandon(replay)
    (first,) = replay.records()
    abandon(rerun)
    (second,) = replay.records()
    assert first.claim.token != second.claim.token
    assert replay.release(KEY, seen=first) is False
    assert replay.resolve(KEY, response="x", seen=first) is False
    assert replay.records() == [second]
    assert replay.resolve(KEY, response="x", seen=second) is True
    assert replay.execute(KEY, PARAMS, Handler("never")).response == "x"
    (answered,) = replay.records()
    assert replay.release(KEY, seen=answered) is False
    abandon(replay, ("s", "2"))
    (other,) = [each for each in replay.records() if each.claim is not None]
    assert replay.release(("s", "2"), seen=other) is True


@pytest.mark.parametrize("seen", ["text", b"bytes", ReplayKey("a", "b")])
def test_what_was_looked_at_must_be_a_record(replay: Any, store: Any, seen: Any) -> None:
    with pytest.raises(IndeterminateError):
        replay.execute(KEY, PARAMS, Handler(IndeterminateError()))
    before = entry(store)
    for settle, options in ((replay.release, {}), (replay.resolve, {"response": 1})):
        with pytest.raises(InvalidParamsError, match="seen= is .*; nothing was changed"):
            settle(KEY, seen=seen, **options)
    assert entry(store) == before
    assert replay.release(KEY, seen=replay.records()[0]) is True


def test_what_a_living_owner_elsewhere_says_has_ended_is_in_doubt_at_once(
    make: Callable[..., Any], store: Any, clock: FakeClock
) -> None:
    """Its lease is not over, and nobody here can look its owner up."""
    replay = make(on_in_doubt="rerun")
    claim = Claim(b"t" * 16, clock.now + 30_000, "elsewhere:1:1:1:1:1:1")
    record = ReplayRecord(
        State.IN_PROGRESS, ReplayKey(*KEY), canonical(PARAMS), None, clock.now, None, claim
    )
    ended = attrs.evolve(record, claim=attrs.evolve(claim, ended_at=clock.now))
    store.write(NAMESPACE, *KEY, encode(record))
    with pytest.raises(InFlightError):
        replay.execute(KEY, PARAMS, Handler("never"), wait_timeout=0)
    with pytest.raises(InFlightError):
        replay.release(KEY)
    store.write(NAMESPACE, *KEY, encode(ended))
    with pytest.raises(InDoubtError):
        replay.lookup(KEY, PARAMS)
    assert replay.release(KEY, seen=record) is True
    store.write(NAMESPACE, *KEY, encode(ended))
    assert replay.execute(KEY, PARAMS, Handler("again")).response == "again"


def test_a_running_key_cannot_be_settled(replay: Any) -> None:
    handler = Handler("r", held=True)
    leader = Caller(replay.execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)
    for settle in (lambda: replay.release(KEY), lambda: replay.resolve(KEY, response=1)):
        with pytest.raises(InFlightError):
            settle()
    with pytest.raises(InFlightError) as error:
        replay.lookup(KEY, PARAMS)
    assert error.value.retry_after > 0
    handler.let_go()
    assert leader.result().response == "r"


@pytest.mark.parametrize("response", [object(), "x" * 2000])
def test_a_response_that_cannot_be_stored_leaves_the_key_in_doubt(
    make: Callable[..., Any], response: Any, events: list[str]
) -> None:
    replay = make(max_record_bytes=1000)
    with pytest.raises(ResponseNotStorableError, match="in doubt") as error:
        replay.execute(KEY, PARAMS, Handler(response))
    assert error.value.response is response
    assert events == ["started", "doubt_begun"]
    handler = Handler("never")
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, handler)
    assert handler.runs == 0
    with pytest.raises(InvalidResponseError):
        replay.resolve(KEY, response=error.value.response)
    assert replay.resolve(KEY, response="x" * 500) is True
    assert replay.execute(KEY, PARAMS, handler).response == "x" * 500
    assert replay.execute(("s", "2"), PARAMS, Handler("x" * 500)).response == "x" * 500


def test_an_answer_that_was_not_stored_can_be_resolved(face: Any, store: Any) -> None:
    class Refusing(OneByOne):
        refuses = True

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def check_and_put(self, *address: Any, **options: Any) -> Any:
            record = options["value"] and decode(options["value"])
            if self.refuses and record and record.state is State.COMPLETED:
                raise StoreFullError("no room")
            return store.check_and_put(*address, **options)

    refusing = Refusing()
    replay = face(refusing, NAMESPACE, ttl=60)
    with pytest.raises(InDoubtError) as error:
        replay.execute(KEY, PARAMS, Handler({"paid": [1]}))
    assert isinstance(error.value.__cause__, StoreFullError)
    assert "paid" not in told(error.value)
    refusing.refuses = False
    assert replay.resolve(KEY, response=error.value.response) is True
    assert replay.execute(KEY, PARAMS, Handler("never")).response == {"paid": [1]}
