"""A run in a transaction that the caller has begun, step by step."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from kvreplay import ClaimLostError, InDoubtError, InFlightError, InvalidResponseError, NotStored
from kvreplay._protocol.flow import execute_joined
from kvreplay._protocol.record import State, decode, encode_response
from kvreplay._protocol.steps import (
    NOT_APPLIED,
    UNDO,
    Applied,
    Call,
    ExpiredPolicy,
    InDoubtPolicy,
    Raised,
    Settled,
)
from support.final_failures import Declined
from support.flow_script import (
    KEY,
    NOW,
    OTHERS,
    PARAMS,
    POLICY,
    REQUEST,
    Script,
    claimed,
    completed,
    failed,
    tombstone,
)


def joining(**policy: Any) -> Script:
    return Script(execute_joined(REQUEST, attrs.evolve(POLICY, **policy)))


def undoes(script: Script) -> Script:
    assert script.step is UNDO
    return script._send(None)


@pytest.mark.parametrize("lease", [30_000, None])
def test_a_placeholder_then_the_handler_then_the_answer(lease: int | None) -> None:
    script = joining(lease=lease).reads(None).begins()
    assert script.step.expected is None
    placeholder = decode(script.step.value, KEY)
    assert (placeholder.state, placeholder.params) == (State.IN_PROGRESS, PARAMS)
    assert placeholder.claim is not None
    assert placeholder.claim.lease_expires_at == NOW + (lease or 0)
    script.puts()
    assert isinstance(script.step, Call)
    assert script.step.held is None, "nobody can renew what is not committed"
    script.calls("r", now=NOW + 7)
    assert script.step.expected == script.stored
    assert script.step.expires_at == NOW + 7 + 60_000
    stored = decode(script.step.value, KEY)
    assert (stored.state, stored.load_response(), stored.claim) == (State.COMPLETED, "r", None)
    assert script.puts().result == Settled(encode_response("r", ""), replayed=False)
    assert (script.result.created_at, script.result.expires_at) == (NOW, NOW + 7 + 60_000)


def test_it_reads_even_if_the_key_was_seen_to_be_absent() -> None:
    """That was on another connection, before."""
    script = Script(execute_joined(attrs.evolve(REQUEST, absent_at=NOW), POLICY))
    assert script.reads(completed()).result.replayed


def test_what_another_has_put_meanwhile_is_decided_anew() -> None:
    script = joining().reads(None).begins().puts(completed())
    assert script.result == Settled(encode_response("r", ""), replayed=True)
    script = joining().reads(completed()).result  # its positive twin: at once
    assert script.replayed


def test_a_claim_is_waited_for_like_any_other() -> None:
    script = joining().reads(None).begins().puts(claimed())
    script.probes(True)
    assert script.waits() > 0
    assert script.reads(completed()).result.replayed
    with pytest.raises(InFlightError):
        joining().reads(claimed()).probes(True).has_no_time_to_wait()


def test_an_exception_propagates_and_nothing_else_is_done() -> None:
    script = joining().reads(None).begins().puts()
    with pytest.raises(TimeoutError) as told:
        script.raises(error := TimeoutError())
    assert told.value is error, "all is undone, so nothing is in doubt"


@pytest.mark.parametrize("found", [None, *OTHERS])
def test_a_handler_that_has_ended_the_transaction_is_told_so(found: bytes | None) -> None:
    for response in ("r", NotStored("r")):
        script = joining().reads(None).begins().puts().calls(response)
        with pytest.raises(ClaimLostError, match="ended the transaction"):
            script.puts(found)


def test_what_cannot_be_stored_undoes_all() -> None:
    for response in (object(), NotStored(object()), "r" * 20_000):
        with pytest.raises(InvalidResponseError, match="nothing happened"):
            joining().reads(None).begins().puts().calls(response)


# A final failure.


def test_a_final_failure_is_put_when_the_writes_are_undone() -> None:
    script = joining(store_errors=(Declined,)).reads(None).begins().puts()
    undoes(script.raises(error := Declined("funds")))
    assert script.step.expected is None, "the placeholder was undone too"
    assert decode(script.step.value, KEY).state is State.FAILED
    script.puts()
    assert isinstance(script.result, Raised)
    assert script.result.take() is error


def test_a_final_failure_gives_way_to_who_was_faster() -> None:
    script = joining(store_errors=(Declined,)).reads(None).begins().puts()
    script = undoes(script.raises(Declined())).puts(completed())
    assert script.result == Settled(encode_response("r", ""), replayed=True)


def test_a_final_failure_under_rerun_says_nothing_about_the_run_before() -> None:
    script = joining(store_errors=(Declined,), on_in_doubt=InDoubtPolicy.RERUN)
    script.reads(claimed()).probes(False).begins().puts()
    with pytest.raises(Declined):
        script.raises(Declined())


def test_a_stored_failure_is_replayed() -> None:
    assert joining(store_errors=(Declined,)).reads(failed()).result.failure is not None


# What was there before.


def test_an_answer_that_is_not_kept_takes_the_placeholder_away() -> None:
    script = joining().reads(None).begins().puts().calls(NotStored("r"))
    assert (script.step.expected, script.step.value) == (script.stored, None)
    assert script.puts().result.expires_at is None


def test_it_puts_a_doubt_back_that_it_was_to_run_again() -> None:
    script = joining(on_in_doubt=InDoubtPolicy.RERUN).reads(claimed()).probes(False)
    script.begins().puts().calls(NotStored("r"))
    assert script.step.value == claimed()


def test_it_drops_what_was_expired_or_not_applied() -> None:
    script = joining(on_expired=ExpiredPolicy.RERUN).reads(completed(expires_at=NOW))
    assert script.begins().puts().calls(NotStored("r")).step.value is None
    script = joining(on_in_doubt=InDoubtPolicy.RECONCILE).reads(claimed()).probes(False)
    script.reads(claimed()).reconciles(NOT_APPLIED)
    assert script.step is not None
    assert script.begins().puts().calls(NotStored("r")).step.value is None


@pytest.mark.parametrize("before", [tombstone(NOW), completed(expires_at=NOW)])
def test_the_answer_takes_the_place_of_what_was_expired(before: bytes) -> None:
    script = joining(on_expired=ExpiredPolicy.RERUN).reads(before).begins()
    assert script.step.expected == before
    assert script.puts().calls("r").puts().result.replayed is False


def test_a_key_in_doubt_is_as_in_every_other_run() -> None:
    with pytest.raises(InDoubtError):
        joining().reads(claimed()).probes(False).reads(claimed())
    script = joining(on_in_doubt=InDoubtPolicy.RECONCILE).reads(claimed()).probes(False)
    script.reads(claimed()).reconciles(Applied("found")).puts()
    assert script.result == Settled(encode_response("found", ""), replayed=True)
