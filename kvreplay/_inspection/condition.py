"""In which condition a key is, and what is known about the owner of its run."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import attrs

from kvreplay._inspection.entries import Seen
from kvreplay._protocol.record import Claim, ReplayRecord, State
from kvreplay._runtime.liveness import Liveness, boot_id, look_up
from kvreplay.clock import SystemClock
from kvreplay.errors import UnsupportedRecordVersionError
from kvreplay.replay import Replay

__all__ = ["Condition", "Inspection", "Owner"]


class Condition(StrEnum):
    """What a request for the key would meet."""

    ANSWERED = "answered"
    FAILED = "failed"  # a final failure is stored
    EXPIRED = "expired"  # an answer or a failure
    TOMBSTONE = "tombstone"
    RUNNING = "running"  # or it may be, elsewhere, until its lease is over
    IN_DOUBT = "in-doubt"
    NEWER = "newer"  # a later kvreplay has written it
    CORRUPT = "corrupt"


_OF_STATE = {
    State.COMPLETED: Condition.ANSWERED,
    State.FAILED: Condition.FAILED,
    State.TOMBSTONE: Condition.TOMBSTONE,
}


@attrs.frozen
class Owner:
    """Whose run a claim is, for people.

    Attributes:
        liveness: ``"ended"``: the run has said that it ended. ``"alive"``, ``"dead"``: its process
            was looked up. ``"unknown"``: it cannot be, so its lease decides.
        pid: as its own PID namespace numbers it; ``None``: it is not told.
        here: whether it is of this boot of this machine; ``None``: the claim does not tell.
    """

    liveness: str
    pid: int | None
    here: bool | None


class Inspection:
    """An open store and the moment at which it is looked at.

    It makes one ``Replay`` for each namespace, since only that knows which keys are in doubt.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        clock = getattr(store, "clock", None) or SystemClock()
        self.now: int = clock.now_ms()
        self._replays: dict[str, Replay] = {}

    def replay(self, namespace: str) -> Replay:
        """Return what releases, forgets and sweeps in a namespace; it stores no answer."""
        if namespace not in self._replays:
            self._replays[namespace] = Replay(self.store, namespace, ttl=0, wait_timeout=0)
        return self._replays[namespace]

    def resolve(
        self, namespace: str, record: ReplayRecord, response: object, ttl: float, tombstone: float
    ) -> bool:
        """Settle the run of a record with an answer; see :meth:`kvreplay.Replay.resolve`.

        Args:
            tombstone: how long the expired answer goes on being refused, in seconds.
        """
        replay = Replay(self.store, namespace, ttl=ttl, tombstone_ttl=tombstone, wait_timeout=0)
        return replay.resolve(record.key, response=response, seen=record)

    def condition(self, seen: Seen) -> Condition:
        """Say in which condition the key is."""
        found = seen.found
        if not isinstance(found, ReplayRecord):
            newer = isinstance(found, UnsupportedRecordVersionError)
            return Condition.NEWER if newer else Condition.CORRUPT
        if found.claim is not None:
            in_doubt = self.replay(seen.address[0]).is_in_doubt(found)
            return Condition.IN_DOUBT if in_doubt else Condition.RUNNING
        if found.state is not State.TOMBSTONE and (found.expires_at or 0) <= self.now:
            return Condition.EXPIRED
        return _OF_STATE[found.state]

    def owner(self, claim: Claim) -> Owner:
        """Return whose run a claim is."""
        path = getattr(self.store, "owners_file", None)
        known = look_up(claim, path)
        if claim.ended_at is not None:
            liveness = "ended"
        else:
            liveness = {Liveness.RUNNING: "alive", Liveness.GONE: "dead"}.get(known, "unknown")
        return Owner(liveness, *_run_of(claim.owner))


def _run_of(owner: str) -> tuple[int | None, bool | None]:
    """Return the pid in a claim's owner, and whether it is one of this boot of this machine."""
    parts = owner.split(":")
    try:
        pid: int | None = int(parts[5])
    except (IndexError, ValueError):
        pid = None
    try:
        return pid, parts[0] == boot_id() if parts[0] else None
    except OSError:  # the kernel does not show its boot
        return pid, None
