"""Without a lease, and in a transaction: there is no claim."""

from __future__ import annotations

import attrs
import pytest

from kvreplay import (
    ClaimLostError,
    CorruptRecordError,
    InDoubtError,
    InFlightError,
    InvalidResponseError,
    ReplayKey,
)
from kvreplay._protocol.flow import execute_in_transaction
from kvreplay._protocol.record import decode, encode, encode_response
from kvreplay._protocol.steps import Settled, Transact
from support.flow_script import (
    KEY,
    NOW,
    OTHER,
    POLICY,
    REQUEST,
    Script,
    claimed,
    completed,
    executing,
    tombstone,
    transacting,
)


def test_without_a_lease_there_is_no_claim() -> None:
    script = executing(lease=None).reads(None)
    assert script.step.held is None
    script.calls("r")
    assert (script.step.expected, script.step.expires_at) == (None, NOW + 60_000)
    assert script.puts().result == Settled(encode_response("r", ""), replayed=False)


def test_a_record_was_created_when_its_run_began() -> None:
    outside = executing(lease=None).reads(None)
    inside = Script(transacting().reads(None).step.flow).reads(None)
    for script in (outside, inside):
        done = decode(script.calls("r", now=NOW + 7).step.value, KEY)
        assert (done.created_at, done.expires_at) == (NOW, NOW + 60_007)


def test_without_a_lease_the_loser_gets_the_winners_answer_and_runs_once() -> None:
    script = executing(lease=None).reads(None).calls("mine")
    assert script.puts(found=completed(response="theirs")).result == Settled(
        encode_response("theirs", ""), replayed=True
    )
    for stored in (completed(OTHER), completed(expires_at=NOW), claimed()):
        with pytest.raises(ClaimLostError, match="the handler ran"):
            executing(lease=None).reads(None).calls("mine").puts(found=stored)
    foreign = attrs.evolve(decode(completed()), key=ReplayKey("lsp", "other"))
    for record in (encode(foreign), b"damaged"):
        with pytest.raises(InDoubtError, match="the handler ran") as error:
            executing(lease=None).reads(None).calls("mine").puts(found=record)
        assert isinstance(error.value.__cause__, CorruptRecordError)
        assert error.value.response == "mine"
    script = executing(lease=None).reads(tombstone(NOW)).calls("mine")
    assert script.step.expected == tombstone(NOW)
    script.puts(found=None)
    assert script.step.expected is None
    assert not script.puts().result.replayed


def test_without_a_lease_an_exception_of_the_handler_leaves_no_trace() -> None:
    with pytest.raises(ValueError, match="declined"):
        executing(lease=None).reads(None).raises(ValueError("declined"))


def test_a_transaction_waits_for_a_claim_and_never_overtakes_it() -> None:
    script = transacting().reads(claimed()).probes(runs=True)
    assert script.waits() == 2
    with pytest.raises(InFlightError):
        script.reads(claimed()).probes(runs=True).has_no_time_to_wait()
    with pytest.raises(InDoubtError):
        transacting().reads(claimed()).probes(runs=False).reads(claimed())


def test_a_transaction_decides_again_inside() -> None:
    script = Script(execute_in_transaction(REQUEST, POLICY)).reads(None)
    assert isinstance(script.step, Transact)
    inner = Script(script.step.flow).reads(None).calls("r")
    assert (inner.step.expected, inner.step.expires_at) == (None, NOW + 60_000)
    assert inner.puts().result == Settled(encode_response("r", ""), replayed=False)
    inner = Script(transacting().reads(tombstone(NOW)).step.flow).reads(tombstone(NOW)).calls("r")
    assert inner.step.expected == tombstone(NOW)
    moved = Script(execute_in_transaction(REQUEST, POLICY)).reads(None)
    free = Script(moved.step.flow).reads(completed()).result
    assert moved.transacts(free).result.replayed


def test_a_transactions_response_that_cannot_be_stored_undoes_it() -> None:
    for response in (object(), "x" * 10_000):
        script = Script(execute_in_transaction(REQUEST, POLICY)).reads(None)
        with pytest.raises(InvalidResponseError, match="undone"):
            Script(script.step.flow).reads(None).calls(response)
