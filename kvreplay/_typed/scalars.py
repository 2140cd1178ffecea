"""How scalars are made again of what was stored: nothing else is taken for one."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from enum import Enum, Flag
from typing import Any, NoReturn

from kvreplay._protocol.culprit import kind_of
from kvreplay._typed.annotations import SCALARS
from kvreplay._typed.leaves import Leaf

__all__ = [
    "Decode",
    "decode_checked",
    "decode_enum",
    "decode_kinds",
    "decode_leaf",
    "decode_literal",
    "decode_scalar",
    "keep",
    "plain_of",
    "refuse",
]

Decode = Callable[[Any, Any], object]  # cattrs gives it the type too


def refuse(data: object) -> NoReturn:
    """Raise the error that something else was stored than the type has there."""
    raise TypeError(f"{kind_of(data)} was stored, which the type does not have there")


def keep(value: object) -> object:
    """Encode what is stored as it is."""
    return value


def decode_checked(check: Callable[[Any], None]) -> Decode:
    """Make again what is stored as it is."""

    def decode(data: Any, _: Any) -> object:
        check(data)
        return data

    return decode


def decode_scalar(cls: Any) -> Decode:
    """Make a scalar of that class again."""
    return decode_kinds(SCALARS[cls])


def decode_kinds(types_of_data: Iterable[type]) -> Decode:
    """Make a scalar of one of these classes again."""
    kinds = frozenset(types_of_data)

    def decode(data: Any, _: Any) -> object:
        if type(data) not in kinds:
            refuse(data)
        return data

    return decode


def decode_leaf(leaf: Leaf) -> Decode:
    """Make a value again that is stored as a text or a number."""
    stored, of_plain = leaf.stored, leaf.of_plain

    def decode(data: Any, _: Any) -> object:
        if type(data) is not stored:
            refuse(data)
        return of_plain(data)

    return decode


def decode_enum(cls: type[Enum]) -> Decode:
    """Make a member of an enum again."""
    if issubclass(cls, Flag):  # a joined one is no member

        def decode_flag(data: Any, _: Any) -> object:
            if type(data) is not int:
                refuse(data)
            return cls(data)

        return decode_flag
    return _decode_by_table(list(cls))


def decode_literal(cls: Any) -> Decode:
    """Make one of a Literal's values again."""
    return _decode_by_table(typing.get_args(cls))


def _decode_by_table(values: Any) -> Decode:
    # With their types: 1, 1.0 and True are equal.
    table = {(type(plain_of(each)), plain_of(each)): each for each in values}

    def decode(data: Any, _: Any) -> object:
        key = type(data), data
        if key not in table:
            refuse(data)  # a KeyError would show it
        return table[key]

    return decode


def plain_of(value: Any) -> object:
    """Encode a scalar: of an enum's member its value, or its name if not all values are plain."""
    if not isinstance(value, Enum):
        return value
    by_value = all(type(each.value) in SCALARS for each in type(value))
    return value.value if by_value or isinstance(value, Flag) else value.name
