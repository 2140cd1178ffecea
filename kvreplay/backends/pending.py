"""Writes that wait for an engine's group commit, and what became of the transaction they share.

A write learns its fate through its batch: it *lands* in the one step in which the batch's fate is
set, or by an error of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from kvreplay.backends._support import caused
from kvreplay.errors import OutcomeUnknownError
from kvreplay.store import Bell

__all__ = [
    "ALONE",
    "MAX_BYTES",
    "NOWHERE",
    "UNKNOWN",
    "Batch",
    "Fate",
    "PendingWrite",
]

MAX_BYTES: Final = 16 * 1024 * 1024
"""How many bytes of values are in a batch, unless a single one is larger."""
ALONE: Final = MAX_BYTES + 1
"""The size of a write that takes long. It shares no commit, so that no other write waits for it."""
NOWHERE: Final = object()
"""The address of a write that reads and changes no entry."""
UNKNOWN: Final = OutcomeUnknownError(
    "a commit failed, and its thread was interrupted before it knew whether it had happened: read"
    " again before deciding; what was stored before is intact"
)
"""What its writes are told, until more is known."""


class PendingWrite:
    """One write that waits for its commit.

    Args:
        operation: makes the write in a transaction of the engine's; it may be run again in another
            one. ``None`` keeps a place for a caller's transaction.
        size: about how many bytes it writes.
        bound: how many seconds it may wait, from now on.
        address: of the only entry that it reads and changes; ``None``: it may be any.
    """

    __slots__ = (
        *("address", "bell", "bound", "error", "fate", "leads", "operation", "result"),
        *("size", "until"),
    )

    def __init__(
        self,
        operation: Callable[[Any], Any] | None,
        size: int = 0,
        *,
        bound: float,
        address: Any = None,
    ) -> None:
        self.operation = operation
        self.size = size
        self.address = address
        self.bound = bound
        self.until = monotonic() + bound
        self.bell: Bell | None = None  # while a thread waits for it
        self.leads = False  # its thread waits to lead
        self.fate = _NONE_YET  # of the latest transaction that it was in
        self.result: Any = None  # the operation's
        self.error: Exception | None = None  # its own: it did not happen

    @property
    def landed(self) -> bool:
        """Whether it is known what became of it, as far as it ever will be."""
        fate = self.fate
        return fate.committed or self.error is not None or fate.unknown is not None

    @property
    def is_untouched(self) -> bool:
        """Whether no transaction has had it yet, so that it may be withdrawn."""
        return self.fate is _NONE_YET

    @property
    def left(self) -> float:
        """How many seconds it may still wait."""
        return max(self.until - monotonic(), 0.0)

    @property
    def failure(self) -> Exception | None:
        """Why it did not happen, or that nobody knows; for its own thread to raise."""
        if (unknown := self.fate.unknown) is not None:
            return caused(OutcomeUnknownError(*unknown.args), unknown.__cause__)
        return self.error

    def refusal(self) -> Exception:
        """Return why a place was given up, and keep it no longer: its traceback leads here."""
        error, self.error = self.error, None
        assert error is not None
        return error

    @property
    def is_brief(self) -> bool:
        """Whether other writes need not wait long for it."""
        return self.operation is not None and self.size < ALONE

    def wake(self) -> bool:
        """Wake the thread that waits for it; say whether there is one."""
        bell = self.bell
        if bell is None:
            return False
        bell.ring()
        return True


class Fate:
    """What became of a transaction, for all the writes in it. It does not know them."""

    __slots__ = ("committed", "unknown")

    def __init__(self) -> None:
        self.committed = False
        self.unknown: OutcomeUnknownError | None = None


class Batch:
    """Writes that share a transaction, and the lazy removals that this makes before them."""

    __slots__ = ("boarded", "fate", "writes")

    def __init__(self) -> None:
        self.fate = Fate()
        self.boarded: dict[Any, Any] = {}  # the lazy removals
        self.writes: list[PendingWrite] = []

    def add(self, write: PendingWrite) -> None:
        """Name one more, in the order of arrival."""
        write.fate = self.fate
        self.writes.append(write)


_NONE_YET: Final = Fate()
