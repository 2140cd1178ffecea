"""What ``on_event`` receives: one frozen value for each decision, without payload or key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from kvreplay.store import SweepResult

if TYPE_CHECKING:
    from logging import Logger

__all__ = ["EventKind", "ReplayEvent", "logger"]

EventKind = Literal[
    "started",
    "replayed",
    "waited",
    "params_mismatch",
    "expired",
    "in_doubt",
    "taken_over",
    "completed",
    "released",
    "claim_lost",
    "corrupt_record",
    "swept",
]


@attrs.frozen
class ReplayEvent:
    """One decision about one key, or one sweep of the namespace.

    ``key`` is :meth:`kvreplay.ReplayKey.digest`; ``None`` for a sweep, which has ``swept``
    instead. ``at`` is in milliseconds since the epoch, UTC.
    """

    kind: EventKind
    namespace: str
    key: str | None
    at: int
    swept: SweepResult | None = None


def logger() -> Logger:
    """Return the library's logger; ``logging`` is loaded only when there is something to log."""
    import logging

    return logging.getLogger("kvreplay")
