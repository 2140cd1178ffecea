"""The flow generators as values: a flow is what it was made of and the answers that it was sent.

A generator cannot be copied, so it is made anew and sent the same answers again. Equal answers lead
to the same :class:`Node`, which makes two states of the world comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from kvreplay import (
    ClaimLostError,
    IndeterminateError,
    NotAppliedError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from kvreplay._protocol import flow as real_flow
from kvreplay._protocol.record import decode
from kvreplay._protocol.steps import (
    BEGIN,
    READ,
    Call,
    Flow,
    HeldClaim,
    NotStored,
    Policy,
    Raised,
    Returned,
    Transact,
)


class Declined(Exception):
    """A handler's own, which says that nothing happened."""


class Refused(Exception):
    """A handler's own, which is its answer: a final failure."""


class Interrupted(BaseException):
    """What ends a call without a word of the handler."""


def scattered(message: str) -> Exception:
    """What a task group raises of a leg that declined, and one that does not know its end."""
    return ExceptionGroup(message, [Declined(), ExceptionGroup("", [IndeterminateError()])])


ERRORS: dict[str, Callable[[str], BaseException]] = {
    "ExceptionGroup": scattered,
    **{
        each.__name__: each
        for each in (
            ClaimLostError,
            Declined,
            Refused,
            Interrupted,
            IndeterminateError,
            NotAppliedError,
            OutcomeUnknownError,
            StoreUnavailableError,
            TimeoutError,
        )
    },
}


class Sent(NamedTuple):
    """An answer as it is sent."""

    value: Any

    def give(self, flow: Flow[Any], step: Any) -> Any:
        return flow.send(self.value)


class Thrown(NamedTuple):
    """A step that failed, by the name of its error; ``begun``: the handler had begun by then."""

    error: str
    begun: bool = False

    def give(self, flow: Flow[Any], step: Any) -> Any:
        if self.begun:
            step.begun = True
        return flow.throw(ERRORS[self.error]("simulated"))


class Ended(NamedTuple):
    """The end of a call, and the claim as the renewals of that time have left it.

    ``kept``: what it returned is to be stored.
    """

    response: str | None
    error: str | None
    now: int
    held: bytes | None
    kept: bool = True

    def give(self, flow: Flow[Any], step: Call) -> Any:
        if step.held is not None:
            assert self.held is not None
            step.held.data = self.held
        step.begun = True
        if self.error is None:
            response = self.response if self.kept else NotStored(self.response)
            return flow.send((Returned(response), self.now))
        return flow.send((Raised(ERRORS[self.error](self.response or "simulated")), self.now))


class Undone(NamedTuple):
    """A transaction that was undone, since its handler has raised: what it read, and that end."""

    found: bytes | None
    ended: Ended

    def give(self, flow: Flow[Any], step: Transact) -> Any:
        next(step.flow)
        try:
            self.ended.give(step.flow, step.flow.send((self.found, self.ended.now)))
        except Exception as error:  # the handler's own: the outer flow decides about it
            return flow.throw(error.with_traceback(None))
        raise AssertionError("the transaction went on")


class Committed(NamedTuple):
    """What a transaction returned; ``kept``: an answer is stored. Two that differ so are equal."""

    value: Any
    kept: bool

    def give(self, flow: Flow[Any], step: Transact) -> Any:
        return flow.send(self.value)


Answer = Sent | Thrown | Ended | Undone | Committed
Make = Callable[[], tuple[Flow[Any], HeldClaim | None]]


class Node:
    """A flow after some answers: at a ``step``, or over with a ``result`` or an ``error``."""

    __slots__ = ("_answers", "_make", "_next", "begun", "error", "held", "result", "step")

    def __init__(self, make: Make, answers: tuple[Answer, ...] = (), begun: int = 0) -> None:
        self._make = make
        self._answers = answers
        self._next: dict[Answer, Node] = {}
        self.begun = begun
        self.step: Any = None
        self.result: Any = None
        self.error: BaseException | None = None
        flow, held = make()
        try:
            self.step = self._advance(flow)
        except StopIteration as returned:
            self.result = returned.value
        except BaseException as error:  # of the flow, whatever it is: the invariants judge it
            self.error = error.with_traceback(None)
        if isinstance(self.step, Call):
            held = self.step.held
        self.held = None if held is None else held.data

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def over(self) -> bool:
        return self.step is None

    def again(self) -> Any:
        """Return the step of a generator of its own."""
        flow, _ = self._make()
        return self._advance(flow)

    def _advance(self, flow: Flow[Any]) -> Any:
        step = next(flow)
        for answer in self._answers:
            step = answer.give(flow, step)
        return step

    def after(self, answer: Answer) -> Node:
        found = self._next.get(answer)
        if found is None:
            begun = self.begun + (self.step is BEGIN)
            found = self._next[answer] = Node(self._make, (*self._answers, answer), begun)
        return found


class Protocol(NamedTuple):
    """The flows of one ``flow.py``: the real one, or one with a bug planted in it."""

    execute: Callable[..., Flow[Any]]
    execute_in_transaction: Callable[..., Flow[Any]]
    execute_joined: Callable[..., Flow[Any]]
    lookup: Callable[..., Flow[Any]]
    settle: Callable[..., Flow[Any]]
    forget: Callable[..., Flow[Any]]
    renew: Callable[..., Flow[Any]]
    prune: Callable[..., Flow[Any]]

    @classmethod
    def of(cls, module: ModuleType | SimpleNamespace) -> Protocol:
        return cls(*(getattr(module, name) for name in cls._fields))

    def walk(self, policy: Policy) -> Flow[bool]:
        """Visit the entry as ``Replay.sweep`` does on a store that keeps no index."""
        found, now = yield READ
        if found is None:
            return False
        return (yield from self.prune(found, decode(found), now, policy))

    def renewal(self, data: bytes, lease: int) -> tuple[Flow[bool], HeldClaim]:
        record = decode(data)
        held = HeldClaim(record)
        held.data = data
        return self.renew(held, lease), held


REAL = Protocol.of(real_flow)


def without_held(make: Callable[[], Iterator[Any]]) -> Make:
    return lambda: (make(), None)  # type: ignore[return-value]
