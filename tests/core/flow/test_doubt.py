"""Waiting for another owner, keys in doubt, and who decides about them."""

from __future__ import annotations

import pytest

from kvreplay import (
    NOT_APPLIED,
    Applied,
    ConfigError,
    CorruptRecordError,
    InDoubtError,
    InFlightError,
)
from kvreplay._protocol.flow import execute, lookup
from kvreplay._protocol.record import decode, encode_response
from kvreplay._protocol.steps import Call, InDoubtPolicy, Settled
from support.flow_script import (
    KEY,
    NOW,
    OTHERS,
    POLICY,
    REQUEST,
    Script,
    claimed,
    completed,
    executing,
)


def test_waiting_for_another_owner_has_a_limit_and_looks_again() -> None:
    for rounds in range(3):
        script = executing().reads(claimed()).probes(runs=True)
        for _ in range(rounds):
            script.waits()
            script.reads(claimed()).probes(runs=True)
        with pytest.raises(InFlightError) as error:
            script.has_no_time_to_wait()
        assert 0 < error.value.retry_after <= 1


def test_waiting_looks_again_at_least_ten_times_a_second() -> None:
    script = executing().reads(claimed())
    delays = []
    for _ in range(8):
        delays.append(script.probes(runs=True).waits())
        script.reads(claimed())
    assert delays == [2, 4, 8, 16, 32, 64, 100, 100]


def test_waiting_ends_with_the_other_owners_answer() -> None:
    script = executing().reads(claimed()).probes(runs=True)
    script.waits()
    assert script.reads(completed()).result.replayed


@pytest.mark.parametrize(
    ("runs", "lease_expires_at", "error"),
    [
        (True, NOW + 1, InFlightError),
        (True, NOW - 1, InFlightError),  # an owner that lives is never in doubt
        (False, NOW + 1, InDoubtError),  # one that is gone is so at once
        (None, NOW + 1, InFlightError),
        (None, NOW, InDoubtError),
    ],
)
def test_when_a_claim_is_in_doubt(
    runs: bool | None, lease_expires_at: int, error: type[Exception]
) -> None:
    stored = claimed(lease_expires_at=lease_expires_at)
    for flow in (execute(REQUEST, POLICY), lookup(REQUEST, POLICY)):
        with pytest.raises(error):
            script = Script(flow).reads(stored).probes(runs)
            if error is InFlightError:
                script.has_no_time_to_wait()
            script.reads(stored)


def test_a_claim_whose_run_has_ended_is_in_doubt_at_once_whoever_owns_it() -> None:
    """Nobody is asked for its owner, and its lease is not over."""
    stored = claimed(ended_at=NOW - 1)
    for flow in (execute(REQUEST, POLICY), lookup(REQUEST, POLICY)):
        with pytest.raises(InDoubtError):
            Script(flow).reads(stored).reads(stored)
    rerun = executing(on_in_doubt=InDoubtPolicy.RERUN).reads(stored).begins()
    assert isinstance(rerun.puts().step, Call)
    asked = executing(on_in_doubt=InDoubtPolicy.RECONCILE).reads(stored).reads(stored)
    assert asked.reconciles(Applied("found out")).puts().result.replayed


@pytest.mark.parametrize("policy", [InDoubtPolicy.RAISE, InDoubtPolicy.RECONCILE])
def test_what_its_owner_ended_before_we_looked_for_it_is_not_in_doubt(
    policy: InDoubtPolicy,
) -> None:
    script = executing(on_in_doubt=policy).reads(claimed()).probes(runs=False)
    assert script.reads(completed()).result.replayed
    for found in OTHERS:
        with pytest.raises(CorruptRecordError):
            executing(on_in_doubt=policy).reads(claimed()).probes(runs=False).reads(found)
    script = Script(lookup(REQUEST, POLICY)).reads(claimed(lease_expires_at=NOW)).probes(runs=None)
    assert script.reads(None).result is None


def test_rerun_takes_the_claim_over_before_it_runs() -> None:
    stored = claimed()
    script = executing(on_in_doubt=InDoubtPolicy.RERUN).reads(stored).probes(runs=False).begins()
    assert script.step.expected == stored
    assert script.step.event == "taken_over"
    script.puts()
    assert isinstance(script.step, Call)


def test_a_lost_take_over_does_not_run() -> None:
    def taking_over() -> Script:
        script = executing(on_in_doubt=InDoubtPolicy.RERUN).reads(claimed()).probes(runs=False)
        return script.begins()

    assert taking_over().puts(found=completed()).result.replayed
    for found in OTHERS:
        with pytest.raises(CorruptRecordError):
            taking_over().puts(found=found)


def reconciling() -> Script:
    script = executing(on_in_doubt=InDoubtPolicy.RECONCILE).reads(claimed()).probes(runs=False)
    return script.reads(claimed())


def test_reconcile_records_what_the_ledger_says() -> None:
    script = reconciling()
    assert script.step.record.load_params() == {"amount": 1}
    script.reconciles(Applied("from the ledger"))
    assert script.step.expected == claimed()
    assert decode(script.step.value, KEY).load_response() == "from the ledger"
    assert script.puts().result == Settled(encode_response("from the ledger", ""), replayed=True)


def test_reconcile_that_finds_nothing_runs_after_a_take_over() -> None:
    script = reconciling().reconciles(NOT_APPLIED).begins()
    assert script.step.expected == claimed()
    assert script.step.event == "taken_over"
    script.puts()
    assert isinstance(script.step, Call)


def test_an_answer_of_the_ledger_is_void_if_the_claim_has_moved() -> None:
    script = reconciling().reconciles(Applied("old"))
    assert script.puts(found=completed(response="new")).result == Settled(
        encode_response("new", ""), replayed=True
    )
    for found in OTHERS:
        with pytest.raises(CorruptRecordError):
            reconciling().reconciles(Applied("old")).puts(found=found)


@pytest.mark.parametrize("verdict", [None, "yes", Applied])
def test_a_reconciler_must_give_a_verdict(verdict: object) -> None:
    with pytest.raises(ConfigError, match=rf"a {type(verdict).__name__}; .* Applied\(response\)"):
        reconciling().reconciles(verdict)
