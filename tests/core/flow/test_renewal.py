"""Renewal: the lease of a claim moves."""

from __future__ import annotations

import pytest

from kvreplay import OutcomeUnknownError
from kvreplay._protocol.flow import renew
from kvreplay._protocol.record import Claim, decode
from kvreplay._protocol.steps import HeldClaim
from support.flow_script import KEY, NOW, OTHERS, Script, claimed


def held() -> HeldClaim:
    return HeldClaim(decode(claimed(), KEY))


def test_renewal_moves_the_lease_of_the_claim_that_is_held() -> None:
    claim = held()
    script = Script(renew(claim, KEY, 30_000)).reads(claim.data)
    moved = script.step.value
    assert decode(moved, KEY).claim == Claim(b"C" * 16, NOW + 30_000, "owner")
    assert script.puts().result is True
    assert claim.data == moved


def test_renewal_stops_at_the_first_refusal() -> None:
    claim = held()
    before = claim.data
    for found in (None, *OTHERS):
        assert Script(renew(claim, KEY, 30_000)).reads(found).result is False
        script = Script(renew(claim, KEY, 30_000)).reads(before)
        assert script.puts(found=found).result is False
        assert claim.data == before


@pytest.mark.parametrize("happened", [True, False])
def test_a_renewal_of_unknown_outcome_reads_what_happened(happened: bool) -> None:
    claim = held()
    before = claim.data
    script = Script(renew(claim, KEY, 30_000)).reads(before)
    moved = script.step.value
    script.fails(OutcomeUnknownError("?")).reads(moved if happened else before)
    assert script.result is True
    assert claim.data == (moved if happened else before)


@pytest.mark.parametrize("found", [None, *OTHERS])
def test_a_renewal_of_unknown_outcome_may_find_that_the_claim_is_lost(found: bytes | None) -> None:
    claim = held()
    before = claim.data
    script = Script(renew(claim, KEY, 30_000)).reads(before).fails(OutcomeUnknownError("?"))
    assert script.reads(found).result is False
    assert claim.data == before
