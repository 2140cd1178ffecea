"""Time: one injected clock, in integer milliseconds since the epoch (UTC), and durations."""

from __future__ import annotations

import math
import time
from typing import Final, Protocol

from kvreplay.errors import ConfigError
from kvreplay.store.durations import Duration, seconds_of

__all__ = ["Clock", "Duration", "SystemClock", "to_ms"]

_LONGEST_MS: Final = 100 * 366 * 86_400_000


class Clock(Protocol):
    """What tells the time.

    It may also have ``monotonic() -> float``: seconds that only go forward, as those of
    :func:`time.monotonic`, which is taken where it is absent. By these a request measures how long
    it has waited.
    """

    def now_ms(self) -> int:
        """Return the milliseconds since the epoch, UTC."""


class SystemClock:
    """This machine's wall clock."""

    def now_ms(self) -> int:
        """Return the milliseconds since the epoch, UTC."""
        return time.time_ns() // 1_000_000


def to_ms(duration: Duration, name: str) -> int:
    """Return whole milliseconds, rounded up, from 0 to 100 years.

    Raises:
        ConfigError: the value is no duration, negative, or over 100 years; the message names
            the argument.
    """
    seconds = seconds_of(duration, name)
    if not 0 <= seconds * 1000 <= _LONGEST_MS:  # false for NaN too
        raise ConfigError(f"{name} is {seconds} s; it must be from 0 to 100 years; nothing ran")
    return math.ceil(seconds * 1000)
