"""Drive a flow with blocking calls, on this thread."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import starmap
from typing import Any, Final, Protocol, TypeVar, cast

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

__all__ = ["Holding", "call", "drive", "transact"]

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
        try:
            run.end()
        except BaseException:  # an interrupt
            run.end()
            raise


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
        holding = renewing(step.held, run) if renewing and step.held else None
        try:
            if holding is not None:
                holding.begin()
            with flights.aboard(run.flight) if run.flight else _NOTHING:
                ended = run.ended(_call(handler))
        finally:
            if holding is not None:
                try:
                    holding.end()
                except BaseException:  # an interrupt
                    holding.end()
                    raise
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


def call(handler: Callable[..., Any]) -> Returned | Raised:
    """Call the handler; only its own ``Exception`` says that nothing happened."""
    responses: list[Any] = []
    calling = starmap(handler, ((),))
    try:
        # By an operator: an interrupt that comes right after a call is not the handler's own.
        responses += calling
    except Exception as error:  # the handler's, whatever it is
        return Raised(error)
    if not responses:
        return Raised(RuntimeError("the handler raised StopIteration"))
    return Returned(responses[0])


def _call(handler: Callable[..., Any]) -> Returned | Raised:
    ended = call(handler)
    if isinstance(ended, Returned) and inspect.iscoroutine(ended.response):
        ended.response.close()  # it has not begun
        return Raised(
            ConfigError("the handler is a coroutine function: use AsyncReplay.execute; nothing ran")
        )
    return ended
