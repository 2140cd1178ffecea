"""A final failure is an answer: stored, and made again of what is stored."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from kvreplay import ClaimLostError, StoredFailureError, StoreFullError
from kvreplay._protocol.endings import is_final
from kvreplay._protocol.failures import built_again
from kvreplay._protocol.flow import execute, execute_in_transaction
from kvreplay._protocol.record import State, decode, encode_response
from kvreplay._protocol.steps import InDoubtPolicy, Settled, Transact
from support.final_failures import Declined, DeclinedByBank, Formats, KeywordOnly
from support.flow_script import (
    KEY,
    NOW,
    OTHERS,
    POLICY,
    REQUEST,
    Script,
    claimed,
    completed,
    failed,
)

FINAL = attrs.evolve(POLICY, store_errors=(Declined, KeywordOnly, Formats, OSError))
LISTED = FINAL.store_errors


def failing(**policy: Any) -> Script:
    return Script(execute(REQUEST, attrs.evolve(FINAL, **policy)))


def test_a_final_failure_takes_the_place_of_the_claim() -> None:
    script = failing().reads(None).begins().puts()
    claim = script.stored
    script.raises(error := Declined("funds", 51))
    step = script.step
    assert (step.expected, step.event) == (claim, "failed")
    assert step.expires_at == NOW + 60_000
    stored = decode(step.value, KEY)
    assert (stored.state, stored.claim) == (State.FAILED, None)
    assert stored.load_failure() == ("support.final_failures.Declined", ["funds", 51])
    with pytest.raises(Declined) as told:
        script.puts()
    assert told.value is error


@pytest.mark.parametrize("found", [None, *OTHERS, claimed(), completed()])
def test_a_failure_that_comes_too_late_changes_nothing(found: bytes | None) -> None:
    script = failing().reads(None).begins().puts().raises(Declined())
    with pytest.raises(ClaimLostError) as told:
        script.puts(found).reads(found)
    assert told.value.__notes__ == ["the handler had raised a Declined, a final failure"]


def test_a_failure_without_a_claim_is_the_first_answer_or_gives_way_to_it() -> None:
    script = failing(lease=None).reads(None).raises(Declined("mine"))
    assert (script.step.expected, script.step.event) == (None, "failed")
    with pytest.raises(Declined):
        script.puts()
    script = failing(lease=None).reads(None).raises(Declined("mine"))
    assert script.puts(completed()).result == Settled(encode_response("r", ""), replayed=True)


@pytest.mark.parametrize("policy", [InDoubtPolicy.RERUN, InDoubtPolicy.RAISE])
def test_a_transaction_stores_its_failure_when_its_writes_are_undone(
    policy: InDoubtPolicy,
) -> None:
    rerun = policy is InDoubtPolicy.RERUN
    before = claimed() if rerun else None
    outer = Script(execute_in_transaction(REQUEST, attrs.evolve(FINAL, on_in_doubt=policy)))
    outer.reads(before)
    if rerun:
        outer.probes(False)
    assert isinstance(outer.step, Transact)
    inner = Script(outer.step.flow).reads(before)
    error = Declined("funds")
    with pytest.raises(Declined):
        inner.raises(error)
    if rerun:  # its failure says nothing about the run before
        with pytest.raises(Declined):
            outer.fails(error)
        return
    outer.fails(error)
    assert (outer.step.expected, outer.step.event) == (None, "failed")
    assert decode(outer.step.value).state is State.FAILED
    with pytest.raises(Declined):
        outer.puts()


def test_a_transaction_that_lost_the_race_with_its_failure_begins_again() -> None:
    outer = Script(execute_in_transaction(REQUEST, FINAL)).reads(None)
    inner = Script(outer.step.flow).reads(None)
    with pytest.raises(Declined):
        inner.raises(Declined())
    outer.fails(Declined()).puts(completed())
    assert outer.result == Settled(encode_response("r", ""), replayed=True)


def test_what_the_store_raises_is_no_failure_of_the_handlers() -> None:
    outer = Script(execute_in_transaction(REQUEST, FINAL)).reads(None)
    with pytest.raises(Declined):  # though of a listed class
        outer.fails(Declined("of the store"))


@pytest.mark.parametrize(
    ("error", "doubt_on", "expected"),
    [
        (Declined(), POLICY.doubt_on, True),
        (DeclinedByBank(), POLICY.doubt_on, True),
        (ValueError(), POLICY.doubt_on, False),
        (Declined(), (Exception,), True),
        (Declined(), (Declined,), False),
        (DeclinedByBank(), (DeclinedByBank,), False),
        (FileNotFoundError(), POLICY.doubt_on, True),
        (TimeoutError(), POLICY.doubt_on, False),
        (ConnectionResetError(), POLICY.doubt_on, False),
        (ConnectionRefusedError(), POLICY.doubt_on, True),
        (TimeoutError(), (), True),
        (TimeoutError(), (Exception,), True),
        (ExceptionGroup("", [Declined()]), POLICY.doubt_on, False),
        (StoreFullError(), POLICY.doubt_on, False),
        (None, POLICY.doubt_on, False),
    ],
)
def test_the_nearer_name_decides(error: Exception | None, doubt_on: Any, expected: bool) -> None:
    assert is_final(error, attrs.evolve(FINAL, doubt_on=doubt_on)) is expected


def test_a_listed_class_is_built_again_if_it_comes_out_equal() -> None:
    for error in (Declined("funds", [1, {"a": None}]), OSError(5, "no disk"), Declined()):
        again = built_again(decode(failed(error)), LISTED)
        assert (type(again), again.args) == (type(error), error.args)
    for other in (DeclinedByBank(1), KeywordOnly(1, reason="x"), Formats(1), OSError(2, "none")):
        stored = built_again(decode(failed(other)), LISTED)
        assert isinstance(stored, StoredFailureError)
        assert stored.arguments == other.args
    again = built_again(decode(failed(Declined((1, 2)))), LISTED)
    assert again.args == ([1, 2],)  # as everywhere in msgpack
