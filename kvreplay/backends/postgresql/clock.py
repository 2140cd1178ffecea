"""The server's clock, told between its answers by a clock of this machine that only goes forward.

So machines whose wall clocks differ agree on when a lease and an answer expire.
"""

from __future__ import annotations

import time

__all__ = ["ServerClock", "ticks"]

_CLOCK = getattr(
    time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC
)  # which goes on in a suspended machine


def ticks() -> int:
    """Return the microseconds of a clock that only goes forward."""
    return time.clock_gettime_ns(_CLOCK) // 1000


class ServerClock:
    """A :class:`~kvreplay.clock.Clock`: the time of the server.

    Each answer that tells the time was made between the call and its return. So it bounds the
    difference of the two clocks from both sides. What lies outside of these bounds is corrected.
    """

    def __init__(self) -> None:
        self._ahead: int | None = None  # microseconds, of the server's time before our ticks

    def now_ms(self) -> int:
        """Return the milliseconds since the epoch, UTC, by the server."""
        ahead = self._ahead
        if ahead is None:
            return time.time_ns() // 1_000_000  # nobody asks before the store is open
        return (ticks() + ahead) // 1000

    def told(self, server_time: int, asked_at: int) -> None:
        """Note an answer.

        Args:
            server_time: microseconds since the epoch, as the server had them.
            asked_at: our ticks before the call.
        """
        least, most = server_time - ticks(), server_time - asked_at
        ahead = self._ahead
        if ahead is None:
            self._ahead = (least + most) // 2
        elif not least <= ahead <= most:
            self._ahead = least if ahead < least else most
