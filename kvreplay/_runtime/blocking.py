"""Drive a flow with blocking calls, on this thread."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeVar, cast

from kvreplay._protocol.steps import (
    Call,
    Flow,
    HeldClaim,
    Raised,
    Reconcile,
    Returned,
    Transact,
    Wait,
)
from kvreplay._runtime.run import PLAIN, Run
from kvreplay._runtime.singleflight import flights
from kvreplay.errors import ConfigError
from kvreplay.store import KVTransaction, TransactionalKVStore

__all__ = ["drive", "transact"]

T = TypeVar("T")
_NOTHING: Final = nullcontext()
Renewing = Callable[[HeldClaim, Run], AbstractContextManager[object]]


def drive(
    flow: Flow[T],
    run: Run,
    handler: Callable[..., Any] | None = None,
    *,
    renewing: Renewing | None = None,
) -> T:
    """Answer the flow's steps until it returns or raises; then end the run's token."""
    try:
        step = next(flow)
        while True:
            try:
                if type(step) in PLAIN:
                    answer = run.answer(step)
                else:
                    answer = _answer(step, run, handler, renewing)
            except BaseException as error:  # the flow decides, even about an interrupt
                step = flow.throw(error)
            else:
                if run.is_observed:
                    run.emit_decision(step, answer)
                step = flow.send(answer)
    except StopIteration as returned:
        return cast(T, returned.value)
    finally:
        run.end()


def transact(step: Transact, run: Run, handler: Callable[[KVTransaction], Any]) -> Any:
    """Drive the step's flow inside one transaction, which its handler is given."""
    store = cast(TransactionalKVStore, run.settings.store)
    with store.transaction() as transaction:
        inner = run.inside(transaction)
        try:
            return drive(step.flow, inner, lambda: handler(transaction))
        finally:
            run.raised = inner.raised


def _answer(
    step: object, run: Run, handler: Callable[..., Any] | None, renewing: Renewing | None
) -> Any:
    clock = run.settings.clock
    if isinstance(step, Call):
        assert handler is not None  # a flow that calls is driven with one
        run.calling()
        holding = renewing(step.held, run) if renewing and step.held else _NOTHING
        with holding, flights.aboard(run.flight) if run.flight else _NOTHING:
            ended = run.ended(_call(handler))
        return ended, clock.now_ms()
    if isinstance(step, Wait):
        run.waiting()
        time.sleep(step.delay / 1000)
        return None
    if isinstance(step, Reconcile):
        assert run.settings.reconcile is not None  # else the policy is another
        run.bind()
        return run.settings.reconcile(step.record), clock.now_ms()
    assert isinstance(step, Transact)  # the last step that needs a handler
    assert handler is not None
    return transact(step, run, handler)


def _call(handler: Callable[..., Any]) -> Returned | Raised:
    """Call the handler; only its own ``Exception`` says that nothing happened."""
    try:
        response = handler()
    except Exception as error:  # the handler's, whatever it is
        return Raised(error)
    if inspect.iscoroutine(response):
        response.close()  # it has not begun
        return Raised(
            ConfigError("the handler is a coroutine function: use AsyncReplay.execute; nothing ran")
        )
    return Returned(response)
