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
    ParamsMismatchError,
    ReplayKey,
    ReplayRecord,
    ResponseNotStorableError,
    State,
)
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import Claim, encode
from support.replaying import Caller, FakeClock, Handler, Interrupt
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, abandon, entry


def test_an_exception_frees_the_key(replay: Any, store: Any, events: list[str]) -> None:
    handler = Handler(ValueError("declined"), "second")
    with pytest.raises(ValueError, match="declined"):
        replay.execute(KEY, PARAMS, handler)
    assert entry(store) is None
    assert replay.execute(KEY, OTHER, handler).response == "second"
    assert events == ["started", "released", "started", "completed"]


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
    assert events == ["started", "in_doubt", "in_doubt", "params_mismatch"]


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
    assert events == ["started", "taken_over", "started", "completed"]


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


def test_reconcile_that_fails_leaves_the_key_in_doubt(make: Callable[..., Any]) -> None:
    verdicts: list[Any] = [OSError("ledger is down"), "no verdict", Applied(object())]

    def reconcile(record: Any) -> Any:
        verdict = verdicts.pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    replay = make(on_in_doubt=reconcile)
    abandon(replay)
    for error in (OSError, ConfigError, ResponseNotStorableError):
        with pytest.raises(error):
            replay.execute(KEY, PARAMS, Handler("never"))
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
    assert "released" in events


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
        replay.execute(KEY, PARAMS, Handler("never"))
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
    make: Callable[..., Any], response: Any
) -> None:
    replay = make(max_record_bytes=1000)
    with pytest.raises(ResponseNotStorableError, match="in doubt"):
        replay.execute(KEY, PARAMS, Handler(response))
    handler = Handler("never")
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, handler)
    assert handler.runs == 0
    assert replay.execute(("s", "2"), PARAMS, Handler("x" * 500)).response == "x" * 500
