"""The optional periodic sweeper as a task, for an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

from kvreplay._runtime.sweeping import interval_of
from kvreplay.events import logger
from kvreplay.store import SweepResult

__all__ = ["AsyncSweeper"]


class AsyncSweeper:
    """Sweeps in rounds, from a task that lives as long as the ``async with`` block."""

    def __init__(
        self, sweep: Callable[[int], Awaitable[SweepResult]], every: int, limit: int
    ) -> None:
        self._sweep = sweep
        self._every = interval_of(every)
        self._limit = limit
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._work(), name="kvreplay-sweeper")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._task

    async def _sweep_all(self) -> None:
        while not self._stop.is_set() and (await self._sweep(self._limit)).more:
            pass

    async def _work(self) -> None:
        while True:
            try:
                await self._sweep_all()
            except Exception as error:  # a sweeper that ends unseen lets the store grow for ever
                logger().warning("a sweep failed; the next round tries again: %r", error)
            try:
                await asyncio.wait_for(self._stop.wait(), self._every)
            except TimeoutError:
                continue
            return
