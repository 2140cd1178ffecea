"""The optional periodic sweeper as a thread; ``aio_sweeping.py`` has it as a task."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from kvreplay.errors import ConfigError
from kvreplay.events import logger
from kvreplay.store import SweepResult

__all__ = ["Sweeper", "interval_of"]


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

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                while not self._stop.is_set() and self._sweep(self._limit).more:
                    pass
            except Exception as error:  # a sweeper that ends unseen lets the store grow for ever
                logger().warning("a sweep failed, and is tried again in the next round: %r", error)
            if self._stop.wait(self._every):
                return


def interval_of(every: int) -> float:
    """Check the time between two rounds, in milliseconds, and return it in seconds."""
    if not every:
        raise ConfigError("every is 0; give the seconds between two rounds")
    return every / 1000
