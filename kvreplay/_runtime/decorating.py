"""Functions that a replay decorates: one for each operation, and what of a call is compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FunctionType
from typing import Any

import attrs

from kvreplay._protocol.codec import Codec
from kvreplay._protocol.keys import ReplayKey
from kvreplay._protocol.params import canonical
from kvreplay._runtime.patience import FromSettings
from kvreplay._runtime.requests import Key
from kvreplay.clock import Duration
from kvreplay.errors import ConfigError, InvalidParamsError

__all__ = [
    "Answers",
    "Called",
    "Calling",
    "Functions",
    "arguments_of",
    "check_comparable",
    "check_decorable",
]

_UNDONE = "nothing was decorated"


@attrs.define(repr=False)
class Called:
    """One call of a decorated function: its key, what is compared, and the handler."""

    key: Key
    params: Any
    handler: Callable[[], Any]


@attrs.frozen(repr=False)
class Calling:
    """How the calls of one decorated function are answered.

    Attributes:
        of: makes a :class:`Called` of a call's arguments.
        explain: raises a better error, if it has one, for params that were refused.
        outcome: the caller gets the :class:`~kvreplay.Outcome`, not the response alone.
    """

    of: Callable[..., Called]
    ttl: Duration | None
    wait_timeout: Duration | FromSettings | None
    explain: Callable[[Any], None]
    answers: Answers
    outcome: bool


class Answers:
    """How the answers of one decorated function are stored.

    Its annotation may name a class that is made below it. Then its first call looks again.
    """

    def __init__(
        self, function: Callable[..., object], find: Callable[[], Codec[Any] | None]
    ) -> None:
        self._function = function
        self._find: Callable[[], Codec[Any] | None] | None = find
        self._codec: Codec[Any] | None = None
        with suppress(NameError):
            self._look()

    @property
    def codec(self) -> Codec[Any] | None:
        """How one is stored; ``None``: as msgpack.

        Raises:
            ConfigError: nobody can say, since a name is not there.
        """
        if self._find is not None:
            try:
                self._look()
            except NameError as error:
                raise ConfigError(
                    f"the return annotation of {_named(self._function)} names what is not there at"
                    f" run time: {error}; nothing ran: import it, even where TYPE_CHECKING is"
                    " false, or give returns="
                ) from error
        return self._codec

    def _look(self) -> None:
        find = self._find  # another thread may find it just now
        if find is not None:
            self._codec, self._find = find(), None


class Functions:
    """The functions that one replay has decorated: at most one for each operation.

    An operation is named by the caller, and never by the function: who renames a function must not
    run its payments again.
    """

    def __init__(self) -> None:
        self._by_operation: dict[str | None, Callable[..., object]] = {}
        self._answers: dict[str | None, Answers] = {}

    def codec_of(self, operation: str | None) -> Codec[Any] | None:
        """Return how the answers of an operation are decoded, if a function has it."""
        answers = self._answers.get(operation)
        return None if answers is None else answers.codec

    def add(
        self,
        function: Callable[..., object],
        operation: str | None,
        answers: Answers,
    ) -> None:
        """Give the operation to the function; ``None``: the requests that name no operation.

        The same function may come again, even from a reloaded module, if its code, its defaults,
        its name and its globals are the same and it is no closure.

        Raises:
            ConfigError: the operation is no text, or another function has it.
        """
        try:
            ReplayKey("", "any", operation)
        except InvalidParamsError as error:
            problem = str(error).partition(";")[0].removeprefix("the key's ")
            raise ConfigError(f"{problem}; {_UNDONE}") from None
        first = self._by_operation.setdefault(operation, function)
        if not _is_same(first, function):
            has = "no operation" if operation is None else f"the operation {operation!r}"
            raise ConfigError(
                f"{_named(first)} and {_named(function)} would answer each other's requests: both"
                f' are decorated on one replay with {has}; give each its own operation="…", and'
                f" keep that when you rename the function; {_UNDONE}"
            )
        self._answers[operation] = answers


def check_decorable(function: object) -> None:
    """Refuse what is no function when it is decorated, though its class may make it one.

    Raises:
        ConfigError: it is that.
    """
    if isinstance(function, staticmethod | classmethod) or not callable(function):
        raise ConfigError(
            f"a {type(function).__name__} cannot be decorated; write @staticmethod, @classmethod"
            f" or @property above @idempotent, not below it; {_UNDONE}"
        )


def _is_same(one: Callable[..., object], other: Callable[..., object]) -> bool:
    if one is other:
        return True
    return (
        isinstance(one, FunctionType)
        and isinstance(other, FunctionType)
        and (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
        and one.__code__ == other.__code__  # its line too
        and one.__globals__ is other.__globals__  # a reloaded module keeps them
        and one.__closure__ is None
        and _defaults_of(one) == _defaults_of(other)
        and repr(_defaults_of(one)) == repr(_defaults_of(other))  # 1, 1.0 and True are three
    )


def _defaults_of(function: FunctionType) -> tuple[object, ...]:
    return function.__defaults__, function.__kwdefaults__


def _named(function: Callable[..., object]) -> str:
    name = getattr(function, "__qualname__", None) or f"a {type(function).__qualname__}"
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


def arguments_of(function: Callable[..., object]) -> Callable[..., dict[str, Any]]:
    """Return a function that makes a dict of a call's arguments by name, with their defaults.

    It leaves out a method's ``self`` and a class method's ``cls``.

    Raises:
        ConfigError: Python does not know the function's parameters.
    """
    try:
        signature = inspect.signature(function)
    except ValueError as error:
        raise ConfigError(
            f"the parameters of {_named(function)} are not known: give params=; {_UNDONE}"
        ) from error
    receiver = _receiver_of(function, signature)

    def arguments(*args: Any, **kwargs: Any) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return {name: each for name, each in bound.arguments.items() if name != receiver}

    return arguments


def check_comparable(arguments: Mapping[str, Any]) -> None:
    """Raise an InvalidParamsError that names the first argument that cannot be compared, if any."""
    for name, each in arguments.items():
        try:
            canonical({name: each})
        except InvalidParamsError as error:
            raise InvalidParamsError(
                f"the argument {name!r} cannot be compared: {error}; or say by params= what is"
                " compared"
            ) from None


def _receiver_of(function: Callable[..., object], signature: inspect.Signature) -> str | None:
    """Return the name of the parameter that takes a method's object or class.

    That is the first one of a function that a class's body defines, if it is ``self`` or ``cls``.
    By any other name it is compared: it may be the first argument of a static method.
    """
    if not isinstance(function, FunctionType):
        return None
    around = function.__qualname__.rpartition(".")[0]
    if not around or around.endswith("<locals>"):
        return None
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.name not in ("self", "cls"):
        return None
    is_positional = first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
    return first.name if is_positional else None
