"""An operator forgets an answer: exactly the one that was read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvreplay import InDoubtError, InFlightError, ReplayRecord
from kvreplay._protocol.flow import forget, is_in_doubt
from kvreplay._protocol.record import decode
from support.flow_script import (
    KEY,
    NOW,
    Script,
    claimed,
    completed,
    failed,
    tombstone,
)

OTHER_CLAIMS = [claimed(token=b"A" * 16), claimed(token=b"Z" * 16)]  # less in bytes, or greater


def forgetting(seen: ReplayRecord | None = None) -> Script:
    return Script(forget(KEY, seen))


@pytest.mark.parametrize(
    "found", [completed(), failed(), tombstone(), completed(expires_at=NOW - 1)]
)
def test_exactly_the_answer_that_was_read_is_forgotten(found: bytes) -> None:
    for seen in (None, decode(found)):
        script = forgetting(seen).reads(found)
        step = script.step
        assert (step.expected, step.value, step.event) == (found, None, "forgotten")
        assert script.puts().result is True


def test_what_another_has_stored_meanwhile_is_looked_at_again() -> None:
    first, second = completed(), completed(response="newer")
    script = forgetting(decode(first)).reads(first).puts(second)
    assert script.result is False
    script = forgetting().reads(first).puts(second)
    assert script.step.expected == second
    assert script.puts(None).result is False
    with pytest.raises(InFlightError):
        forgetting().reads(first).puts(claimed()).probes(True)


def test_nothing_is_forgotten_of_a_claim() -> None:
    assert forgetting().reads(None).result is False
    over = claimed(lease_expires_at=NOW)
    cases: list[tuple[bytes, Callable[[Script], object], type[Exception]]] = [
        (claimed(), lambda script: script.probes(True), InFlightError),
        (claimed(), lambda script: script.probes(None), InFlightError),
        (claimed(), lambda script: script.probes(False).reads(claimed()), InDoubtError),
        (over, lambda script: script.probes(None).reads(over), InDoubtError),
    ]
    for found, go_on, error in cases:
        for seen in (None, decode(found), decode(completed())):
            script = forgetting(seen).reads(found)
            with pytest.raises(error, match="nothing was changed"):
                go_on(script)
    with pytest.raises(InDoubtError):
        forgetting().reads(claimed(ended_at=NOW)).reads(claimed(ended_at=NOW))


def test_an_owner_that_was_gone_when_we_looked_may_have_answered() -> None:
    script = forgetting().reads(claimed()).probes(False).reads(completed())
    assert script.step.expected == completed()
    assert script.puts().result is True
    assert forgetting().reads(claimed()).probes(False).reads(None).result is False
    for other in OTHER_CLAIMS:
        with pytest.raises(InFlightError):
            forgetting().reads(claimed()).probes(False).reads(other).probes(True)


def test_a_claim_is_in_doubt_if_its_owner_is_gone_and_it_is_still_there() -> None:
    def doubting(found: bytes) -> Script:
        return Script(is_in_doubt(decode(found), NOW))

    over = claimed(lease_expires_at=NOW)
    assert doubting(claimed()).probes(True).result is False
    assert doubting(claimed()).probes(None).result is False
    assert doubting(claimed()).probes(False).reads(claimed()).result is True
    assert doubting(over).probes(None).reads(over).result is True
    renewed = claimed(lease_expires_at=NOW + 5)
    assert doubting(over).probes(None).reads(renewed).probes(None).result is False
    for meanwhile in (None, completed(), *OTHER_CLAIMS):
        assert doubting(claimed()).probes(False).reads(meanwhile).result is False
