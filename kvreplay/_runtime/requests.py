"""Make a request of what a caller gives, and an outcome of a stored answer: most hits end here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from enum import Enum
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final, Generic, TypeVar

import attrs

from kvreplay._protocol.codec import Codec
from kvreplay._protocol.failures import built_again
from kvreplay._protocol.keys import ReplayKey, name, scope_name, stored_id
from kvreplay._protocol.params import canonical, comparable
from kvreplay._protocol.record import answer_in, decode_response
from kvreplay._protocol.steps import Request, Settled
from kvreplay._runtime.settings import Settings
from kvreplay._runtime.singleflight import flights
from kvreplay.clock import Duration, to_ms
from kvreplay.errors import (
    ConfigError,
    CorruptRecordError,
    InvalidParamsError,
    KeyNotFoundError,
    ResponseTypeError,
    StoreError,
)

__all__ = [
    "JOINED_FUNCTION",
    "NO_CONNECTION",
    "PLAIN_FUNCTION",
    "Key",
    "Outcome",
    "check_handler",
    "outcome_of",
    "peek",
    "peek_awaited",
    "replay_key",
    "request_of",
    "ttl_of",
]

T = TypeVar("T")

Key = ReplayKey | tuple[str, str]
"""A replay key, or its ``(scope, id)``."""


@attrs.define  # not frozen, which would cost a replay some percent
class Outcome(Generic[T]):
    """A request's answer.

    Attributes:
        response: decoded from the record, a new copy for each caller.
        replayed: the handler did not run for this request.
        created_at: when the run that gave it began, in milliseconds since the epoch, UTC.
        expires_at: until when it is kept, likewise; ``None``: it is not, see ``NotStored``.
    """

    response: T = attrs.field(repr=False)
    replayed: bool
    created_at: int
    expires_at: int | None


def peek(
    settings: Settings,
    key: Any,
    params: object,
    ttl: Duration | None,
    codec: Codec[Any] | None = None,
) -> Outcome[Any] | Request:
    """Answer from a live record, after one read and without single-flight: the path of most hits.

    In every other case return the request, and the flow decides. A wrong key or wrong params raise
    what :func:`request_of` raises.
    """
    observer = settings.observer
    told = observer.is_there
    began = observer.monotonic() if told else 0.0
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
        return request_of(settings, key, params, ttl, codec, began)
    try:
        data = settings.store.read(settings.name, scope_name(scope), name(own, operation))
    except (KeyNotFoundError, UnicodeEncodeError):
        return request_of(settings, key, params, ttl, codec, began, packed, settings.now())
    except StoreError as error:
        observer.emit_error(error, replay_key(key), began)
        raise
    asked: object = packed
    keys = settings.params_keys
    if keys is not None:
        asked = keys.packed(replay_key(key), canonical(params, packed))
    id_ = stored_id(own, operation)
    found = _answer_of(settings, data, key, scope, id_, asked, codec, began)
    return found or request_of(settings, key, params, ttl, codec, began)


async def peek_awaited(
    settings: Settings,
    key: Any,
    params: object,
    ttl: Duration | None,
    codec: Codec[Any] | None = None,
) -> Outcome[Any] | Request:
    """Do as :func:`peek` on a store whose calls are awaited, unless another does for this key.

    So a crowd that asks for one key reads twice: the second is in flight, and the others follow it.
    """
    request = request_of(settings, key, params, ttl, codec)
    own = request.key
    flight_key = settings.flight_key(own)
    if flight_key in flights.table or flight_key in _looking:
        return request
    address = settings.name, scope_name(own.scope), name(own.id, own.operation)
    _looking.add(flight_key)
    try:
        data = await settings.asked.read(*address)
    except KeyNotFoundError:
        request.absent_at = settings.now()
        return request
    except StoreError as error:
        settings.observer.emit_error(error, own, request.began)
        raise
    finally:
        _looking.discard(flight_key)
    keys = settings.params_keys
    asked = request.params if keys is None else keys.packed(own, request.params)
    id_ = stored_id(own.id, own.operation)
    found = _answer_of(settings, data, own, own.scope, id_, asked, codec, request.began)
    return found or request


_looking: Final[set[Hashable]] = set()
"""The keys that are looked at. One that an interrupt leaves here is only slower to look at."""


def _answer_of(
    settings: Settings,
    data: bytes,
    key: Key,
    scope: str,
    id_: str | list[str],
    params: object,
    codec: Codec[Any] | None,
    began: float,
) -> Outcome[Any] | None:
    """Return the answer that is in these bytes, if it is live and can be given; else ``None``.

    Its arguments are those of :func:`answer_in` and of :func:`peek`.
    """
    observer = settings.observer
    now = settings.clock.now_ms()
    answer = answer_in(data, scope, id_, params, now)
    if answer is None:
        return None
    if flights.table and flights.bound(settings.flight_key(replay_key(key))) is not None:
        return None  # an answer that can be read may not be durable yet: follow its run
    response, created_at, expires_at = answer
    try:
        decoded = decode_response(response)
    except CorruptRecordError:
        return None
    if codec is not None:
        try:
            decoded = codec.decode(decoded)
        except Exception as error:  # the caller's own code, or that of a type
            observer.emit("response_type", replay_key(key), began)
            raise _unfit(codec) from error
    if observer.is_there:
        observer.tell("replayed", key, _digest, now, began)
    return Outcome(decoded, True, created_at, expires_at)


def _digest(key: Key) -> str:
    return replay_key(key).digest()


def request_of(
    settings: Settings,
    key: Key,
    params: object,
    ttl: Duration | None,
    codec: Codec[Any] | None = None,
    began: float | None = None,
    packed: bytes | None = None,
    absent_at: int | None = None,
) -> Request:
    """Check and encode what a caller gives, before anything runs.

    Args:
        began: when the call began; ``None``: now.
        packed: what :func:`~kvreplay._protocol.params.comparable` made of the params.
        absent_at: when the key was last seen without a record; ``None``: not known, so read.
    """
    return Request(
        replay_key(key),
        canonical(params, packed),
        ttl_of(settings, ttl),
        absent_at,
        codec,
        settings.observer.began() if began is None else began,
    )


# The kinds of functions whose call runs nothing of them.
_GENERATORS: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_COROUTINES: Final = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE


PLAIN_FUNCTION: Final = (
    "a transaction's handler is a plain function, since it holds the store's write lock; do what"
    " must be awaited before, or use execute"
)
"""What to do instead of a coroutine function in a transaction."""


class NoConnection(Enum):
    """The type of :data:`NO_CONNECTION`."""

    NO_CONNECTION = "no connection"

    def __repr__(self) -> str:
        return "NO_CONNECTION"


NO_CONNECTION: Final = NoConnection.NO_CONNECTION
"""The transaction is the store's own. (``None`` may be a connection that is not opened yet.)"""

JOINED_FUNCTION: Final = "use AsyncReplay and an asynchronous connection"
"""What to do instead of a coroutine function in a transaction of a caller's own."""


def check_handler(
    handler: Callable[..., Any], *, awaited: bool, instead: str = "use AsyncReplay.execute"
) -> None:
    """Refuse a handler that would not run when it is called, before anything is stored.

    A function that returns a generator or a coroutine is not refused: it may have done something
    else before.

    Args:
        awaited: a coroutine function is welcome.
        instead: what to do where it is not.

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
            f"the handler is a coroutine function, and nobody awaits it here: {instead}; nothing"
            " ran"
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


def outcome_of(
    settings: Settings, settled: Settled, request: Request, *, replayed: bool
) -> Outcome[Any]:
    """Decode a copy of the answer for one caller, or raise the final failure that it is.

    Raises:
        ResponseTypeError: the answer does not fit the type that this request asks for.
    """
    if settled.failure is not None:
        raise built_again(settled.failure, settings.policy.store_errors)
    response, codec = decode_response(settled.response), request.codec
    if codec is not None:
        try:
            response = codec.decode(response)
        except Exception as error:  # the caller's own code, or that of a type
            raise _unfit(codec) from error
    return Outcome(response, replayed, settled.created_at, settled.expires_at)


def _unfit(codec: Codec[Any]) -> ResponseTypeError:
    problem = (
        f"cannot be read as {codec.name}: its type has changed since it was stored"
        if codec.is_typed
        else "cannot be made again by your decode=, which raised"
    )
    return ResponseTypeError(
        f"the stored answer {problem}; nothing ran, and the record is untouched: record(key) shows"
        " it, and forget(key) removes it"
    )
