"""The observer of a replay namespace: it is given the events, and cannot fail a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from kvreplay._protocol.keys import ReplayKey
from kvreplay.clock import Clock
from kvreplay.errors import (
    ClaimLostError,
    ExpiredError,
    InDoubtError,
    InFlightError,
    ParamsMismatchError,
    RecordError,
    ResponseTypeError,
    StoreError,
)
from kvreplay.events import AnswerKind, EventKind, ReplayEvent, logger
from kvreplay.store import SweepResult

__all__ = ["Observer", "OnEvent", "event_of"]

OnEvent = Callable[[ReplayEvent], object]

# The event of each error that is a decision about the key.
_EVENT_OF: Final[Mapping[type[BaseException], AnswerKind]] = {
    ParamsMismatchError: "params_mismatch",
    ExpiredError: "expired",
    InFlightError: "in_flight",
    InDoubtError: "in_doubt",
    ClaimLostError: "claim_lost",
    RecordError: "corrupt_record",
    ResponseTypeError: "response_type",
    StoreError: "store_error",
}

_REMEMBERED: Final = 1024  # keys in doubt that were logged, each with its record's checksum
_CHECKSUM: Final = 4  # bytes, at the end of a record


def event_of(error: BaseException) -> AnswerKind | None:
    """Return the event of an error that is a decision about its key."""
    return next((_EVENT_OF[kind] for kind in type(error).__mro__ if kind in _EVENT_OF), None)


class Observer:
    """Logs each doubt, and gives the events to the caller's ``on_event``, if there is one."""

    def __init__(
        self,
        namespace: str,
        clock: Clock,
        monotonic: Callable[[], float],
        on_event: tuple[OnEvent, ...],
    ) -> None:
        self._namespace = namespace
        self._now_ms = clock.now_ms
        self.monotonic = monotonic
        self._on_event = on_event
        self._logged: dict[ReplayKey, bytes | None] = {}
        self.is_there = bool(on_event)

    def began(self) -> float:
        """Return the time from which durations are measured; 0 if nobody is told of them."""
        return self.monotonic() if self.is_there else 0.0

    def emit(
        self,
        kind: EventKind,
        key: ReplayKey | None,
        began: float,
        swept: SweepResult | None = None,
        found: bytes | None = None,
        claimed: bool = True,
    ) -> None:
        """Emit an event. A failure of the observer is logged, and never fails the request.

        Args:
            began: when the call began that it tells of; see :meth:`began`.
            found: the key's record, as far as the request has seen it.
            claimed: not the end of a run without a claim, which leaves nothing to be settled.
        """
        if key is not None and kind in _DOUBTS:
            self._log_doubt(_DOUBTS[kind if claimed else "unclaimed"], kind, key, found)
        elif key is not None and kind in _NO_DOUBT:
            self._logged.pop(key, None)
        if self.is_there:
            self.tell(
                kind, key, None if key is None else ReplayKey.digest, self._now_ms(), began, swept
            )

    def tell(
        self,
        kind: EventKind,
        key: Any,
        digest: Callable[[Any], str] | None,
        now: int,
        began: float,
        swept: SweepResult | None = None,
    ) -> None:
        """Give ``on_event`` an event; who asks for its key calls ``digest(key)``."""
        event = ReplayEvent(
            kind, self._namespace, now, self.monotonic() - began, swept, key, digest
        )
        for on_event in self._on_event:
            try:
                on_event(event)
            except Exception:  # the observer's own, whatever it is
                logger().exception("on_event raised on %r; the request goes on", kind)

    def emit_error(self, error: BaseException, key: ReplayKey, began: float) -> None:
        """Emit what an error decides for a request that runs nothing itself."""
        self.emit(event_of(error) or "released", key, began)

    def _log_doubt(self, text: str, kind: EventKind, key: ReplayKey, found: bytes | None) -> None:
        """Log a doubt once: when it begins, or when it is first met.

        Others may have settled it meanwhile, and a run of theirs begun another: its record tells.
        """
        last = self._logged.get(key)
        which = last if found is None else found[-_CHECKSUM:]
        if kind == "doubt_begun" or key not in self._logged or which != last:
            with suppress(Exception):  # of a filter of the application's own
                logger().warning(text, self._namespace, key.digest())
        self._logged[key] = which
        while len(self._logged) > _REMEMBERED:
            with suppress(RuntimeError, StopIteration):  # another thread changes it just now
                self._logged.pop(next(iter(self._logged)), None)


_DOUBTS: Final[Mapping[str, str]] = {
    "doubt_begun": "a run in %r has left its key in doubt (%s): its effect may or may not have"
    " happened; find out, then resolve() or release() the key",
    "in_doubt": "a request in %r was refused, since its key is in doubt (%s): a run began, and"
    " nobody knows how it ended; find out, then resolve() or release() the key",
    "unclaimed": "a run without a claim (lease=None) in %r may not have stored its answer (%s): its"
    " effect may have happened, and a retry runs the handler again unless the answer is there",
}
"""The warning for each kind of event that tells of a doubt: the namespace, and the key's digest."""

_NO_DOUBT: Final = frozenset(
    ("completed", "failed", "replayed", "expired", "reconciled", "resolved", "released_by_operator")
)
"""Who then meets a doubt meets a new one, which is logged anew."""
