"""The optional periodic sweeper, as a thread or as a task."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from kvreplay.errors import ConfigError
from kvreplay.store import SweepResult

__all__ = ["AsyncSweeper", "Sweeper"]

_log: Final = logging.getLogger("kvreplay")


class Sweeper:
    """Sweeps in rounds, from a thread that lives as long as the ``with`` block."""

    def __init__(self, sweep: Callable[[int], SweepResult], every: int, limit: int) -> None:
        self._sweep = sweep
        self._every = _interval(every)
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
                _log.warning("a sweep failed, and is tried again in the next round: %r", error)
            if self._stop.wait(self._every):
                return


class AsyncSweeper:
    """Sweeps in rounds, from a task that lives as long as the ``async with`` block."""

    def __init__(
        self, sweep: Callable[[int], Awaitable[SweepResult]], every: int, limit: int
    ) -> None:
        self._sweep = sweep
        self._every = _interval(every)
        self._limit = limit
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._work(), name="kvreplay-sweeper")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        await self._task

    async def _work(self) -> None:
        while True:
            try:
                while not self._stop.is_set() and (await self._sweep(self._limit)).more:
                    pass
            except Exception as error:  # a sweeper that ends unseen lets the store grow for ever
                _log.warning("a sweep failed, and is tried again in the next round: %r", error)
            try:
                await asyncio.wait_for(self._stop.wait(), self._every)
            except TimeoutError:
                continue
            return


def _interval(every: int) -> float:
    if not every:
        raise ConfigError("every is 0; give the seconds between two rounds")
    return every / 1000
