"""Drive a flow with awaits, on the running event loop.

Store calls that wait for a disk run in the loop's default executor; reads from local memory run
inline.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from kvreplay._protocol.flow import renew
from kvreplay._protocol.steps import (
    Begin,
    Call,
    CheckAndPut,
    Flow,
    HeldClaim,
    Log,
    Probe,
    Raised,
    Read,
    Reconcile,
    Returned,
    Step,
    Transact,
    Wait,
)
from kvreplay._runtime.batching import Batcher
from kvreplay._runtime.blocking import call, closed, transact
from kvreplay._runtime.renewal import RENEWALS_PER_LEASE
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import Settings
from kvreplay._runtime.singleflight import flights
from kvreplay.events import logger
from kvreplay.store import BatchingKVStore, missing_methods

__all__ = ["AsyncDriver", "in_thread"]

T = TypeVar("T")


class AsyncDriver:
    """Answers the steps of the flows of one replay namespace, on any event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.reads_inline = bool(getattr(settings.store, "reads_are_local", False))
        self._batching = not missing_methods(settings.store, BatchingKVStore)
        self._batchers: WeakKeyDictionary[asyncio.AbstractEventLoop, Batcher] = WeakKeyDictionary()

    async def drive(self, flow: Flow[T], run: Run, handler: Callable[..., Any] | None = None) -> T:
        """Answer the flow's steps until it returns or raises; then end the run's token.

        Whatever is raised beside the flow, even a cancellation, is thrown into it.
        """
        resume: Callable[[Any], Step] = flow.send
        answer: Any = None
        try:
            while True:
                try:
                    while True:  # its jump back is inside the try
                        step = resume(answer)
                        answer = await self._answer(step, run, handler)
                        if run.is_observed:
                            run.emit_decision(step, answer)
                        resume = flow.send
                except BaseException as error:  # the flow decides, even about a cancellation
                    if flow.gi_frame is None:  # type: ignore[attr-defined]  # the flow's own
                        if isinstance(error, StopIteration):
                            return cast(T, error.value)
                        answer = None  # it may be the error, whose traceback holds this frame
                        raise
                    if run.is_inherited:
                        raise  # in a forked child the flow is its parent's
                    resume, answer = flow.throw, error
        finally:
            try:
                run.end()
            except BaseException:  # an interrupt
                run.end()
                raise

    async def _answer(self, step: Step, run: Run, handler: Callable[..., Any] | None) -> Any:
        settings = self._settings
        if isinstance(step, Call):
            assert handler is not None  # a flow that calls is driven with one
            run.calling()
            done, renewer = asyncio.Event(), None
            try:
                if step.held is not None and settings.renew:
                    renewer = asyncio.create_task(self._renew(step.held, run, done))
                with flights.aboard(run.flight) if run.flight else nullcontext():
                    ended = run.ended(await _called(step, handler))
            finally:
                try:
                    done.set()
                except BaseException:  # an interrupt
                    done.set()
                    raise
                if renewer is not None:
                    await renewer  # no renewal runs afterwards
            return ended, settings.now()
        if isinstance(step, Wait):
            run.waiting()
            return await asyncio.sleep(step.delay / 1000)
        if isinstance(step, Reconcile):
            assert settings.reconcile is not None  # else the policy is another
            run.bind()
            return await _awaited(settings.reconcile(step.record)), settings.now()
        if isinstance(step, Transact):
            assert handler is not None
            return await in_thread(transact, step, run, handler)
        if isinstance(step, Begin | Log | Probe) or (self.reads_inline and isinstance(step, Read)):
            return run.answer(step)
        if isinstance(step, CheckAndPut):
            run.refuse_child()  # here, since a child has none of its parent's threads
        if self._batching and isinstance(step, CheckAndPut):
            return await self._batcher().check_and_put(run.change(step)), settings.now()
        return await in_thread(run.answer, step)

    def _batcher(self) -> Batcher:
        """Return the running loop's batcher."""
        loop = asyncio.get_running_loop()
        batcher = self._batchers.get(loop)
        if batcher is None:
            batcher = Batcher(cast(BatchingKVStore, self._settings.store))
            self._batchers[loop] = batcher
        return batcher

    async def _renew(self, held: HeldClaim, run: Run, done: asyncio.Event) -> None:
        lease = self._settings.policy.lease or 0
        kept = True
        while kept:
            try:
                await asyncio.wait_for(done.wait(), lease / RENEWALS_PER_LEASE / 1000)
            except TimeoutError:
                own = Run(self._settings, run.key)
                try:
                    kept = await self.drive(renew(held, run.key, lease), own)
                except Exception as error:  # a failed renewal does not end the run
                    logger().warning("the renewal of a lease failed; it is tried again: %r", error)
            else:
                return


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a blocking function in the loop's default executor.

    A cancellation does not stop the thread, so it is raised when the call has ended: what the
    caller does about it must not come before a change that the call still makes.
    """
    loop = asyncio.get_running_loop()
    call = loop.run_in_executor(None, functools.partial(function, *args))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait((call,))
        raise
    finally:
        del call  # it may hold an error, whose traceback holds this frame


async def _called(step: Call, handler: Callable[..., Any]) -> Returned | Raised:
    """Call the handler; only its own ``Exception`` can say that nothing happened."""
    if inspect.iscoroutinefunction(handler):
        awaitable = handler()  # this runs nothing of it
    else:
        ended = call(step, handler)
        if isinstance(ended, Raised) or not inspect.isawaitable(ended.response):
            return ended
        awaitable = ended.response
    step.begun = True
    try:
        response = await awaitable
    except Exception as error:  # the handler's, whatever it is
        return Raised(error)
    return closed(Returned(response))


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
