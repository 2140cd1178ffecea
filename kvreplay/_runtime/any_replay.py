"""What ``Replay`` and ``AsyncReplay`` share: all but how a call waits."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar

from kvreplay._protocol import flow
from kvreplay._protocol.codec import Codec
from kvreplay._protocol.endings import is_final
from kvreplay._protocol.record import ReplayRecord, encode_response
from kvreplay._protocol.steps import Flow, Raised, Request, Settled
from kvreplay._runtime.decorating import (
    Answers,
    Called,
    Calling,
    Functions,
    arguments_of,
    check_comparable,
    check_decorable,
)
from kvreplay._runtime.patience import FromSettings, Patience, patience_ms
from kvreplay._runtime.requests import (
    Key,
    Outcome,
    outcome_of,
    replay_key,
    request_of,
    ttl_of,
)
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import Configured, hooks
from kvreplay._runtime.singleflight import Flight, flights, fresh
from kvreplay._runtime.sweeping import Walk
from kvreplay.clock import Duration
from kvreplay.errors import (
    ConfigError,
    InFlightError,
    InvalidParamsError,
    ParamsMismatchError,
    ReplayClosedError,
    ReplayError,
    ResponseTypeError,
    StoredFailureError,
)
from kvreplay.store import SweepResult

__all__ = ["LOOK_AGAIN", "AnyReplay", "Protocol"]

S = TypeVar("S")
V = TypeVar("V")

Protocol = Callable[[Request, Any], Flow[Settled]]
"""A flow that answers a request: ``flow.execute`` or ``flow.execute_in_transaction``."""

LOOK_AGAIN = 1.0
"""Seconds, after which a follower looks again whether its leader's loop was closed."""


_CHECKED: Final[set[object]] = set()
"""The handlers whose annotations were looked at: the code, and the annotation itself."""

_MANY: Final = 512


def _says_what_it_returns(function: object) -> bool:
    return "return" in getattr(function, "__annotations__", ())


def _say_no_more(params: object) -> None:
    """The caller's own params have no names of arguments."""


class AnyReplay(Configured[S, V]):
    """The common part of :class:`~kvreplay.Replay` and :class:`~kvreplay.AsyncReplay`."""

    def _set_up(self) -> None:
        self._walk = Walk(self._settings)
        self._functions = Functions()

    def _decorator(
        self,
        *,
        key: Callable[..., Key],
        params: Callable[..., object] | None,
        ttl: Duration | None,
        wait_timeout: Duration | FromSettings | None,
        operation: str | None,
        returns: object,
        encode: Callable[[Any], object] | None,
        decode: Callable[[Any], Any] | None,
        outcome: bool,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Check what :meth:`kvreplay.Replay.idempotent` is given, and return its decorator."""
        for what, given in (("key", key), ("params", key if params is None else params)):
            if not callable(given):
                raise ConfigError(
                    f"{what}= is a {type(given).__name__}; give a function that is called with the"
                    " arguments of each call; nothing was decorated"
                )
        ttl_of(self._settings, ttl)
        self._limit_of(wait_timeout)
        own = hooks(encode, decode)
        if own is not None and returns is not None:
            raise ConfigError(
                "returns= and encode= both say how an answer is stored: give one of them; nothing"
                " was decorated"
            )

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            check_decorable(function)
            params_of = arguments_of(function) if params is None else params

            def find() -> Codec[Any] | None:
                codec = self._codec_of(returns) if own is None else own
                if codec is None and returns is None and _says_what_it_returns(function):
                    from kvreplay._typed.codecs import annotated  # late, as below

                    codec = annotated(function)
                return codec

            answers = Answers(function, find)

            def call_of(*args: Any, **kwargs: Any) -> Called:
                return Called(
                    replay_key(key(*args, **kwargs), operation),
                    params_of(*args, **kwargs),
                    functools.partial(function, *args, **kwargs),
                )

            explain = check_comparable if params is None else _say_no_more
            calling = Calling(call_of, ttl, wait_timeout, explain, answers, outcome)
            replayed = self._replaying(function, calling)
            self._functions.add(function, operation, answers)
            return functools.wraps(function)(replayed)

        return decorate

    def _codec_of(self, returns: object) -> Codec[Any] | None:
        """Return how a call's answer is stored: as it says itself, or as the settings say."""
        if isinstance(returns, Codec):
            return returns
        if returns is not None:
            from kvreplay._typed.codecs import codec_of  # late: most answers have no type

            return codec_of(returns, "returns= is")
        return self._settings.codec

    def _check_answer(self, handler: Callable[..., Any], request: Request) -> None:
        """Refuse a handler whose annotation shows that its answer cannot be stored.

        Raises:
            ConfigError: nothing ran.
        """
        if request.codec is not None or not _says_what_it_returns(handler):
            return
        # Code alone would not do: a decorator gives that of its wrapper to all functions.
        own = inspect.unwrap(handler)
        look = getattr(own, "__code__", None), getattr(own, "__annotations__", {}).get("return")
        with contextlib.suppress(TypeError):  # an annotation is any object
            if look in _CHECKED:
                return
        from kvreplay._typed.codecs import check_plain_answer  # late, likewise

        check_plain_answer(handler)
        if len(_CHECKED) >= _MANY:
            _CHECKED.clear()
        with contextlib.suppress(TypeError):
            _CHECKED.add(look)

    def _codec_to_look(self, returns: object, key: Key, operation: str | None) -> Codec[Any] | None:
        """Return how an answer is read: the function that has the operation may say it."""
        if returns is not None:
            return self._codec_of(returns)
        own = replay_key(key, operation)
        return self._functions.codec_of(own.operation) or self._settings.codec

    def _replaying(self, function: Callable[..., Any], calling: Calling) -> Callable[..., Any]:
        """Return the function that answers each call."""
        raise NotImplementedError  # each of the two answers in its own way

    # Settling a key in doubt, and looking a key up: the flow, and the run that answers its steps.

    def _resolving(
        self,
        key: Key,
        operation: str | None,
        response: object,
        ttl: Duration | None,
        seen: ReplayRecord | None,
        returns: object,
    ) -> tuple[Flow[bool], Run]:
        codec = self._codec_to_look(returns, key, operation)
        packed = encode_response(response, "nothing was changed", codec)
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
        _check_seen(seen)
        steps = flow.settle(own, response, ttl_of(settings, ttl), settings.policy, seen)
        return steps, Run(settings, own, began=settings.observer.began())

    def _forgetting(
        self, key: Key, operation: str | None, seen: ReplayRecord | None
    ) -> tuple[Flow[bool], Run]:
        own = replay_key(key, operation)
        _check_seen(seen)
        return flow.forget(own, seen), Run(
            self._settings, own, began=self._settings.observer.began()
        )

    def _looking_up(
        self, key: Key, operation: str | None, params: object, returns: object
    ) -> tuple[Flow[Settled | None], Run, Request]:
        codec = self._codec_to_look(returns, key, operation)
        request = request_of(self._settings, replay_key(key, operation), params, None, codec)
        self._refuse(request)
        run = Run(self._settings, request.key, began=request.began)
        return flow.lookup(request, self._settings.policy), run, request

    def _found(self, settled: Settled | None, run: Run, request: Request) -> Outcome[Any] | None:
        if settled is None:
            return None
        return self._outcome(settled, run, request)

    def _outcome(self, settled: Settled, run: Run, request: Request) -> Outcome[Any]:
        """Return a run's outcome, or raise the final failure; tell how the request ended."""
        try:
            outcome = outcome_of(self._settings, settled, request, replayed=settled.replayed)
        except ResponseTypeError as error:
            run.failed(error)
            raise
        except Exception:
            run.answered(settled)
            raise
        run.answered(settled)
        return outcome

    def _tell(self, error: BaseException, request: Request) -> None:
        """Tell how a request ended that has run nothing itself."""
        settings = self._settings
        if is_final(error, settings.policy) or isinstance(error, StoredFailureError):
            settings.observer.emit("replayed", request.key, request.began)
        else:
            settings.observer.emit_error(error, request.key, request.began)

    def _refuse(self, request: Request) -> None:
        """Raise for a key that this process is running, and tell so."""
        try:
            self._refuse_running(request)
        except ReplayError as error:
            self._tell(error, request)
            raise

    def _refuse_running(self, request: Request) -> None:
        """Raise for a key that this process is running."""
        flight = flights.bound(self._settings.flight_key(request.key))
        if flight is None:
            return
        if flight.params != request.params:
            raise self._running_with_others()
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
        if patience.left(LOOK_AGAIN) and not patience.has_waited:
            patience.has_waited = True
            self._settings.observer.emit("waited", request.key, request.began)
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
    ) -> Outcome[Any] | None:
        """Return or raise a follower's own copy of the leader's result; ``None``: start over."""
        if flight.params != request.params:
            if flight.bound:
                raise self._running_with_others()
            return None
        result = flight.result
        if isinstance(result, Settled):
            outcome = outcome_of(self._settings, result, request, replayed=True)
            self._settings.observer.emit("replayed", request.key, request.began)
            return outcome
        if flight.out_of_time and patience.left(LOOK_AGAIN):
            return None  # its leader has waited long enough for another owner, and this has not
        if isinstance(result, ReplayClosedError):
            return None  # the leader's replay was closed, and this one may be another
        if isinstance(result, Exception):
            raise fresh(result) from result
        return None  # interrupted; the record shows how the run ended

    def _shared(self, error: Exception) -> Exception:
        """Return a copy of a leader's error for its followers, with its traceback.

        To the error itself its caller may add notes, which are nobody else's business.
        """
        return fresh(error).with_traceback(error.__traceback__)

    def _running_with_others(self) -> ParamsMismatchError:
        return ParamsMismatchError(
            "this key is being run with other params; nothing ran here, and that run is untouched"
        )

    # In a transaction of the caller's own.

    def _joining(
        self,
        key: Key,
        params: object,
        handler: Callable[[Any], Any],
        ttl: Duration | None,
        wait_timeout: Duration | FromSettings | None,
        returns: object,
    ) -> tuple[Run, Request, Flow[Settled | Raised]]:
        """Return the run of a request that is answered there, and its flow."""
        settings, limit = self._settings, self._limit_of(wait_timeout)
        request = request_of(settings, key, params, ttl, self._codec_of(returns))
        self._check_answer(handler, request)
        patience = Patience(limit, settings.monotonic)
        run = Run(settings, request.key, None, patience, began=request.began)
        return run, request, flow.execute_joined(request, settings.policy)

    def _joined(self, end: Settled | Raised, run: Run, request: Request) -> Outcome[Any]:
        """Return the outcome, or raise the final failure; tell how the request ended."""
        if isinstance(end, Settled):
            return self._outcome(end, run, request)
        run.answered(end)
        run.raised = None
        raise end.take()

    # Sweeping.

    def _emit_swept(self, result: SweepResult, began: float) -> SweepResult:
        if result.removed:
            self._settings.observer.emit("swept", None, began, result)
        return result


def _check_seen(seen: object) -> None:
    if not isinstance(seen, ReplayRecord | None):
        raise InvalidParamsError(
            f"seen= is a {type(seen).__name__}; give the record that was looked at, as record() or"
            " records() shows it; nothing was changed"
        )
