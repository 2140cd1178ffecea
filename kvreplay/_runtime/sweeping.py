"""Sweeping: one bounded sweep, and the optional sweeper that repeats it from a thread.

``aio_sweeping.py`` has the sweeper as a task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Self

from kvreplay._protocol.flow import prune
from kvreplay._protocol.record import ReplayRecord
from kvreplay._runtime.settings import Settings
from kvreplay._runtime.walking import Drive, Entries, Look, SweepIndex, look
from kvreplay.errors import ConfigError, RecordError
from kvreplay.events import logger
from kvreplay.store import ForkSafeLock, SweepResult, check_sweep

__all__ = ["Sweeper", "Walk", "interval_of"]


class Walk:
    """Sweeps one namespace: by the store's index, or by a walk if the store has none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._left: tuple[Hashable, Entries] | None = None  # of the round, between two walks
        self._lock = ForkSafeLock()  # one walker at a time: the walk is shared

    def sweep(self, limit: int) -> SweepResult:
        """Sweep with blocking calls; see :meth:`look`."""
        if self._settings.sweeps_itself:
            return look(self.look(limit), self._settings)
        with self._lock:
            return look(self.look(limit), self._settings)

    def look(self, limit: int, loop: Hashable = None) -> Look[SweepResult]:
        """Remove at most ``limit`` entries that nobody needs.

        A walk goes on where the last one stopped, and visits the next ``limit`` records; ``more``
        then says that the round is not over. After a failure the next walk begins a new round, and
        so it does while another task is in a walk.

        Args:
            loop: the event loop that the walk belongs to. On another one it is begun again, and
                goes past as many records as it has left there.
        """
        settings = self._settings
        now = settings.clock.now_ms()
        check_sweep(settings.name, now, limit)
        if settings.sweeps_itself:
            swept: SweepResult = yield SweepIndex(now, limit)
            return swept
        return (yield from self._go_on(limit, loop))

    def _go_on(self, limit: int, loop: Hashable) -> Look[SweepResult]:
        visited = removed = 0
        left, self._left = self._left, None  # neither a failure nor a fork finds it half-way
        entries = left[1] if left is not None and left[0] == loop else Entries(self._settings)
        if left is not None:
            yield from entries.skip(left[1].passed)
        while (entry := (yield from entries.next())) is not None:
            data, record = entry
            visited += 1
            if not isinstance(record, RecordError):
                is_gone: bool = yield self._prune(data, record)
                removed += is_gone
                entries.passed -= is_gone
            if visited == limit:
                self._left = loop, entries
                return SweepResult(visited, removed, more=True)
        return SweepResult(visited, removed, more=False)

    def _prune(self, data: bytes, record: ReplayRecord) -> Drive:
        settings = self._settings
        return Drive(prune(data, record, settings.clock.now_ms(), settings.policy), record.key)


class Sweeper:
    """Sweeps in rounds, from a thread that lives as long as the ``with`` block."""

    def __init__(self, sweep: Callable[[int], SweepResult], every: int, limit: int) -> None:
        self._sweep = sweep
        self._every = interval_of(every)
        self._limit = limit
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kvreplay-sweeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sweep_all(self) -> None:
        while not self._stop.is_set() and self._sweep(self._limit).more:
            pass

    def _work(self) -> None:
        while True:
            try:
                self._sweep_all()
            except Exception as error:  # a sweeper that ends unseen lets the store grow for ever
                logger().warning("a sweep failed; the next round tries again: %r", error)
            if self._stop.wait(self._every):
                return


def interval_of(every: int) -> float:
    """Check the time between two rounds, in milliseconds, and return it in seconds."""
    if not every:
        raise ConfigError("every is 0; give the seconds between two rounds")
    return every / 1000
