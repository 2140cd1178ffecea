"""A type becomes a codec, before anything runs: what msgpack cannot hold needs one.

Which library stores what is in ``pydantic.py`` and ``cattrs.py``. What both have in
common is here: before a response is stored it is checked, and made again. So an answer that would
lose anything is an error of the run that made it, and never of a later one.
"""

from __future__ import annotations

import collections.abc as abc
import inspect
import types
import typing
from functools import lru_cache, partial
from types import FunctionType, MethodType
from typing import Any, Final, Union

from kvreplay._protocol.codec import Codec
from kvreplay._protocol.culprit import find_culprit, kind_of
from kvreplay._protocol.steps import NotStored
from kvreplay._typed.annotations import bare, named, union_of
from kvreplay._typed.cattrs import cattrs_codec
from kvreplay._typed.pydantic import Unstorable, model_codec
from kvreplay._typed.sameness import difference
from kvreplay._typed.shapes import Kind, Misfit, Shape
from kvreplay._typed.walk import Shapes
from kvreplay.errors import ConfigError

__all__ = ["annotated", "check_plain_answer", "codec_of", "return_annotation"]

_AWAITED: Final = (abc.Awaitable, abc.Coroutine)
_MANY_TYPES: Final = 256


def codec_of(annotation: object, what: str) -> Codec[Any] | None:
    """Return how a response of a type is stored, and made again.

    ``Awaitable[X]``, ``Coroutine[..., X]`` and ``NotStored[X]`` mean X.

    Args:
        annotation: the type. ``Any``, ``object``, a ``TypeVar`` and ``inspect.Signature.empty``
            say nothing.
        what: what the type is given for, which begins each message: ``"request_invoice returns"``.

    Returns:
        ``None``: msgpack holds such a response, and gives it back equal, type for type; or the
        type says nothing.

    Raises:
        ConfigError: something in the type cannot be stored, or needs a package that is not
            installed. Nothing ran.
    """
    try:
        return _codec_of(annotation, what)
    except TypeError:  # it cannot be hashed
        return _codec_of.__wrapped__(annotation, what)


@lru_cache(maxsize=_MANY_TYPES)
def _codec_of(annotation: Any, what: str) -> Codec[Any] | None:
    annotation = _answer_in(annotation)
    if annotation is inspect.Signature.empty:
        return None
    name = named(annotation)
    shapes = Shapes(f"{what} {name}", name if isinstance(annotation, type) else "response")
    shape = shapes.of(annotation)
    if shape.plain:
        return None
    if _is_model(shape):
        return _whole(shape, model_codec(annotation, name, shapes.said))
    return _whole(shape, cattrs_codec(shape, shapes, name))


def annotated(function: object) -> Codec[Any] | None:
    """Return the :func:`codec_of` what a function says that it returns.

    Raises:
        NameError: it names what is not there: not yet, or only for type checkers.
    """
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    try:
        said = _return_annotation(function)
    except NameError:
        raise
    except Exception:  # an annotation is any expression
        return None
    return codec_of(said, f"{name} returns")


def check_plain_answer(handler: object) -> None:
    """Refuse a handler that says that it returns what only a codec can store.

    Raises:
        ConfigError: it does; nothing ran.
    """
    annotation = _answer_in(return_annotation(handler))
    if annotation is inspect.Signature.empty or annotation is None:
        return
    name = named(annotation)
    shapes = Shapes(f"the handler returns {name}", "response")
    shapes.of(annotation)
    for each in shapes.all():
        origin = typing.get_origin(each.annotation) or each.annotation
        if each.kind in _NEEDS_A_CODEC or origin in (set, frozenset):
            raise ConfigError(
                f"the handler returns {name}, which msgpack cannot hold: say returns=, so that it"
                " is stored and made again as that type; nothing ran"
            )


_NEEDS_A_CODEC: Final = (Kind.LEAF, Kind.FIELDS, Kind.MODEL)


def _answer_in(annotation: Any) -> Any:
    """Return the type of what is stored, of what a function says that it returns."""
    annotation = bare(annotation)
    arguments, origin = typing.get_args(annotation), typing.get_origin(annotation)
    if origin in _AWAITED or annotation in _AWAITED:
        return _answer_in(arguments[-1] if arguments else Any)
    if origin is NotStored or annotation is NotStored:
        return _answer_in(arguments[0] if arguments else Any)
    if origin in (Union, types.UnionType):
        return _answer_in_union(annotation, arguments)
    return annotation


def _answer_in_union(annotation: Any, arguments: tuple[Any, ...]) -> Any:
    stored = [each for each in arguments if each is not NotStored]
    answers = tuple(_answer_in(each) for each in stored)
    return annotation if answers == arguments else union_of(answers)


def _is_model(shape: Shape) -> bool:
    """Say whether pydantic alone stores it."""
    if shape.kind is Kind.UNION:
        return all(
            each.kind is Kind.MODEL or each.annotation is type(None) for each in shape.members
        )
    return shape.kind is Kind.MODEL


def _whole(shape: Shape, codec: Codec[Any]) -> Codec[Any]:
    """Return a codec that stores a value only if it is of the type, and all of it is kept."""
    root = codec.name if isinstance(shape.annotation, type) else "response"

    def encode(value: object) -> object:
        try:
            shape.check(value)
            data = codec.encode(value)
            if (problem := _not_held(data) or _not_kept(value, codec.decode(data))) is None:
                return data
        except Misfit as misfit:
            problem = (
                f"{misfit.path}: {misfit.kind} cannot be stored, where {named(misfit.declared)} is"
                " expected"
            )
        except Unstorable as error:
            problem = str(error)
        except RecursionError:
            problem = ": it cannot be stored, since it is nested too deep or refers to itself"
        except Exception as error:  # the class's own code
            problem = (
                ": it cannot be stored, since it cannot be made again of what would be stored"
                f" ({type(error).__name__})"
            )
        raise TypeError(root + problem)  # outside: what was caught may show a part of the response

    return Codec(encode, codec.decode, codec.name)


def _not_held(data: object) -> str | None:
    found = find_culprit(data)
    return None if found is None else f"{found} cannot be stored"


def _not_kept(value: object, again: object) -> str | None:
    lost = difference(value, again)
    if lost is None:
        return None
    path, part = lost
    return f"{path}: {kind_of(part)} cannot be stored: it would come back as something else"


def return_annotation(function: object) -> object:
    """Return the type that a function, a method, a partial or a callable object says it returns.

    Returns:
        It; ``inspect.Signature.empty``: it says nothing, or names what is not there at run time.
    """
    try:
        return _return_annotation(function)
    except Exception:  # an annotation is any expression
        return inspect.Signature.empty


def _return_annotation(function: Any) -> object:
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, type):
        return function  # to call a class returns one of it
    if not isinstance(function, FunctionType | MethodType):
        function = getattr(type(function), "__call__", function)  # noqa: B004  # taken, not tested
    function = inspect.unwrap(function)
    function = getattr(function, "__func__", function)
    said = function.__annotations__.get("return", inspect.Signature.empty)
    if said is inspect.Signature.empty:
        return said
    names = _names_around(function)
    holder = types.SimpleNamespace(__annotations__={"return": said})
    return typing.get_type_hints(holder, function.__globals__, names, include_extras=True)["return"]


def _names_around(function: Any) -> dict[str, object]:
    """Return the names that a function has from those around it, and its type parameters."""
    names: dict[str, object] = {
        each.__name__: each for each in getattr(function, "__type_params__", ())
    }
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            pass  # it has no value yet
    return names
