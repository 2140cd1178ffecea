"""What has expired is told, or is run anew."""

from __future__ import annotations

import pytest

from kvreplay import ExpiredError
from kvreplay._protocol.flow import Decision, decide
from kvreplay._protocol.record import decode, encode_response
from kvreplay._protocol.steps import BEGIN, ExpiredPolicy, Settled
from support.flow_script import (
    NOW,
    OTHER,
    PARAMS,
    claimed,
    completed,
    executing,
    failed,
    tombstone,
)


@pytest.mark.parametrize(
    ("found", "stale", "rerun"),
    [
        (None, Decision.FREE, Decision.FREE),
        (completed(), Decision.REPLAY, Decision.REPLAY),
        (failed(), Decision.REPLAY, Decision.REPLAY),
        (completed(expires_at=NOW), Decision.EXPIRED, Decision.FREE),
        (failed(expires_at=NOW), Decision.EXPIRED, Decision.FREE),
        (completed(OTHER, expires_at=NOW), Decision.EXPIRED, Decision.FREE),
        (completed(OTHER), Decision.MISMATCH, Decision.MISMATCH),
        (tombstone(), Decision.EXPIRED, Decision.FREE),
        (tombstone(expires_at=NOW), Decision.FREE, Decision.FREE),
        (claimed(), Decision.CLAIMED, Decision.CLAIMED),
    ],
)
def test_the_policy_decides_only_about_what_has_expired(
    found: bytes | None, stale: Decision, rerun: Decision
) -> None:
    read = None if found is None else decode(found)
    assert decide(read, PARAMS, NOW) is stale
    assert decide(read, PARAMS, NOW, None, ExpiredPolicy.RERUN) is rerun


def test_a_claim_takes_the_place_of_exactly_the_expired_answer() -> None:
    old = completed(expires_at=NOW)
    script = executing(on_expired=ExpiredPolicy.RERUN).reads(old)
    assert script.step is BEGIN
    script.begins()
    assert script.step.expected == old
    script.puts(completed(response="another's"))
    assert script.result == Settled(encode_response("another's", ""), replayed=True)
    script = executing().reads(old)
    with pytest.raises(ExpiredError):
        script.puts()
