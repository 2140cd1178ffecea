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
            self._busy = True
            loop.call_soon(self._begin, loop)  # after the tasks that are ready now have come
        return await answer

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = [each for each in self._waiting if not each[1].done()]
        self._waiting = []
        if not batch:
            self._busy = False
            return
        changes = [change for change, _ in batch]
        try:
            call = loop.run_in_executor(None, self._store.check_and_put_each, changes)
        except Exception as error:  # the executor's: it was shut down
            self._busy = False
            _answer(batch, [error] * len(batch))
        else:
            call.add_done_callback(functools.partial(self._ended, loop, batch))

    def _ended(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[Waiting],
        call: asyncio.Future[list[Result]],
    ) -> None:
        if call.cancelled():
            for _, answer in batch:
                answer.cancel()
        elif (error := call.exception()) is not None:
            _answer(batch, [error] * len(batch))
        else:
            _answer(batch, call.result())
        # The tasks that were just woken run first.
        loop.call_soon(self._begin, loop)


def _answer(batch: Sequence[Waiting], results: Sequence[Result | BaseException]) -> None:
    for (_, answer), result in zip(batch, results, strict=True):
        if answer.done():
            continue  # cancelled meanwhile
        if isinstance(result, Exception):
            answer.set_exception(fresh(result))
        elif isinstance(result, BaseException):
            answer.set_exception(result)
        else:
            answer.set_result(result)
