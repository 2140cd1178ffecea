"""Batch an event loop's check-and-puts: many changes, one call of the store.

A thousand tasks that wait for the disk need one thread. While it runs one call, the changes that
become ready are gathered, and go together with the next call. The store commits them at once.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import TypeAlias

from kvreplay._runtime.singleflight import fresh
from kvreplay.store import BatchingKVStore, Change

__all__ = ["Batcher"]

Result: TypeAlias = "bytes | Exception | None"
Waiting: TypeAlias = "tuple[Change, asyncio.Future[bytes | None]]"


class Batcher:
    """Brings the changes of one event loop to a store: one call at a time, in its executor.

    Both callbacks are given to the loop twice, and do nothing the second time. If an interrupt
    comes as one of them begins, the loop has forgotten it, and the other does the work.
    """

    def __init__(self, store: BatchingKVStore) -> None:
        self._store = store
        self._waiting: list[Waiting] = []
        self._is_scheduled = False  # the next call
        self._call: asyncio.Future[Sequence[Result]] | None = None  # under way

    async def check_and_put(self, change: Change) -> bytes | None:
        """Do what the store's does. If it is cancelled before its call begins, nothing happens."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes | None] = loop.create_future()
        self._waiting.append((change, answer))
        self._schedule(loop)
        return await answer

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next call once the tasks that are ready now have come."""
        if not self._is_scheduled and self._call is None:
            loop.call_soon(self._begin, loop)
            loop.call_soon(self._begin, loop)
            self._is_scheduled = True

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_scheduled = False
        if self._call is not None:
            return
        batch, self._waiting = self._waiting, []
        try:
            batch = _still_waiting(batch)
            if batch:
                changes = [change for change, _ in batch]
                call = loop.run_in_executor(None, self._store.check_and_put_each, changes)
                self._call = call
                for _ in range(2):
                    call.add_done_callback(functools.partial(self._ended, loop, batch))
        except BaseException as error:  # the executor's: it was shut down; or an interrupt
            self._call = None
            _answer(batch, [error] * len(batch))
            if not isinstance(error, Exception):
                raise

    def _ended(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[Waiting],
        call: asyncio.Future[Sequence[Result]],
    ) -> None:
        if self._call is call:
            self._call = None
        try:
            _answer(batch, _results_of(call, len(batch)))
        except BaseException:  # an interrupt: nobody may wait for ever
            _answer(batch, _results_of(call, len(batch)))
            raise
        finally:
            if self._waiting:
                self._schedule(loop)


def _still_waiting(batch: Sequence[Waiting]) -> list[Waiting]:
    return [each for each in batch if not each[1].done()]


def _results_of(
    call: asyncio.Future[Sequence[Result]], count: int
) -> Sequence[Result | BaseException]:
    if call.cancelled():
        return [asyncio.CancelledError()] * count
    error = call.exception()
    return call.result() if error is None else [error] * count


def _answer(batch: Sequence[Waiting], results: Sequence[Result | BaseException]) -> None:
    """Give each change its result; a second time, those that have none yet."""
    for (_, answer), result in zip(batch, results, strict=True):
        if answer.done():
            continue  # cancelled meanwhile
        if isinstance(result, asyncio.CancelledError):
            answer.cancel()
        elif isinstance(result, Exception):
            answer.set_exception(fresh(result))
        elif isinstance(result, BaseException):
            answer.set_exception(result)
        else:
            answer.set_result(result)
