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
    """Brings the changes of one event loop to a store: one call at a time, in its executor."""

    def __init__(self, store: BatchingKVStore) -> None:
        self._store = store
        self._waiting: list[Waiting] = []
        self._busy = False

    async def check_and_put(self, change: Change) -> bytes | None:
        """Do what the store's does. If it is cancelled before its call begins, nothing happens."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes | None] = loop.create_future()
        self._waiting.append((change, answer))
        if not self._busy:
            # If an interrupt comes between, the next change calls too: that does no harm.
            loop.call_soon(self._begin, loop)  # after the tasks that are ready now have come
            self._busy = True
        return await answer

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting, []
        self._busy = False
        try:
            batch = [each for each in batch if not each[1].done()]
            if batch:
                changes = [change for change, _ in batch]
                call = loop.run_in_executor(None, self._store.check_and_put_each, changes)
                call.add_done_callback(functools.partial(self._ended, loop, batch))
                self._busy = True
        except BaseException as error:  # the executor's: it was shut down; or an interrupt
            _answer(batch, [error] * len(batch))
            if not isinstance(error, Exception):
                raise

    def _ended(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[Waiting],
        call: asyncio.Future[list[Result]],
    ) -> None:
        try:
            _answer(batch, _results_of(call, len(batch)))
        except BaseException:  # an interrupt: nobody may wait for ever
            _answer(batch, _results_of(call, len(batch)))
            raise
        finally:
            self._busy = False
            if self._waiting:
                # The tasks that were just woken run first.
                loop.call_soon(self._begin, loop)
                self._busy = True


def _results_of(call: asyncio.Future[list[Result]], count: int) -> Sequence[Result | BaseException]:
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
