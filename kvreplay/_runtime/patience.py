"""How long a request waits for others: one budget, whatever it waits for.

It covers the run of the same key in this process, that of another owner, and what passes meanwhile.
It is taken from a clock that only goes forward, so no change of the wall clock makes it shorter or
longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Final

from kvreplay.clock import Duration, to_ms

__all__ = ["FROM_SETTINGS", "FromSettings", "Patience", "patience_ms"]


class FromSettings(Enum):
    """The type of :data:`FROM_SETTINGS`."""

    FROM_SETTINGS = "from settings"

    def __repr__(self) -> str:
        return "FROM_SETTINGS"


FROM_SETTINGS: Final = FromSettings.FROM_SETTINGS
"""As an argument of a call: what the replay was given. (``None`` has a meaning of its own.)"""


def patience_ms(wait_timeout: Duration | None) -> int | None:
    """Return a ``wait_timeout`` in milliseconds; ``None``: no limit.

    Raises:
        ConfigError: it is neither a time nor ``None``.
    """
    return None if wait_timeout is None else to_ms(wait_timeout, "wait_timeout")


class Patience:
    """How long one request may still wait; it begins when this is made.

    ``has_waited``: the request has been told to wait, which is told once.

    Args:
        limit: milliseconds; 0: not at all; ``None``: no limit.
        monotonic: seconds, on a clock that only goes forward.
    """

    __slots__ = ("_end", "_monotonic", "has_waited")

    def __init__(self, limit: int | None, monotonic: Callable[[], float]) -> None:
        self.has_waited = False
        self._monotonic = monotonic
        self._end = math.inf if limit is None else monotonic() + limit / 1000 if limit else 0.0

    def left(self, at_most: float) -> float:
        """Return for how many seconds to wait now, up to ``at_most``; 0: the time is over."""
        if not self._end:
            return 0.0
        return max(0.0, min(at_most, self._end - self._monotonic()))

    @property
    def seconds(self) -> float | None:
        """For how many seconds to wait now; ``None``: no limit."""
        return None if self._end == math.inf else self.left(math.inf)
