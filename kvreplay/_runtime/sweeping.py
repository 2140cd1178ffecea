"""Sweeping: one bounded sweep, and the optional sweeper that repeats it from a thread.

``aio_sweeping.py`` has the sweeper as a task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Self, cast

from kvreplay._protocol.flow import prune
from kvreplay._protocol.record import ReplayRecord
from kvreplay._runtime.blocking import drive
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import Settings
from kvreplay._runtime.walking import Found, walk
from kvreplay.errors import ConfigError, RecordError
from kvreplay.events import logger
from kvreplay.store import ExpiringKVStore, ForkSafeLock, SweepResult, check_sweep

__all__ = ["Sweeper", "Walk", "interval_of"]


class Walk:
    """Sweeps one namespace: by the store's index, or by a walk if the store has none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._left: Iterator[Found] | None = None  # of the round, between two walks
        self._lock = ForkSafeLock()  # one walker at a time: the iterator is shared

    def sweep(self, limit: int) -> SweepResult:
        """Remove at most ``limit`` entries that nobody needs.

        A walk goes on where the last one stopped, and visits the next ``limit`` records; ``more``
        then says that the round is not over. After a failure the next walk begins a new round.
        """
        settings = self._settings
        now = settings.clock.now_ms()
        check_sweep(settings.name, now, limit)
        if settings.sweeps_itself:
            return cast(ExpiringKVStore, settings.store).sweep(settings.name, now, limit)
        with self._lock:
            return self._go_on(limit)

    def _go_on(self, limit: int) -> SweepResult:
        visited = removed = 0
        left = self._left or walk(self._settings)
        self._left = None  # so that neither a failure nor a forked child finds it half-way
        for data, record in left:
            visited += 1
            if not isinstance(record, RecordError):
                removed += self._prune(data, record)
            if visited == limit:
                self._left = left
                return SweepResult(visited, removed, more=True)
        return SweepResult(visited, removed, more=False)

    def _prune(self, data: bytes, record: ReplayRecord) -> bool:
        settings = self._settings
        now = settings.clock.now_ms()
        return drive(prune(data, record, now, settings.policy), Run(settings, record.key))


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
