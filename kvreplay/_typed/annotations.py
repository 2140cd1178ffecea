"""What an annotation says: its bare type, its name, and what a class's annotations leave open."""

from __future__ import annotations

import collections.abc as abc
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, TypeVar, Union

__all__ = [
    "SCALARS",
    "STORED_AS",
    "bare",
    "given_in",
    "is_typeddict",
    "named",
    "required_keys",
    "union_of",
]

SCALARS: Final[dict[Any, tuple[type, ...]]] = {
    str: (str,),
    bytes: (bytes,),
    bool: (bool,),
    int: (int, bool),
    float: (float, int),
    type(None): (type(None),),
}
"""What msgpack holds, and what counts as one: an int is taken for a float, a bool for an int."""

STORED_AS: Final[dict[Any, Callable[[Any], Any]]] = {
    list: list,
    abc.Sequence: list,
    abc.MutableSequence: list,
    tuple: tuple,
    set: set,
    abc.Set: set,
    abc.MutableSet: set,
    frozenset: frozenset,
}
"""What each class of items comes back as. All are stored as lists."""


def bare(annotation: Any) -> Any:
    """Take off what only names a type or describes it: Annotated, NewType, Final, an alias."""
    while True:
        if isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__") and hasattr(annotation, "__type_params__"):
            annotation = annotation.__value__  # type X = ...
        elif typing.get_origin(annotation) in _WRAPPERS:
            annotation = typing.get_args(annotation)[0]
        else:
            return type(None) if annotation is None else annotation


_WRAPPERS: Final = (typing.Annotated, typing.Final, typing.Required, typing.NotRequired)


def named(annotation: Any) -> str:
    """Return what messages call a type."""
    if isinstance(annotation, typing.NewType) or hasattr(annotation, "__value__"):
        return str(annotation.__name__)  # an alias may hold itself
    annotation = bare(annotation)
    if annotation is type(None):
        return "None"
    arguments, origin = typing.get_args(annotation), typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(named, arguments))
    if origin is Literal:
        return "a Literal"
    if origin is not None and arguments:
        return f"{named(origin)}{named(list(arguments))}"
    if isinstance(annotation, list):  # of arguments, such as a Callable's
        inner = ("..." if each is ... else named(each) for each in annotation)
        return f"[{', '.join(inner)}]"
    return getattr(annotation, "__name__", None) or str(annotation).removeprefix("typing.")


def union_of(annotations: Iterable[Any]) -> Any:
    """Return the union of some types."""
    return Union[tuple(annotations)]  # noqa: UP007  # X | Y joins two, and not all that are types


def is_typeddict(cls: object) -> bool:
    """Say whether a class is a TypedDict: Python's own, or that of ``typing_extensions``."""
    return isinstance(cls, type) and issubclass(cls, dict) and hasattr(cls, "__required_keys__")


def required_keys(cls: Any) -> frozenset[str]:
    """Return the keys that a TypedDict must have."""
    hints = typing.get_type_hints(cls, include_extras=True)
    # The class itself knows only those words that were no text when it was made.
    said = {name: typing.get_origin(each) for name, each in hints.items()}
    return frozenset(
        name
        for name, word in said.items()
        if word is typing.Required
        or (name in cls.__required_keys__ and word is not typing.NotRequired)
    )


def given_in(annotation: Any, given: Mapping[Any, Any]) -> Any:
    """Put what a generic class is given in the place of its type variables."""
    if isinstance(annotation, TypeVar):
        return given.get(annotation, annotation)
    parameters = getattr(annotation, "__parameters__", ())
    if not given or not parameters or isinstance(annotation, type):
        return annotation
    return annotation[tuple(given.get(each, each) for each in parameters)]
