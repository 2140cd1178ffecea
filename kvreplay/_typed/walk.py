"""What of a type can be stored: it is walked once, down to its last field, before anything runs."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, Literal, TypeVar

import attrs

from kvreplay._protocol.culprit import step
from kvreplay._typed.annotations import (
    SCALARS,
    STORED_AS,
    bare,
    given_in,
    is_typeddict,
    named,
)
from kvreplay._typed.leaves import LEAVES
from kvreplay._typed.pydantic import is_model, is_of_pydantic, is_secret, unstorable_in
from kvreplay._typed.shapes import (
    Kind,
    Misfit,
    Shape,
    check_fields,
    check_instance,
    check_items,
    check_plain,
    check_type,
    check_typeddict,
)
from kvreplay.errors import ConfigError

__all__ = ["Shapes"]

_ANY: Final = (Any, object)
_NEVER: Final = (typing.NoReturn, typing.Never)
_MAPPINGS: Final = (dict, abc.Mapping, abc.MutableMapping)


class Shapes:
    """The shapes in one type.

    Args:
        said: what says that it is the type, and the type, which begins each message.
        root: where each path begins.
    """

    def __init__(self, said: str, root: str) -> None:
        self.said = said
        self._root = root
        self._known: dict[Any, Shape] = {}

    def all(self) -> tuple[Shape, ...]:
        """Return those that were asked for, and what is in them."""
        return tuple(self._known.values())

    def of(self, annotation: Any, path: str = "") -> Shape:
        """Return the shape of an annotation.

        Raises:
            ConfigError: a value of it cannot be stored, or not be made again.
        """
        annotation = bare(annotation)
        try:
            known = self._known.get(annotation)
        except TypeError:
            raise self._refused(annotation, path) from None  # a type can be hashed
        if known is not None:
            return known
        # A type may hold itself. Whoever comes here meanwhile gets this one, which is filled later.
        holds_itself = Shape(annotation, Kind.PLAIN, lambda value: None, True, False)
        self._known[annotation] = holds_itself
        made = self._made(annotation, path, holds_itself)
        for field in attrs.fields(Shape):
            setattr(holds_itself, field.name, getattr(made, field.name))
        return holds_itself

    def _made(self, annotation: Any, path: str, itself: Shape) -> Shape:
        arguments, origin = typing.get_args(annotation), typing.get_origin(annotation)
        cls = origin or annotation
        if annotation in _ANY or annotation in _NEVER or isinstance(annotation, TypeVar):
            return Shape(Any, Kind.PLAIN, check_plain, True, True)
        if annotation in SCALARS:
            check = check_type(annotation, SCALARS[annotation])
            return Shape(annotation, Kind.PLAIN, check, True, True)
        if cls is Literal:
            return _of_literal(annotation, arguments)
        if cls in (typing.Union, types.UnionType):
            return self._of_union(annotation, arguments, path)
        if cls in LEAVES:
            return Shape(annotation, Kind.LEAF, check_instance(cls), False, True)
        if cls is tuple:
            return self._of_tuple(annotation, arguments, path)
        if cls in STORED_AS:
            item = self.of(arguments[0] if arguments else Any, f"{path}[]")
            check = check_items(STORED_AS[cls], item)
            return Shape(annotation, Kind.ITEMS, check, cls is list and item.plain, False)
        if cls in _MAPPINGS:
            return self._of_map(annotation, arguments, path)
        if not isinstance(cls, type):
            raise self._refused(annotation, path)
        itself.plain = is_typeddict(cls)  # the others are not, whatever is in them
        itself.kind = Kind.NAMED if issubclass(cls, dict | tuple) else Kind.FIELDS
        if is_secret(annotation):
            raise self._refused(annotation, path)
        if issubclass(cls, Enum):
            return Shape(annotation, Kind.LEAF, check_instance(cls), False, True)
        if is_of_pydantic(cls):
            return self._of_model(annotation, cls, path)
        return self._of_class(annotation, cls, path)

    def _of_union(self, annotation: Any, arguments: tuple[Any, ...], path: str) -> Shape:
        members = tuple(self.of(each, path) for each in arguments)
        plain, scalar = (all(getattr(each, of) for each in members) for of in ("plain", "scalar"))
        others = [each for each in members if not each.plain]
        if others and not _told_apart(members, others):
            raise ConfigError(
                f"{self.said}: {self._at(path)} is {named(annotation)}, and what is"
                " stored would not tell which of them it was: give encode= and decode=; nothing ran"
            )

        def check(value: object) -> None:
            nearest = None
            for member in members:
                try:
                    return member.check(value)
                except Misfit as misfit:
                    if nearest is None or len(misfit.path) > len(nearest.path):
                        nearest = misfit
            raise nearest if nearest is not None and nearest.path else Misfit(value, annotation)

        return Shape(annotation, Kind.UNION, check, plain, scalar, members)

    def _of_tuple(self, annotation: Any, arguments: tuple[Any, ...], path: str) -> Shape:
        if (len(arguments) == 2 and arguments[1] is ...) or annotation is tuple:
            item = self.of(arguments[0] if arguments else Any, f"{path}[]")
            return Shape(annotation, Kind.ITEMS, check_items(tuple, item), False, False)
        items = [self.of(each, f"{path}[{number}]") for number, each in enumerate(arguments)]

        def check(value: Any) -> None:
            if type(value) is not tuple or len(value) != len(items):
                raise Misfit(value, annotation)
            for position, (item, each) in enumerate(zip(items, value, strict=True)):
                try:
                    item.check(each)
                except Misfit as misfit:
                    raise misfit.at(f"[{position}]") from None

        return Shape(annotation, Kind.ITEMS, check, False, False)

    def _of_map(self, annotation: Any, arguments: tuple[Any, ...], path: str) -> Shape:
        key_of, value_of = arguments or (Any, Any)
        key, item = self.of(key_of, f"{path}[key]"), self.of(value_of, f"{path}[]")
        if not key.scalar:
            raise self._refused(key_of, f"{path}[key]", "a key of a stored map must be a scalar")

        def check(value: Any) -> None:
            if type(value) is not dict:
                raise Misfit(value, annotation)
            for position, (each_key, each) in enumerate(value.items()):
                try:
                    key.check(each_key)
                except Misfit as misfit:
                    raise misfit.at(f"[key {position}]") from None
                try:
                    item.check(each)
                except Misfit as misfit:
                    raise misfit.at(step(each_key, position)) from None

        return Shape(annotation, Kind.MAP, check, key.plain and item.plain, False)

    def _of_model(self, annotation: Any, cls: type, path: str) -> Shape:
        if cls.__module__.partition(".")[0] == "pydantic" and is_model(cls):
            raise self._refused(annotation, path, "it has no fields, and those of others get lost")
        try:
            found = unstorable_in(annotation, path, set())
        except ImportError:  # whoever makes the codec says so
            found = None
        if found is not None:
            raise self._refused(found[1], found[0])
        return Shape(annotation, Kind.MODEL, check_instance(cls), False, False)

    def _of_class(self, annotation: Any, cls: Any, path: str) -> Shape:
        is_dict, is_named = is_typeddict(cls), hasattr(cls, "_fields")
        has_fields = attrs.has(cls) or dataclasses.is_dataclass(cls)
        if not (has_fields or is_dict or (is_named and issubclass(cls, tuple))):
            raise self._refused(annotation, path)
        hints = self.fields_of(annotation, path)
        fields = {name: self.of(each, f"{path}.{name}") for name, each in hints.items()}
        if is_dict:
            plain = all(each.plain for each in fields.values())
            return Shape(annotation, Kind.NAMED, check_typeddict(cls, fields), plain, False)
        kind = Kind.FIELDS if has_fields else Kind.NAMED
        return Shape(annotation, kind, check_fields(cls, fields), False, False)

    def fields_of(self, annotation: Any, path: str = "") -> dict[str, Any]:
        """Return the annotation of each field, with what a generic class is given."""
        cls: Any = typing.get_origin(annotation) or annotation
        arguments = typing.get_args(annotation)
        given = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))
        return {name: given_in(each, given) for name, each in self._hints_of(cls, path).items()}

    def _hints_of(self, cls: Any, path: str) -> Mapping[str, Any]:
        """Return the annotation of each field."""
        try:
            hints = typing.get_type_hints(cls)
        except (NameError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"{self.said}: the annotations of {self._at(path)} cannot be"
                f" resolved ({type(error).__name__}), so nobody knows how to store them: import at"
                " run time what they name, or give encode= and decode=; nothing ran"
            ) from error
        if attrs.has(cls):
            return {each.name: hints.get(each.name, each.type or Any) for each in attrs.fields(cls)}
        if dataclasses.is_dataclass(cls):
            for name, each in hints.items():
                if isinstance(each, dataclasses.InitVar) and not hasattr(cls, name):
                    raise self._refused(each, f"{path}.{name}", "a class does not keep it")
            return {each.name: hints[each.name] for each in dataclasses.fields(cls)}
        if is_typeddict(cls):
            return hints
        return {name: hints.get(name, Any) for name in cls._fields}

    def _refused(self, annotation: Any, path: str, problem: str | None = None) -> ConfigError:
        why = problem or "neither msgpack, cattrs nor pydantic can store it"
        if is_secret(annotation):
            why = "secrets are not stored unless you say how"
        return ConfigError(
            f"{self.said}: {self._at(path)} is of the type {named(annotation)};"
            f" {why}: change it, or give encode= and decode=; nothing ran"
        )

    def _at(self, path: str) -> str:
        return f"{self._root}{path}"


def _told_apart(members: tuple[Shape, ...], others: list[Shape]) -> bool:
    """Say whether what is stored may tell which member of a union it was.

    Of several classes with fields cattrs says whether it can, and pydantic can of its models: this
    is known when the codec is made.
    """
    beside = [each for each in members if each.plain]
    if all(each.annotation is type(None) for each in beside) and len(others) == 1:
        return True
    if any(each.annotation is Any or not each.scalar for each in beside):
        return False
    if len(others) == 1:
        return not others[0].scalar and others[0].kind is not Kind.MODEL
    if all(each.kind is Kind.MODEL for each in others):
        return all(each.annotation is type(None) for each in beside)
    return all(each.kind is Kind.FIELDS for each in others)


def _of_literal(annotation: Any, values: tuple[Any, ...]) -> Shape:
    plain = all(type(each) in SCALARS for each in values)

    def check(value: object) -> None:
        if not any(value == each and type(value) is type(each) for each in values):
            raise Misfit(value, annotation)

    return Shape(annotation, Kind.PLAIN if plain else Kind.LEAF, check, plain, True)
