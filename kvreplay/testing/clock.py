"""A clock that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from kvreplay.errors import ConfigError
from kvreplay.store import ForkSafeLock
from kvreplay.store.durations import Duration, seconds_of

__all__ = ["ManualClock"]

_START: Final = datetime(2030, 1, 1, tzinfo=UTC)
_FURTHEST: Final = 10**9 * 366 * 86_400  # microseconds: a thousand years


class ManualClock:
    """Time that passes only when you say so, for ``Replay(..., clock=ManualClock())``.

    It may be moved from any thread. What *waits* waits in real time: a request that waits for a run
    of another process goes on waiting until you advance the clock, so give it ``wait_timeout=0``.

    Args:
        at: the wall clock's time: an aware ``datetime``, or milliseconds since the epoch (UTC).

    Raises:
        ConfigError: ``at`` is no such time.
    """

    def __init__(self, at: datetime | int = _START) -> None:
        self._lock = ForkSafeLock()
        self._wall = _microseconds(at)
        self._passed = 0  # microseconds

    def __repr__(self) -> str:
        return f"<ManualClock at {self.now_ms()} ms>"

    def now_ms(self) -> int:
        """Return the wall clock's time: milliseconds since the epoch, UTC."""
        return self._wall // 1000

    def monotonic(self) -> float:
        """Return the seconds that have passed; setting the wall clock does not change them."""
        return self._passed / 1_000_000

    def advance(self, duration: Duration) -> None:
        """Let time pass.

        Args:
            duration: seconds, a timedelta, or text such as ``"10min"``.

        Raises:
            ConfigError: it is no duration, or negative.
        """
        passed = seconds_of(duration, "duration") * 1_000_000
        if not 0 <= passed <= _FURTHEST:  # false for NaN too
            raise ConfigError(
                "time passes only forwards, and by at most a thousand years; the clock stands as"
                " before: put the wall clock back by set()"
            )
        with self._lock:
            self._wall += round(passed)
            self._passed += round(passed)

    def set(self, at: datetime | int) -> None:
        """Put the wall clock to another time, earlier or later, as an administrator does.

        No time passes by that: ``monotonic()`` stays as it is.

        Raises:
            ConfigError: ``at`` is no time, as for the constructor.
        """
        wall = _microseconds(at)
        with self._lock:
            self._wall = wall


def _microseconds(at: object) -> int:
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise ConfigError(
                "the time has no time zone, so it can mean several; give one, such as"
                " datetime(2030, 1, 1, tzinfo=UTC)"
            )
        since = at - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if type(at) is int:
        return at * 1000
    raise ConfigError(
        f"the time is a {type(at).__name__}; give an aware datetime, or an int of milliseconds"
        " since the epoch"
    )
