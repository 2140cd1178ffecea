"""What ``Replay`` and ``AsyncReplay`` share: all but how a call waits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from kvreplay._protocol import flow
from kvreplay._protocol.record import ReplayRecord, encode_response
from kvreplay._protocol.steps import Flow, Request, Settled
from kvreplay._runtime.decorating import (
    Functions,
    arguments_of,
    check_comparable,
    check_decorable,
)
from kvreplay._runtime.patience import FROM_SETTINGS, FromSettings, Patience, patience_ms
from kvreplay._runtime.requests import (
    Key,
    Outcome,
    outcome_of,
    replay_key,
    request_of,
    ttl_of,
)
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import Configured
from kvreplay._runtime.singleflight import Flight, flights, fresh
from kvreplay._runtime.sweeping import Walk
from kvreplay.clock import Duration
from kvreplay.errors import (
    ConfigError,
    InFlightError,
    InvalidParamsError,
    ParamsMismatchError,
)
from kvreplay.store import SweepResult

__all__ = ["LOOK_AGAIN", "AnyReplay", "Protocol"]

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")

Protocol = Callable[[Request, Any], Flow[Settled]]
"""A flow that answers a request: ``flow.execute`` or ``flow.execute_in_transaction``."""

LOOK_AGAIN = 1.0
"""Seconds, after which a follower looks again whether its leader's loop was closed."""


def _say_no_more(params: object) -> None:
    """The caller's own params have no names of arguments."""


class AnyReplay(Configured[V]):
    """The common part of :class:`~kvreplay.Replay` and :class:`~kvreplay.AsyncReplay`."""

    def _set_up(self) -> None:
        self._walk = Walk(self._settings)
        self._functions = Functions()

    def idempotent(
        self,
        *,
        key: Callable[P, Key],
        params: Callable[P, object] | None = None,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        operation: str | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorate a function so that a call with the same key returns its first response.

        ``Replay`` decorates plain functions, ``AsyncReplay`` coroutine functions. A second function
        of one replay needs an operation of its own, so that no two of them share an answer.

        Args:
            key: called with the call's own arguments; returns its key.
            params: called in the same way; returns what must be equal in a retry. Without it all
                arguments are compared, by name and with their defaults, except the ``self`` of a
                method and the ``cls`` of a class method. So what tells two objects apart belongs
                into the key.
            ttl: how long an answer is kept, in seconds or a timedelta; by default the setting.
            wait_timeout: how long a call waits for others; by default the setting.
            operation: the name that the stored keys of this function have, so that other functions
                have other keys; ``lookup``, ``resolve`` and ``release`` take it too. A new name
                forgets all answers, so do not derive it from the function's own.

        Raises:
            ConfigError: an argument is wrong, the function is the wrong kind, or another function
                of this replay has the operation.
        """
        for what, given in (("key", key), ("params", key if params is None else params)):
            if not callable(given):
                raise ConfigError(
                    f"{what}= is a {type(given).__name__}; give a function that is called with the"
                    " arguments of each call; nothing was decorated"
                )
        ttl_of(self._settings, ttl)
        self._limit_of(wait_timeout)

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            check_decorable(function)
            params_of = arguments_of(function) if params is None else params

            def call_of(*args: Any, **kwargs: Any) -> tuple[Key, object, Callable[[], R]]:
                return (
                    replay_key(key(*args, **kwargs), operation),
                    params_of(*args, **kwargs),
                    functools.partial(function, *args, **kwargs),
                )

            explain = check_comparable if params is None else _say_no_more
            replayed: Callable[P, R] = self._replaying(
                function, call_of, ttl, wait_timeout, explain
            )
            self._functions.add(function, operation)
            return functools.wraps(function)(replayed)

        return decorate

    def _replaying(
        self,
        function: Callable[..., Any],
        call_of: Callable[..., tuple[Key, object, Callable[[], Any]]],
        ttl: Duration | None,
        wait_timeout: Duration | FromSettings | None,
        explain: Callable[[Any], None],
    ) -> Callable[..., Any]:
        """Return the function that answers each call by ``execute``.

        ``explain`` raises a better error, if it has one, for params that were refused.
        """
        raise NotImplementedError  # each of the two answers in its own way

    # Settling a key in doubt, and looking a key up: the flow, and the run that answers its steps.

    def _resolving(
        self,
        key: Key,
        operation: str | None,
        response: object,
        ttl: Duration | None,
        seen: ReplayRecord | None,
    ) -> tuple[Flow[bool], Run]:
        packed = encode_response(response, "nothing was changed")
        return self._settling(key, operation, packed, ttl, seen)

    def _releasing(
        self, key: Key, operation: str | None, seen: ReplayRecord | None
    ) -> tuple[Flow[bool], Run]:
        return self._settling(key, operation, None, None, seen)

    def _settling(
        self,
        key: Key,
        operation: str | None,
        response: bytes | None,
        ttl: Duration | None,
        seen: ReplayRecord | None,
    ) -> tuple[Flow[bool], Run]:
        settings, own = self._settings, replay_key(key, operation)
        if not isinstance(seen, ReplayRecord | None):
            raise InvalidParamsError(
                f"seen= is a {type(seen).__name__}; give the record that was looked at, as"
                " records() yields it; nothing was changed"
            )
        steps = flow.settle(own, response, ttl_of(settings, ttl), settings.policy, seen)
        return steps, Run(settings, own)

    def _looking_up(
        self, key: Key, operation: str | None, params: object
    ) -> tuple[Flow[Settled | None], Run]:
        request = request_of(self._settings, replay_key(key, operation), params, None)
        self._refuse_running(request)
        return flow.lookup(request, self._settings.policy), Run(self._settings, request.key)

    def _found(self, settled: Settled | None, run: Run) -> Outcome | None:
        if settled is None:
            return None
        self._settings.observer.emit_answer(settled, run.key)
        return outcome_of(settled, replayed=True)

    def _refuse_running(self, request: Request) -> None:
        """Raise for a key that this process is running."""
        flight = flights.bound(self._settings.flight_key(request.key))
        if flight is None:
            return
        if flight.params != request.params:
            raise self._running_with_others(request)
        raise InFlightError("this process is running the key; nothing was changed", 1.0)

    # Leading and following in single-flight.

    def _limit_of(self, wait_timeout: Duration | FromSettings | None) -> int | None:
        """Return how long a call waits (ms): what it says itself, or the setting."""
        if isinstance(wait_timeout, FromSettings):
            return self._settings.wait_timeout
        return patience_ms(wait_timeout)

    def _flight_of(self, request: Request) -> Flight[object]:
        return Flight(self._settings.flight_key(request.key), request.params)

    def _begin_to_follow(
        self, flight: Flight[object], request: Request, patience: Patience
    ) -> bool:
        """Return whether to wait only until the flight is bound: its params are others."""
        if flights.is_aboard(flight):  # it would wait for itself
            raise InFlightError(
                "a handler asked for the very key that it is running; nothing ran a second time",
                1.0,
            )
        if flight.params != request.params:
            return True
        if patience.left(LOOK_AGAIN):
            self._settings.observer.emit("waited", request.key)
        return False

    def _time_to_follow(self, patience: Patience) -> float:
        """Return after how many seconds a follower looks again.

        Raises:
            InFlightError: its time to wait is over.
        """
        left = patience.left(LOOK_AGAIN)
        if not left:
            raise InFlightError(
                "this process is running the key, and that run has not ended within wait_timeout;"
                " nothing ran here, and that run goes on: ask again later",
                1.0,
            )
        return left

    def _share(
        self, flight: Flight[object], request: Request, patience: Patience
    ) -> Outcome | None:
        """Return or raise a follower's own copy of the leader's result; ``None``: start over."""
        if flight.params != request.params:
            if flight.bound:
                raise self._running_with_others(request)
            return None
        result = flight.result
        if isinstance(result, Settled):
            self._settings.observer.emit("replayed", request.key)
            return outcome_of(result, replayed=True)
        if flight.out_of_time and patience.left(LOOK_AGAIN):
            return None  # its leader has waited long enough for another owner, and this has not
        if isinstance(result, Exception):
            raise fresh(result) from result
        return None  # interrupted; the record shows how the run ended

    def _shared(self, error: Exception) -> Exception:
        """Return a copy of a leader's error for its followers, with its traceback.

        To the error itself its caller may add notes, which are nobody else's business.
        """
        return fresh(error).with_traceback(error.__traceback__)

    def _running_with_others(self, request: Request) -> ParamsMismatchError:
        self._settings.observer.emit("params_mismatch", request.key)
        return ParamsMismatchError(
            "this key is being run with other params; nothing ran here, and that run is untouched"
        )

    # Sweeping.

    def _emit_swept(self, result: SweepResult) -> SweepResult:
        self._settings.observer.emit("swept", None, result)
        return result
