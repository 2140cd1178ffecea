"""Drive a flow with awaits, on the running event loop.

What an asynchronous store is asked is awaited, and needs no thread.

Of a blocking store nothing that may block runs on the loop: what may is called in threads of this
object's own. Reads from local memory run inline, and so do the changes of a prompt store, unless
one would wait. There are three sets of threads, so that none of these waits for the others: what
only looks, changes, and transactions. A transaction's handler is foreign code, which may wait for
another request of the same loop, so each transaction has a thread of its own.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
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
    Settled,
    Step,
    Transact,
    Undo,
    Wait,
)
from kvreplay._runtime.batching import Batcher, Each, change_each
from kvreplay._runtime.blocking import HandlerRaised, call, closed, transact
from kvreplay._runtime.renewal import RENEWALS_PER_LEASE
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import Settings
from kvreplay._runtime.singleflight import flights
from kvreplay._runtime.sweeping import Walk
from kvreplay._runtime.threads import AT_ONCE, Threads
from kvreplay._runtime.walking import (
    Look,
    NextAddress,
    Question,
    ReadAt,
    SweepIndex,
    look,
)
from kvreplay.errors import KeyNotFoundError, StoreUnavailableError
from kvreplay.events import logger
from kvreplay.store import (
    AsyncJoinableKVStore,
    AsyncJoinedTransaction,
    AsyncKVTransaction,
    BatchingKVStore,
    PromptKVStore,
    SweepResult,
    missing_methods,
)

__all__ = ["AsyncDriver"]

T = TypeVar("T")
_OfLoops = WeakKeyDictionary[asyncio.AbstractEventLoop, Batcher]


class AsyncDriver:
    """Answers the steps of the flows of one replay namespace, on any event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        store, blocks = settings.store, not settings.awaits
        self.reads_inline = blocks and bool(getattr(store, "reads_are_local", False))
        self._is_prompt = blocks and not missing_methods(store, PromptKVStore)
        self._batching = blocks and not missing_methods(store, BatchingKVStore)
        self._owners_block = settings.owners_file is not None
        self._looks = Threads("kvreplay-look", AT_ONCE)
        self._changes = Threads("kvreplay-change", AT_ONCE)
        self._waits = Threads("kvreplay-wait", None)
        self._transactions = Threads("kvreplay-transaction", None)
        self._changers: _OfLoops = WeakKeyDictionary()
        self._askers: _OfLoops = WeakKeyDictionary()

    async def drive(
        self,
        flow: Flow[T],
        run: Run,
        handler: Callable[..., Any] | None = None,
        transaction: AsyncJoinedTransaction | None = None,
    ) -> T:
        """Answer the flow's steps until it returns or raises; then end the run's token.

        Whatever is raised beside the flow, even a cancellation, is thrown into it.

        Args:
            transaction: what reads and puts, in the place of the store.
        """
        resume: Callable[[Any], Step] = flow.send
        answer: Any = None
        try:
            while True:
                try:
                    while True:  # its jump back is inside the try
                        step = resume(answer)
                        if transaction is not None and isinstance(step, Undo):
                            answer = None
                            await transaction.undo()
                        elif transaction is not None and isinstance(step, CheckAndPut | Read):
                            answer = await run.awaited_answer(step)
                        else:
                            answer = await self._answer(step, run, handler)
                        if run.is_observed:
                            run.emit_decision(step, answer)
                        resume = flow.send
                except BaseException as error:  # the flow decides, even about a cancellation
                    if flow.gi_frame is None:  # type: ignore[attr-defined]  # the flow's own
                        if isinstance(error, StopIteration):
                            return cast(T, error.value)
                        answer = None  # it may be the error, whose traceback holds this frame
                        run.locate(error)
                        raise
                    if run.is_inherited:
                        raise  # in a forked child the flow is its parent's
                    resume, answer = flow.throw, error
        finally:
            try:
                run.end(self._close_elsewhere)
            except BaseException:  # an interrupt
                run.end(self._close_elsewhere)
                raise

    async def join(
        self,
        store: AsyncJoinableKVStore,
        connection: object,
        steps: Flow[Settled | Raised],
        run: Run,
        handler: Callable[[Any], Any],
    ) -> Settled | Raised:
        """Do as :func:`kvreplay._runtime.blocking.join`, in the caller's own task."""
        try:
            async with store.join(connection, lock_timeout=run.lock_timeout) as transaction:
                run.join(transaction)
                try:
                    calling = functools.partial(handler, connection)
                    return await self.drive(steps, run, calling, transaction)
                except Exception as error:
                    if error is run.raised:
                        raise HandlerRaised from error
                    raise
        except HandlerRaised as undone:
            raised = cast(Exception, undone.__cause__)
        try:
            raise raised  # not through the store's block, as there
        finally:
            del raised

    def _close_elsewhere(self, close: Callable[[], None]) -> None:
        try:
            self._looks.submit(close)
        except RuntimeError:  # no thread can be started
            close()

    async def look(self, questions: Look[T]) -> T:
        """Answer the questions of what only looks, and return what comes of them."""
        if self._settings.awaits:
            return await self._look(questions)
        return await self._looks.call(look, questions, self._settings)

    async def sweep(self, walk: Walk, limit: int) -> SweepResult:
        """Sweep once."""
        if self._settings.awaits:
            loop = weakref.ref(asyncio.get_running_loop())
            return await self._look(walk.look(limit, loop))
        return await self._changes.call(walk.sweep, limit)

    async def wait(self, function: Callable[..., T], *args: Any) -> T:
        """Call in a thread of its own what waits for handlers."""
        return await self._waits.call(function, *args)

    async def _look(self, questions: Look[T]) -> T:
        resume: Callable[[Any], Question] = questions.send
        answer: Any = None
        while True:
            try:
                question = resume(answer)
            except StopIteration as end:
                return cast(T, end.value)
            except BaseException:
                answer = None  # it may be the error, whose traceback holds this frame
                raise
            try:
                answer, resume = await self._found(question), questions.send
            except Exception as error:  # the store's: what has been found before is not lost
                answer, resume = error, questions.throw

    async def _found(self, question: Question) -> Any:
        settings = self._settings
        if isinstance(question, NextAddress):
            return await anext(cast(AsyncIterator[Any], question.walk), None)
        if isinstance(question, ReadAt):
            try:
                return await settings.asked.read(*question.address)
            except KeyNotFoundError:
                return None
        if isinstance(question, SweepIndex):
            return await settings.asked.sweep(settings.name, question.now, question.limit)
        return await self.drive(question.flow, Run(settings, question.key))

    async def transact(
        self,
        step: Transact,
        run: Run,
        handler: Callable[[Any], Any],
        block: AbstractAsyncContextManager[AsyncKVTransaction],
    ) -> Any:
        """Drive the step's flow inside an awaited transaction, which its handler is given.

        Args:
            block: it is the transaction: it commits at its end, or undoes what was changed.
        """
        try:
            async with block as transaction:
                inner = run.inside(transaction)
                try:
                    own = functools.partial(handler, transaction)
                    return await self.drive(step.flow, inner, own)
                except Exception as error:
                    if run.takes_over(inner, error):
                        raise HandlerRaised from error
                    raise
        except HandlerRaised as undone:
            raised = cast(Exception, undone.__cause__)
        try:
            raise raised  # as in ``blocking.transact``
        finally:
            del raised

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
                if renewer is not None and not run.is_inherited:  # else it is the parent's
                    await renewer  # no renewal runs afterwards
            return ended, settings.now()
        if isinstance(step, Wait):
            left = run.waiting(step.delay)
            if left:
                await asyncio.sleep(left)
            return left > 0
        if isinstance(step, Reconcile):
            assert settings.reconcile is not None  # else the policy is another
            run.reconciling()
            return await _awaited(settings.reconcile(step.record)), settings.now()
        if isinstance(step, Transact):
            assert handler is not None
            if settings.is_only_awaited:
                return await self.transact(step, run, handler, settings.asked.transaction())
            return await self._transactions.call(transact, step, run, handler)
        if settings.awaits and isinstance(step, CheckAndPut | Read):
            return await run.awaited_answer(step)
        if isinstance(step, Begin | Probe) and self._owners_block:
            return await _of_loop(self._askers, _answer_each, self._looks).ask((run, step))
        if isinstance(step, Begin | Log | Probe) or (self.reads_inline and isinstance(step, Read)):
            return run.answer(step)
        if isinstance(step, CheckAndPut):
            run.refuse_child()  # here, since a child has none of its parent's threads
            if self._is_prompt:
                try:
                    return run.put_at_once(step)
                except StoreUnavailableError:
                    pass  # another thread is in a change: a thread waits for it
        if self._batching and isinstance(step, CheckAndPut):
            store = cast(BatchingKVStore, settings.store)
            ask_each = functools.partial(change_each, store)
            batcher = _of_loop(self._changers, ask_each, self._changes)
            return await batcher.ask(run.change(step)), settings.now()
        if isinstance(step, CheckAndPut):
            return await self._changes.call(run.answer, step)
        return await self._looks.call(run.answer, step)

    async def _renew(self, held: HeldClaim, run: Run, done: asyncio.Event) -> None:
        lease = self._settings.policy.lease or 0
        kept = True
        while kept:
            try:
                await asyncio.wait_for(done.wait(), lease / RENEWALS_PER_LEASE / 1000)
            except TimeoutError:
                own = Run(self._settings, run.key)
                try:
                    kept = await self.drive(renew(held, lease), own)
                except Exception as error:  # a failed renewal does not end the run
                    logger().warning("the renewal of a lease failed; it is tried again: %r", error)
            else:
                return


def _of_loop(batchers: _OfLoops, ask_each: Each, threads: Threads) -> Batcher:
    """Return the running loop's batcher."""
    loop = asyncio.get_running_loop()
    batcher = batchers.get(loop)
    if batcher is None:
        batcher = batchers[loop] = Batcher(ask_each, threads)
    return batcher


def _answer_each(asked: Sequence[tuple[Run, Step]]) -> list[Any]:
    """Answer the steps of several runs."""
    answers: list[Any] = []
    for run, step in asked:
        try:
            answers.append(run.answer(step))
        except Exception as error:  # that run's own
            answers.append(error)
    return answers


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
        response = step.response = await awaitable
    except Exception as error:  # the handler's, whatever it is
        return Raised(error)
    return closed(Returned(response))


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
