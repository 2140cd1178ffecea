"""Which of the calls to come are to fail, and how; each call is counted."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import attrs

from kvreplay.errors import ConfigError, OutcomeUnknownError, StoreUnavailableError
from kvreplay.store import ForkSafeLock

__all__ = ["CALLS", "CHANGES", "Fault", "PlannedFaults", "failure", "lost_outcome"]

CHANGES: Final = ("write", "remove", "check_and_put", "commit")
"""What is to fail, if nothing else is said."""

CALLS: Final = (
    *("read", "list", "list_all_keys", "read_entry", "scan"),
    *("list_paginated", "list_paginated_with_values"),
    *(*CHANGES, "sweep", "transaction"),
)
"""What can fail. All but ``commit``, the end of a transaction, are methods of a store."""


@attrs.define(eq=False)
class Fault:
    """What becomes of the calls that it is for.

    Attributes:
        after: how many such calls go well before.
        times: how many such calls are still to fail.
        applied: whether the change is made all the same; ``None``: the call fails, and that nothing
            was changed is known.
    """

    calls: Collection[str]
    after: int
    times: int
    error: Callable[[], Exception]
    applied: bool | None


class PlannedFaults:
    """Faults in the order in which they were asked for; any thread may ask."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = ForkSafeLock()

    def add(self, fault: Fault) -> None:
        """Plan one more.

        Raises:
            ConfigError: a number is wrong.
        """
        for what, number, least in (("after", fault.after, 0), ("times", fault.times, 1)):
            if type(number) is not int or number < least:
                raise ConfigError(f"{what} must be an int of at least {least}")
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """Forget those that have not happened."""
        with self._lock:
            self._faults.clear()

    @property
    def left(self) -> int:
        """How many calls are still to fail."""
        with self._lock:
            return sum(fault.times for fault in self._faults)

    def are_planned(self, call: str) -> bool:
        """Say whether such a call will fail, now or later."""
        with self._lock:
            return any(call in fault.calls for fault in self._faults)

    def due(self, call: str, *, has_outcome: bool = True) -> Fault | None:
        """Count a call, and return the fault that it meets.

        Args:
            has_outcome: its outcome can be lost; if not, it does not count for such a fault.
        """
        with self._lock:
            for fault in self._faults:
                if call in fault.calls and (has_outcome or fault.applied is None):
                    if fault.after:
                        fault.after -= 1
                        return None
                    fault.times -= 1
                    if not fault.times:
                        self._faults.remove(fault)
                    return fault
        return None


def failure(error: Exception | Callable[[], Exception] | None) -> Callable[[], Exception]:
    """Return what makes the error of a call that changes nothing."""
    if error is None:
        return partial(
            StoreUnavailableError, "the test wants this call to fail; nothing was changed"
        )
    return partial(_again, error) if isinstance(error, Exception) else error


def lost_outcome() -> Exception:
    """Return the error of a change of which nobody knows whether it was made."""
    return OutcomeUnknownError(
        "the test wants this outcome to be lost: the change may or may not have happened; read"
        " again before you decide"
    )


def _again(error: Exception) -> Exception:
    """Return an error that may have been raised before, without what led to it then."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
