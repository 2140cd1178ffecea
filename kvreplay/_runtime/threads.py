"""Threads for calls that may block, for event loops.

They are not those of the loop's default executor. Whoever fills that with functions that wait for
the loop would keep its own requests from ending. Nor are they a ``ThreadPoolExecutor``'s: that puts
a call into its queue before it has a thread for it, so a call that it refuses may still be made. It
also keeps the interpreter from ending, and a forked child has its threads only in name.

What is always true:

* The threads belong to one object and one process: a forked child starts its own.
* A call is either given to a thread or refused with an exception. It is never given to a thread
  that does not run. An interrupt may come after it was given: so whoever gives it has its future
  before, and can take the call back.
* Without a limit, no call waits for another one: one that waits for the next cannot hold it up.
* A thread ends once it has had nothing to do for some seconds. So nothing has to be shut down. None
  keeps the interpreter from ending: a change that is then under way is as in a killed process.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

from kvreplay.store import ForkSafeLock

__all__ = ["AT_ONCE", "Threads"]

P = ParamSpec("P")
T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]

AT_ONCE: Final = min(32, (os.cpu_count() or 1) + 4)
"""How many calls of one kind are made at once: as many as Python's own executor makes."""

_IDLE: Final = 5.0  # seconds


class _Crew:
    """The threads of one process, and what they have to do."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock: Any = threading.RLock()  # guards what follows, and every ``put``
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.unfinished = 0
        self.threads: dict[threading.Thread, None] = {}


class Threads:
    """Up to ``limit`` threads; ``None``: as many as there are calls."""

    def __init__(self, name: str, limit: int | None) -> None:
        self._name = name
        self._limit = limit
        self._lock = ForkSafeLock()  # guards ``_crew``
        self._crew = _Crew()

    async def call(self, function: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
        """Call the function in a thread, and wait until it has ended.

        A cancellation does not stop the call, and is raised when the call has ended. After an
        interrupt, a call that has not begun is never made, and one that has begun ends first. So
        what the caller then does comes after a change that the call makes.

        Raises:
            RuntimeError: no thread can be started; nothing was called.
        """
        future: Future[T] = Future()
        try:
            self.give(future, partial(function, *args, **options))
            return await asyncio.shield(asyncio.wrap_future(future))
        except GeneratorExit:  # nobody can wait here any more
            raise
        except asyncio.CancelledError:
            await _end_of(future)
            raise
        except BaseException:
            if not (future.done() or future.cancel()):
                await _end_of(future)
            raise
        finally:
            del future  # it may hold an error, whose traceback holds this frame

    def submit(self, function: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> Future[T]:
        """Call the function in a thread, after those that wait already.

        Raises:
            RuntimeError: no thread can be started; nothing was called.
        """
        future: Future[T] = Future()
        self.give(future, partial(function, *args, **options))
        return future

    def give(self, future: Future[T], function: Callable[[], T]) -> None:
        """Do as :meth:`submit` does, with a new future that the caller has made.

        If an interrupt comes out of here, ``future.cancel()`` says whether it is called.
        """
        crew = self._own_crew()
        with crew.lock:
            if crew.unfinished >= len(crew.threads):
                self._start_one(crew)
            crew.unfinished += 1
            crew.jobs.put((future, function))

    def _own_crew(self) -> _Crew:
        crew = self._crew
        if crew.pid != os.getpid():
            with self._lock:
                if self._crew.pid != os.getpid():
                    self._crew = _Crew()
                crew = self._crew
        return crew

    def _start_one(self, crew: _Crew) -> None:
        """Start a thread, if the limit allows one more."""
        if self._limit is not None and len(crew.threads) >= self._limit:
            return
        thread = threading.Thread(target=_work, args=(crew,), name=self._name, daemon=True)
        try:
            crew.threads[thread] = None
            thread.start()
        except BaseException as error:  # an interrupt may come when it runs: then it notes itself
            crew.threads.pop(thread, None)
            can_wait = isinstance(error, RuntimeError) and self._limit is not None
            if not (can_wait and crew.threads):
                raise


async def _end_of(future: Future[Any]) -> None:
    ended = asyncio.wrap_future(future)
    ended.add_done_callback(asyncio.Future.exception)  # so nobody is told that it was not looked at
    await asyncio.wait((ended,))


def _work(crew: _Crew) -> None:
    """Make the calls of a crew until there are none: what its threads do."""
    me = threading.current_thread()
    with crew.lock:
        crew.threads[me] = None
    while True:
        try:
            job = crew.jobs.get(timeout=_IDLE)
        except Empty:
            with crew.lock:
                if crew.jobs.empty():
                    del crew.threads[me]
                    return
        else:
            _call(crew, *job)
            del job  # what it holds is not kept while this waits


def _call(crew: _Crew, future: Future[Any], function: Callable[[], Any]) -> None:
    wanted = future.set_running_or_notify_cancel()
    result, error = _outcome_of(function) if wanted else (None, None)
    with crew.lock:
        crew.unfinished -= 1
    if error is not None:
        future.set_exception(error)
    elif wanted:
        future.set_result(result)
    del future, error  # the error's traceback leads to this frame


def _outcome_of(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return what a function returns, or what it raises."""
    try:
        return function(), None
    except StopIteration as stop:  # a future cannot hold one
        return None, _stopped(stop)
    except BaseException as raised:  # whatever it is, its caller gets it
        return None, raised


def _stopped(stop: StopIteration) -> RuntimeError:
    error = RuntimeError("a call raised StopIteration")
    error.__cause__ = stop
    return error
