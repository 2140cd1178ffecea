"""The observer of a replay namespace: it is given the events, and cannot fail a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from kvreplay._protocol.keys import ReplayKey
from kvreplay._protocol.steps import Settled
from kvreplay.clock import Clock
from kvreplay.errors import (
    ClaimLostError,
    CorruptRecordError,
    ExpiredError,
    InDoubtError,
    ParamsMismatchError,
    ResponseNotStorableError,
)
from kvreplay.events import EventKind, ReplayEvent, logger
from kvreplay.store import SweepResult

__all__ = ["Observer", "event_of"]

# The event of each error that is a decision about the key.
_EVENT_OF: Final[Mapping[type[BaseException], EventKind]] = {
    ParamsMismatchError: "params_mismatch",
    ExpiredError: "expired",
    InDoubtError: "in_doubt",
    ResponseNotStorableError: "in_doubt",
    ClaimLostError: "claim_lost",
    CorruptRecordError: "corrupt_record",
}


def event_of(error: BaseException) -> EventKind | None:
    """Return the event of an error that is a decision about its key."""
    return _EVENT_OF.get(type(error))


class Observer:
    """Gives events to the caller's ``on_event``, if there is one."""

    def __init__(
        self, namespace: str, clock: Clock, on_event: Callable[[ReplayEvent], object] | None
    ) -> None:
        self._namespace = namespace
        self._clock = clock
        self._on_event = on_event
        self.is_there = on_event is not None

    def emit(
        self, kind: EventKind, key: ReplayKey | None, swept: SweepResult | None = None
    ) -> None:
        """Emit an event. A failure of the observer is logged, and never fails the request."""
        if self._on_event is None:
            return
        digest = None if key is None else key.digest()
        try:
            self._on_event(ReplayEvent(kind, self._namespace, digest, self._clock.now_ms(), swept))
        except Exception:  # the observer's own, whatever it is
            logger().exception("on_event raised on %r; the request goes on", kind)

    def emit_answer(self, settled: Settled, key: ReplayKey) -> None:
        """Emit ``replayed`` if the handler did not run; ``completed`` was emitted by the put."""
        if settled.replayed:
            self.emit("replayed", key)
