"""Drive a flow with blocking calls, on this thread."""

from __future__ import annotations

import inspect
import operator
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final, Protocol, TypeVar, cast

from kvreplay._protocol.steps import (
    Call,
    Flow,
    HeldClaim,
    Raised,
    Reconcile,
    Returned,
    Settled,
    Step,
    Transact,
    Wait,
)
from kvreplay._runtime.run import PLAIN, Run
from kvreplay._runtime.singleflight import flights
from kvreplay.store import JoinableKVStore, KVTransaction, TransactionalKVStore

__all__ = ["HandlerRaised", "Holding", "call", "closed", "drive", "join", "transact"]

T = TypeVar("T")
_NOTHING: Final = nullcontext()


class Holding(Protocol):
    """A claim that is renewed between ``begin`` and ``end``; a second ``end`` does nothing."""

    def begin(self) -> None:
        """Renew it from now on."""

    def end(self) -> None:
        """Renew it no more: no renewal runs afterwards."""


Renewing = Callable[[HeldClaim, Run], Holding]


def drive(
    flow: Flow[T],
    run: Run,
    handler: Callable[..., Any] | None = None,
    *,
    renewing: Renewing | None = None,
) -> T:
    """Answer the flow's steps until it returns or raises; then end the run's token.

    Whatever is raised beside the flow, even an interrupt between two steps, is thrown into it.
    """
    resume: Callable[[Any], Step] = flow.send
    answer: Any = None
    try:
        while True:
            try:
                while True:  # its jump back is inside the try
                    step = resume(answer)
                    if type(step) in PLAIN:
                        answer = run.answer(step)
                    else:
                        answer = _answer(step, run, handler, renewing)
                    if run.is_observed:
                        run.emit_decision(step, answer)
                    resume = flow.send
            except BaseException as error:  # the flow decides, even about an interrupt
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
            run.end()
        except BaseException:  # an interrupt
            run.end()
            raise


def transact(step: Transact, run: Run, handler: Callable[[KVTransaction], Any]) -> Any:
    """Drive the step's flow inside one transaction, which its handler is given."""
    store = cast(TransactionalKVStore, run.settings.store)
    try:
        with store.transaction() as transaction:
            inner = run.inside(transaction)
            try:
                return drive(step.flow, inner, lambda: handler(transaction))
            except Exception as error:
                if run.takes_over(inner, error):
                    raise HandlerRaised from error
                raise
    except HandlerRaised as undone:
        raised = cast(Exception, undone.__cause__)
    try:
        raise raised  # not through the store's block, where a frozen one may become another
    finally:
        del raised  # its traceback holds this frame


def join(
    store: JoinableKVStore,
    connection: object,
    steps: Flow[Settled | Raised],
    run: Run,
    handler: Callable[[Any], Any],
) -> Settled | Raised:
    """Drive a flow inside the transaction that is open on a connection of the caller's."""
    try:
        with store.join(connection, lock_timeout=run.lock_timeout) as transaction:
            run.join(transaction)
            try:
                return drive(steps, run, partial(handler, connection))
            except Exception as error:
                if error is run.raised:
                    raise HandlerRaised from error
                raise
    except HandlerRaised as undone:
        raised = cast(Exception, undone.__cause__)
    try:
        raise raised  # as above
    finally:
        del raised


class HandlerRaised(Exception):
    """What a store's transaction sees if the handler raised: its cause."""


def _answer(
    step: object, run: Run, handler: Callable[..., Any] | None, renewing: Renewing | None
) -> Any:
    settings = run.settings
    if isinstance(step, Call):
        assert handler is not None  # a flow that calls is driven with one
        run.calling()
        holding = renewing(step.held, run) if renewing and step.held else None
        try:
            if holding is not None:
                holding.begin()
            with flights.aboard(run.flight) if run.flight else _NOTHING:
                ended = run.ended(closed(call(step, handler)))
        finally:
            if holding is not None:
                try:
                    holding.end()
                except BaseException:  # an interrupt
                    holding.end()
                    raise
        return ended, settings.now()
    if isinstance(step, Wait):
        left = run.waiting(step.delay)
        if left:
            time.sleep(left)
        return left > 0
    if isinstance(step, Reconcile):
        assert settings.reconcile is not None  # else the policy is another
        run.reconciling()
        return settings.reconcile(step.record), settings.now()
    assert isinstance(step, Transact)  # the last step that needs a handler
    assert handler is not None
    return transact(step, run, handler)


class _Calling:
    """``_calling[handler]`` calls it by an operator, after which CPython looks for no signal."""

    __getitem__: Any = operator.call


_calling: Final = _Calling()


def call(step: Call, handler: Callable[..., Any]) -> Returned | Raised:
    """Call the handler; only its own ``Exception`` can say that nothing happened.

    An interrupt that comes right after the call is not taken for the handler's own.
    """
    step.begun = True
    try:
        response = step.response = _calling[handler]
    except Exception as error:  # the handler's, whatever it is
        if isinstance(error, TypeError) and _is_refused(error, handler):
            step.begun = False
        return Raised(error)
    return Returned(response)


def _is_refused(error: TypeError, handler: object) -> bool:
    """Say whether Python refused to call a function without arguments: then nothing of it ran."""
    while isinstance(handler, partial):
        handler = handler.func
    if isinstance(handler, MethodType):
        handler = handler.__func__
    traceback = error.__traceback__
    own_frame_only = traceback is not None and traceback.tb_next is None
    return isinstance(handler, FunctionType) and own_frame_only


def closed(ended: Returned | Raised) -> Returned | Raised:
    """Return how the handler ended; a coroutine that it returned and nobody awaits is closed."""
    if isinstance(ended, Returned) and inspect.iscoroutine(ended.response):
        ended.response.close()
    return ended
