"""The shape of an annotation: how it is stored, and the check whether a value is of it.

The checks are made once, and called for each value: one in another, as the annotations are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import attrs

from kvreplay._protocol.culprit import find_culprit, kind_of, step
from kvreplay._typed.annotations import SCALARS, required_keys

__all__ = [
    "Kind",
    "Misfit",
    "Shape",
    "check_fields",
    "check_instance",
    "check_items",
    "check_plain",
    "check_type",
    "check_typeddict",
]


class Kind(Enum):
    """In which of the ways a shape is stored."""

    PLAIN = "as it is"
    LEAF = "as a scalar that stands for it"
    ITEMS = "as a list"
    MAP = "as a map"
    FIELDS = "as a map of an attrs class's or a dataclass's fields"
    NAMED = "as a map of the fields of a NamedTuple or a TypedDict"
    MODEL = "by pydantic"
    UNION = "as one of several"


@attrs.define(eq=False)
class Shape:
    """One annotation in a type.

    Attributes:
        annotation: it, without what only names or describes it.
        check: raises a :class:`Misfit` for a value that is not of the annotation, type for type.
        plain: msgpack holds such a value as it is, and gives it back equal, type for type.
        scalar: what is stored is neither a list nor a map, so it may be the key of a map.
        members: the shapes that are joined in a union.
    """

    annotation: Any
    kind: Kind
    check: Callable[[Any], None]
    plain: bool
    scalar: bool
    members: tuple[Shape, ...] = ()


class Misfit(TypeError):
    """A value is not of its annotation. The path to it grows while this is raised."""

    def __init__(self, value: object, declared: object, problem: str | None = None) -> None:
        super().__init__()
        self.path = ""
        self.kind = problem or kind_of(value)
        self.declared = declared

    def at(self, path: str) -> Misfit:
        """Say that this was found at a place of what is raised from now on."""
        self.path = path + self.path
        return self


def check_plain(value: Any) -> None:
    """Check that msgpack gives a value back as it is: no tuple, no subclass of anything."""
    if type(value) is dict:
        for position, (key, each) in enumerate(value.items()):
            if type(key) not in SCALARS:
                raise Misfit(key, Any).at(f"[key {position}]")
            _check_plain_at(step(key, position), each)
    elif type(value) is list:
        for position, each in enumerate(value):
            _check_plain_at(f"[{position}]", each)
    elif type(value) not in SCALARS:
        raise Misfit(value, Any)
    else:
        _check_held(value)


def _check_plain_at(path: str, value: object) -> None:
    try:
        check_plain(value)
    except Misfit as misfit:
        raise misfit.at(path) from None


def _check_held(value: object) -> None:
    if type(value) in (int, str) and (found := find_culprit(value)) is not None:
        raise Misfit(value, type(value), found.removeprefix(": "))


def check_type(annotation: Any, kinds: tuple[type, ...]) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if type(value) not in kinds:
            raise Misfit(value, annotation)
        _check_held(value)

    return check


def check_instance(cls: type) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if not isinstance(value, cls):
            raise Misfit(value, cls)

    return check


def check_items(make: Callable[[Any], Any], item: Shape) -> Callable[[Any], None]:
    """``make``: what an abstract type comes back as, so nothing else may be stored for it."""

    def check(value: Any) -> None:
        if type(value) is not make:
            raise Misfit(value, make)
        for position, each in enumerate(value):
            try:
                item.check(each)
            except Misfit as misfit:
                raise misfit.at(f"[{position}]") from None

    return check


def check_fields(cls: type, fields: Mapping[str, Shape]) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if type(value) is not cls:
            raise Misfit(value, cls)
        for name, field in fields.items():
            try:
                field.check(getattr(value, name, None))
            except Misfit as misfit:
                raise misfit.at(f".{name}") from None

    return check


def check_typeddict(cls: type, fields: Mapping[str, Shape]) -> Callable[[Any], None]:
    required = required_keys(cls)

    def check(value: Any) -> None:
        if type(value) is not dict:
            raise Misfit(value, cls)
        if not required <= value.keys():
            raise Misfit(value, cls, "a dict without a required key")
        for position, (name, each) in enumerate(value.items()):
            try:
                fields[name].check(each) if name in fields else check_plain(each)
            except Misfit as misfit:
                raise misfit.at(step(name, position)) from None

    return check
