"""What ``on_event`` receives: one value for each decision, without payload or key.

``docs/reference.md`` has the kinds in a table. Each request ends with exactly one of
:data:`ANSWERS`, unless it is broken off (cancelled, interrupted), was refused for its arguments or
a setting, or is a lookup that finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import attrs

from kvreplay.store import SweepResult

if TYPE_CHECKING:
    from logging import Logger

__all__ = [
    "ANSWERS",
    "EVENT_KINDS",
    "AnswerKind",
    "EventKind",
    "OtherKind",
    "ReplayEvent",
    "logger",
]

AnswerKind = Literal[
    "completed",
    "failed",
    "joined",
    "replayed",
    "released",
    "params_mismatch",
    "expired",
    "in_flight",
    "in_doubt",
    "doubt_begun",
    "claim_lost",
    "corrupt_record",
    "response_type",
    "store_error",
]
"""How a request ended."""

OtherKind = Literal[
    "started",
    "waited",
    "taken_over",
    "reconciled",
    "resolved",
    "released_by_operator",
    "forgotten",
    "swept",
]
"""What else happens: on the way of a request, by an operator, or in a sweep."""

EventKind = AnswerKind | OtherKind

ANSWERS: Final[tuple[AnswerKind, ...]] = get_args(AnswerKind)
"""The kinds with one of which each request ends."""

EVENT_KINDS: Final[tuple[EventKind, ...]] = (*ANSWERS, *get_args(OtherKind))
"""All kinds."""


@attrs.define(repr=False, eq=False)  # not frozen, which would cost a replay some percent
class ReplayEvent:
    """One decision about one key, or one sweep of the namespace.

    Attributes:
        kind: one of :data:`EVENT_KINDS`.
        namespace: the namespace of the replay.
        at: milliseconds since the epoch, UTC.
        duration: how many seconds ago the call began that the event tells of, by a clock that only
            goes forward.
        swept: what a sweep has done; ``None`` for other kinds.
    """

    kind: EventKind
    namespace: str
    at: int
    duration: float
    swept: SweepResult | None = None
    _key: Any = None
    _digest: Callable[[Any], str] | None = None

    @property
    def key(self) -> str | None:
        """:meth:`kvreplay.ReplayKey.digest`; ``None`` for a sweep and for a record in a walk."""
        return None if self._digest is None else self._digest(self._key)

    def __repr__(self) -> str:
        return (
            f"<ReplayEvent {self.kind} in {self.namespace!r} key={self.key} at={self.at}"
            f" duration={self.duration:.6f}>"
        )


def logger() -> Logger:
    """Return the library's logger; ``logging`` is loaded only when there is something to log."""
    import logging

    return logging.getLogger("kvreplay")
