"""Looking a key up, and settling one that is in doubt."""

from __future__ import annotations

import attrs
import pytest

from kvreplay import CorruptRecordError, InDoubtError, InFlightError, ReplayKey
from kvreplay._protocol.flow import lookup, settle
from kvreplay._protocol.record import decode, encode, encode_response
from kvreplay._protocol.steps import InDoubtPolicy
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
    settling,
    tombstone,
)


def test_lookup_never_runs() -> None:
    assert Script(lookup(REQUEST, POLICY)).reads(None).result is None
    assert Script(lookup(REQUEST, POLICY)).reads(completed()).result.replayed
    rerun = attrs.evolve(POLICY, on_in_doubt=InDoubtPolicy.RERUN)
    with pytest.raises(InDoubtError):
        Script(lookup(REQUEST, rerun)).reads(claimed()).probes(runs=False).reads(claimed())
    with pytest.raises(InFlightError):
        Script(lookup(REQUEST, rerun)).reads(claimed()).probes(runs=True)


def test_settle_completes_or_frees_a_key_in_doubt() -> None:
    response = encode_response("found out", "")
    script = Script(settle(KEY, response, 60_000, POLICY)).reads(claimed()).probes(runs=False)
    assert decode(script.step.value, KEY).response == response
    assert script.puts().result is True
    script = Script(settle(KEY, None, 0, POLICY)).reads(claimed()).probes(runs=False)
    assert script.step.value is None
    assert script.puts().result is True


def test_anybody_settles_a_claim_whose_run_has_ended() -> None:
    assert settling().reads(claimed(ended_at=NOW - 1)).puts().result is True


@pytest.mark.parametrize("stored", [None, completed(), tombstone()])
def test_settle_leaves_a_key_alone_that_is_not_claimed(stored: bytes | None) -> None:
    assert Script(settle(KEY, None, 0, POLICY)).reads(stored).result is False


def test_settle_refuses_a_running_key_and_follows_a_moving_one() -> None:
    with pytest.raises(InFlightError):
        Script(settle(KEY, None, 0, POLICY)).reads(claimed()).probes(runs=True)
    script = Script(settle(KEY, None, 0, POLICY)).reads(claimed()).probes(runs=False)
    assert script.puts(found=completed()).result is False
    for found in OTHERS:
        with pytest.raises(CorruptRecordError):
            settling().reads(claimed()).probes(runs=False).puts(found=found)


@pytest.mark.parametrize("response", [None, encode_response("found out", "")])
def test_settle_settles_the_claim_that_was_looked_at_and_no_other(response: bytes | None) -> None:
    seen, renewed = decode(claimed()), claimed(lease_expires_at=NOW + 90_000)
    assert settling(response, seen).reads(renewed).probes(runs=False).puts().result is True
    with pytest.raises(InFlightError):
        settling(response, seen).reads(renewed).probes(runs=True)
    for other in (claimed(token=b"O" * 16), claimed(token=b"O" * 16, ended_at=NOW)):
        assert settling(response, seen).reads(other).result is False
        script = settling(response, seen).reads(claimed()).probes(runs=False)
        assert script.puts(found=other).result is False
    for unclaimed in (completed(), tombstone()):
        assert settling(response, decode(unclaimed)).reads(claimed()).result is False


@pytest.mark.parametrize(
    ("left", "seconds"), [(5000, 1.0), (250, 0.25), (1, 0.001), (0, 1.0), (-1, 1.0)]
)
def test_a_key_in_flight_says_when_to_try_again(left: int, seconds: float) -> None:
    for script in (executing(), Script(lookup(REQUEST, POLICY)), settling()):
        with pytest.raises(InFlightError) as error:
            script.reads(claimed(lease_expires_at=NOW + left)).probes(runs=True)
            script.has_no_time_to_wait()
        assert error.value.retry_after == seconds


def test_settle_believes_the_lease_where_the_owner_cannot_be_looked_up() -> None:
    with pytest.raises(InFlightError):
        settling().reads(claimed(lease_expires_at=NOW + 1)).probes(runs=None)
    script = settling().reads(claimed(lease_expires_at=NOW)).probes(runs=None)
    assert script.puts().result is True


def test_settle_leaves_a_record_of_another_key_alone() -> None:
    foreign = attrs.evolve(decode(claimed()), key=ReplayKey("lsp", "other"))
    with pytest.raises(CorruptRecordError):
        settling().reads(encode(foreign))
