"""What is told of a run: whose it is, and whether that process lives."""

from __future__ import annotations

from kvreplay import ReplayRecord
from kvreplay._inspection import Inspection
from kvreplay.cli.output import age

__all__ = ["run_in_words"]


def run_in_words(record: ReplayRecord, inspection: Inspection) -> str:
    """Say what is known of the run whose claim a record is."""
    claim = record.claim
    assert claim is not None  # the caller has looked
    owner = inspection.owner(claim)
    process = "its process" if owner.pid is None else f"process {owner.pid}"
    if owner.liveness == "ended":
        return f"the run of {process} ended without an answer"
    if owner.liveness in ("alive", "dead"):
        return f"{process} is {owner.liveness}"
    left = claim.lease_expires_at - inspection.now
    lease = f"its lease ends in {age(left)}" if left > 0 else f"its lease ended {age(-left)} ago"
    elsewhere = owner.here is False
    where = "is on another machine, or of another boot" if elsewhere else "cannot be looked up"
    return f"{process} {where}; {lease}"
