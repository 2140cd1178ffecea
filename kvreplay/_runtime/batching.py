"""Carry an event loop's check-and-puts to its store, many at a time.

A thousand tasks that wait for the disk need one thread: while it carries some changes, those that
become ready gather, and go together with the next trip. The store commits them at once.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import TypeAlias

from kvreplay._runtime.singleflight import fresh
from kvreplay.store import BatchingKVStore, Change

__all__ = ["Shuttle"]

Outcome: TypeAlias = "bytes | Exception | None"
Passenger: TypeAlias = "tuple[Change, asyncio.Future[bytes | None]]"


class Shuttle:
    """The way of one event loop's tasks to a store: one trip at a time, in its executor."""

    def __init__(self, store: BatchingKVStore) -> None:
        self._store = store
        self._waiting: list[Passenger] = []
        self._busy = False

    async def check_and_put(self, change: Change) -> bytes | None:
        """Do as the store's. If it is cancelled before the trip begins, nothing happens."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes | None] = loop.create_future()
        self._waiting.append((change, answer))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._depart, loop)  # when all tasks that are ready have come
        return await answer

    def _depart(self, loop: asyncio.AbstractEventLoop) -> None:
        aboard = [each for each in self._waiting if not each[1].done()]
        self._waiting = []
        if not aboard:
            self._busy = False
            return
        changes = [change for change, _ in aboard]
        try:
            trip = loop.run_in_executor(None, self._store.check_and_put_each, changes)
        except Exception as error:  # the executor's: it was shut down
            self._busy = False
            _arrive(aboard, [error] * len(aboard))
        else:
            trip.add_done_callback(functools.partial(self._arrived, loop, aboard))

    def _arrived(
        self,
        loop: asyncio.AbstractEventLoop,
        aboard: Sequence[Passenger],
        trip: asyncio.Future[list[Outcome]],
    ) -> None:
        if trip.cancelled():
            for _, answer in aboard:
                answer.cancel()
        elif (error := trip.exception()) is not None:
            _arrive(aboard, [error] * len(aboard))
        else:
            _arrive(aboard, trip.result())
        # The tasks that are woken now come before it.
        loop.call_soon(self._depart, loop)


def _arrive(aboard: Sequence[Passenger], outcomes: Sequence[Outcome | BaseException]) -> None:
    for (_, answer), outcome in zip(aboard, outcomes, strict=True):
        if answer.done():
            continue  # cancelled on the way
        if isinstance(outcome, Exception):
            answer.set_exception(fresh(outcome))
        elif isinstance(outcome, BaseException):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
