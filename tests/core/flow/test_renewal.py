"""Renewal: the lease of a claim moves."""

from __future__ import annotations

import pytest

from kvreplay import OutcomeUnknownError, StoreUnavailableError
from kvreplay._protocol.flow import renew
from kvreplay._protocol.record import Claim, decode
from kvreplay._protocol.steps import HeldClaim
from support.flow_script import KEY, NOW, OTHERS, Script, claimed


def held() -> HeldClaim:
    return HeldClaim(decode(claimed(), KEY))


def test_renewal_moves_the_lease_of_the_claim_that_is_held() -> None:
    claim = held()
    script = Script(renew(claim, 30_000)).reads(claim.data)
    moved = script.step.value
    assert decode(moved, KEY).claim == Claim(b"C" * 16, NOW + 30_000, "owner")
    assert script.puts().result is True
    assert claim.data == moved


def test_renewal_stops_at_the_first_refusal() -> None:
    claim = held()
    before = claim.data
    for found in (None, *OTHERS):
        assert Script(renew(claim, 30_000)).reads(found).result is False
        script = Script(renew(claim, 30_000)).reads(before)
        assert script.puts(found=found).result is False
        assert claim.data == before


def test_a_renewal_goes_on_with_a_lease_whose_renewal_seemed_to_have_failed() -> None:
    """Its outcome was lost, and so was the look at what had become of it."""
    claim = held()
    script = Script(renew(claim, 30_000)).reads(claim.data)
    moved = script.step.value
    script.fails(OutcomeUnknownError("?"))
    with pytest.raises(StoreUnavailableError):
        script.fails(StoreUnavailableError("?"))
    assert claim.data != moved
    again = Script(renew(claim, 60_000)).reads(moved)
    assert again.step.expected == moved
    assert again.puts().result is True
    assert decode(claim.data, KEY).claim == Claim(b"C" * 16, NOW + 60_000, "owner")


def test_a_renewal_that_is_too_late_for_its_own_claim_is_tried_again() -> None:
    """A put whose outcome was lost takes place between this renewal's read and its put."""
    claim = held()
    script = Script(renew(claim, 30_000)).reads(claim.data)
    late = script.step.value
    script = Script(renew(claim, 60_000)).reads(claim.data)
    assert script.puts(found=late).result is True
    assert claim.data == late


@pytest.mark.parametrize("happened", [True, False])
def test_a_renewal_of_unknown_outcome_reads_what_happened(happened: bool) -> None:
    claim = held()
    before = claim.data
    script = Script(renew(claim, 30_000)).reads(before)
    moved = script.step.value
    script.fails(OutcomeUnknownError("?")).reads(moved if happened else before)
    assert script.result is True
    assert claim.data == (moved if happened else before)


@pytest.mark.parametrize("found", [None, *OTHERS])
def test_a_renewal_of_unknown_outcome_may_find_that_the_claim_is_lost(found: bytes | None) -> None:
    claim = held()
    before = claim.data
    script = Script(renew(claim, 30_000)).reads(before).fails(OutcomeUnknownError("?"))
    assert script.reads(found).result is False
    assert claim.data == before
