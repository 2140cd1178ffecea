"""Make a request of what a caller gives, and an outcome of a stored answer: most hits end here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final

import attrs

from kvreplay._protocol.keys import ReplayKey, name, scope_name, stored_id
from kvreplay._protocol.params import canonical, comparable
from kvreplay._protocol.record import answer_in, decode_response
from kvreplay._protocol.steps import Request, Settled
from kvreplay._runtime.settings import Settings
from kvreplay._runtime.singleflight import flights
from kvreplay.clock import Duration, to_ms
from kvreplay.errors import ConfigError, CorruptRecordError, InvalidParamsError, KeyNotFoundError

__all__ = [
    "Key",
    "Outcome",
    "check_handler",
    "outcome_of",
    "peek",
    "replay_key",
    "request_of",
    "ttl_of",
]

Key = ReplayKey | tuple[str, str]
"""A replay key, or its ``(scope, id)``."""


@attrs.define  # not frozen, which would cost a replay some percent
class Outcome:
    """A request's answer. ``response`` is decoded from the record, a new copy for each caller.

    ``replayed``: the handler did not run for this request.
    """

    response: Any = attrs.field(repr=False)
    replayed: bool


def peek(settings: Settings, key: Any, params: object, ttl: Duration | None) -> Outcome | Request:
    """Answer from a live record, after one read and without single-flight: the path of most hits.

    In every other case return the request, and the flow decides. A wrong key or wrong params raise
    what :func:`request_of` raises.
    """
    if ttl is not None:
        to_ms(ttl, "ttl")  # a wrong one raises, even if a hit does not need it
    packed = comparable(params)
    if type(key) is tuple and len(key) == 2:  # quick way, without a ReplayKey: bench_hit
        scope, own = key
        operation, plain = None, type(scope) is type(own) is str and own != ""
    else:
        key = replay_key(key)
        scope, own, operation, plain = key.scope, key.id, key.operation, True
    if packed is None or not plain:
        return request_of(settings, key, params, ttl)
    try:
        data = settings.store.read(settings.name, scope_name(scope), name(own, operation))
    except (KeyNotFoundError, UnicodeEncodeError):
        return request_of(settings, key, params, ttl, packed, settings.now())
    now = settings.clock.now_ms()
    response = answer_in(data, scope, stored_id(own, operation), packed, now)
    if response is None:
        return request_of(settings, key, params, ttl)
    if flights.table and flights.bound(settings.flight_key(replay_key(key))) is not None:
        # An answer that can be read may not be durable yet: follow its run.
        return request_of(settings, key, params, ttl)
    try:
        decoded = decode_response(response)
    except CorruptRecordError:
        return request_of(settings, key, params, ttl)
    if settings.observer.is_there:
        settings.observer.emit("replayed", replay_key(key))
    return Outcome(decoded, True)


def request_of(
    settings: Settings,
    key: Key,
    params: object,
    ttl: Duration | None,
    packed: bytes | None = None,
    absent_at: int | None = None,
) -> Request:
    """Check and encode what a caller gives, before anything runs.

    Args:
        packed: what :func:`~kvreplay._protocol.params.comparable` made of the params.
        absent_at: when the key was last seen without a record; ``None``: not known, so read.
    """
    return Request(replay_key(key), canonical(params, packed), ttl_of(settings, ttl), absent_at)


# The kinds of functions whose call runs nothing of them.
_GENERATORS: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_COROUTINES: Final = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE


def check_handler(handler: Callable[..., Any], *, awaited: bool) -> None:
    """Refuse a handler that would not run when it is called, before anything is stored.

    A function that returns a generator or a coroutine is not refused: it may have done something
    else before.

    Args:
        awaited: a coroutine function is welcome.

    Raises:
        ConfigError: it cannot be called, is a generator function, or is a coroutine function that
            nobody awaits.
    """
    if not callable(handler):
        raise ConfigError(
            f"the handler is a {type(handler).__name__}, which cannot be called: give a function"
            " without arguments, and do not call it; nothing ran"
        )
    function: Any = handler
    while isinstance(function, partial):
        function = function.func
    if not isinstance(function, FunctionType | MethodType):
        function = type(function).__call__
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    if flags & _COROUTINES and not awaited:
        raise ConfigError(
            "the handler is a coroutine function: use AsyncReplay.execute; nothing ran"
        )
    if flags & _GENERATORS and not flags & _COROUTINES:
        raise ConfigError(
            "the handler is a generator function, and calling it runs nothing of it: give a"
            " function that returns its response; nothing ran"
        )


def ttl_of(settings: Settings, ttl: Duration | None) -> int:
    """Return a call's own time to live in milliseconds, or that of the settings."""
    return settings.ttl if ttl is None else to_ms(ttl, "ttl")


def replay_key(key: Key, operation: str | None = None) -> ReplayKey:
    """Return the ReplayKey of a ReplayKey or of a ``(scope, id)`` tuple, with this operation.

    Raises:
        InvalidParamsError: it is no key, or a key of another operation.
    """
    if isinstance(key, tuple) and len(key) == 2:
        return ReplayKey(*key, operation)
    if not isinstance(key, ReplayKey):
        raise InvalidParamsError(
            "a key must be a ReplayKey or a tuple (scope, id) of str; nothing ran"
        )
    if operation is None or operation == key.operation:
        return key
    if key.operation is None:
        return ReplayKey(key.scope, key.id, operation)
    raise InvalidParamsError(
        "the key belongs to another operation than the one that is asked for; nothing ran"
    )


def outcome_of(settled: Settled, *, replayed: bool) -> Outcome:
    """Decode a copy of the answer for one caller."""
    return Outcome(decode_response(settled.response), replayed)
