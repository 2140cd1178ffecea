"""Batch what an event loop's tasks ask for: many questions, one call in a thread.

A thousand tasks that wait for the disk need one thread. While it makes one call, what becomes ready
is gathered, and goes together with the next call. So a store commits many changes at once.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

from kvreplay._runtime.singleflight import fresh
from kvreplay._runtime.threads import Threads
from kvreplay.errors import KVReplayError, OutcomeUnknownError
from kvreplay.store import BatchingKVStore, Change

__all__ = ["Batcher", "Each", "change_each"]

Each: TypeAlias = Callable[[Sequence[Any]], Sequence[Any]]
"""Answers several questions, in their order; an ``Exception`` is what one of them raises."""

Waiting: TypeAlias = "tuple[Any, asyncio.Future[Any]]"


def change_each(store: BatchingKVStore, changes: Sequence[Change]) -> list[Any]:
    """Return what the store's ``check_and_put_each`` returns: one result for each change.

    Raises:
        KVReplayError: the store's own.
        OutcomeUnknownError: the store broke its contract. Nobody knows which changes happened.
    """
    try:
        results = store.check_and_put_each(changes)
        is_sequence = isinstance(results, Sequence) and not isinstance(results, bytes | str)
        found = list(results) if is_sequence else None
    except KVReplayError:
        raise
    except Exception as error:  # foreign code: whatever it raises
        raise _broken(store, f"raised a {type(error).__name__}, which is no StoreError") from error
    if found is None:
        raise _broken(store, f"returned a {type(results).__name__}, which is no sequence")
    if len(found) != len(changes):
        raise _broken(store, f"returned {len(found)} results for {len(changes)} changes")
    return [
        each
        if each is None or isinstance(each, bytes | Exception)
        else _broken(store, f"returned a {type(each).__name__} as a result")
        for each in found
    ]


def _broken(store: object, how: str) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"{type(store).__name__} broke the store contract: its check_and_put_each {how}; nobody"
        " knows whether this change happened: read again, and have that store mended"
    )


class Batcher:
    """Brings the questions of one event loop to a function: one call at a time, in a thread.

    Both callbacks are given to the loop twice, and do nothing the second time. If an interrupt
    comes as one of them begins, the loop has forgotten it, and the other does the work.

    Args:
        ask_each: answers the questions of one call.
    """

    def __init__(self, ask_each: Each, threads: Threads) -> None:
        self._ask_each = ask_each
        self._threads = threads
        self._waiting: list[Waiting] = []
        self._is_scheduled = False  # the next call
        self._call: asyncio.Future[Sequence[Any]] | None = None  # under way

    async def ask(self, question: Any) -> Any:
        """Return the answer.

        If this is cancelled before its call begins, nothing is asked. No cancellation stops a call:
        one that comes later is raised when the call has ended.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        waiting = question, answer
        self._waiting.append(waiting)
        self._schedule(loop)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if waiting in self._waiting:
                answer.cancel()
            elif not answer.done():
                await asyncio.wait((answer,))
            raise

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
        made: Future[Sequence[Any]] = Future()
        batch, self._waiting = self._waiting, []
        try:
            batch = _still_waiting(batch)
            if batch:
                questions = [question for question, _ in batch]
                self._threads.give(made, functools.partial(self._ask_each, questions))
                self._follow(loop, batch, made)
        except BaseException as error:  # no thread can start; or an interrupt
            if made.cancel():
                self._call = None
                _answer(batch, [error] * len(batch))
            else:  # it has begun
                self._follow(loop, batch, made)
            if not isinstance(error, Exception):
                raise

    def _follow(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[Waiting],
        made: Future[Sequence[Any]],
    ) -> None:
        """Have each question of a call answered once it has ended; a second time, the same."""
        call = asyncio.wrap_future(made, loop=loop)
        self._call = call
        for _ in range(2):
            call.add_done_callback(functools.partial(self._ended, loop, batch))

    def _ended(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[Waiting],
        call: asyncio.Future[Sequence[Any]],
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


def _results_of(call: asyncio.Future[Sequence[Any]], count: int) -> Sequence[Any]:
    if call.cancelled():
        return [asyncio.CancelledError()] * count
    error = call.exception()
    return call.result() if error is None else [error] * count


def _answer(batch: Sequence[Waiting], results: Sequence[Any]) -> None:
    """Give each question its answer; a second time, those that have none yet."""
    for (_, answer), result in zip(batch, results, strict=True):
        if answer.done():
            continue  # cancelled meanwhile
        if isinstance(result, asyncio.CancelledError):
            answer.cancel()
        elif isinstance(result, StopIteration):  # a future cannot hold one
            stopped = RuntimeError("a change raised StopIteration")
            stopped.__cause__ = fresh(result)
            answer.set_exception(stopped)
        elif isinstance(result, Exception):
            answer.set_exception(fresh(result))
        elif isinstance(result, BaseException):
            answer.set_exception(result)
        else:
            answer.set_result(result)
