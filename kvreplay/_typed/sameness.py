"""Whether a value that was made again is the same: equal at every place, and type for type.

``==`` says too little: ``1 == True``, a class may compare some of its fields only, or none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import attrs

from kvreplay._protocol.culprit import step
from kvreplay._typed.leaves import LEAVES

__all__ = ["difference"]


def difference(value: Any, again: Any) -> tuple[str, object] | None:
    """Return the path to the first difference, and what is at it; ``None``: they are the same."""
    return next(_differences(value, again, ""), None)


def _differences(value: Any, again: Any, path: str) -> Iterator[tuple[str, object]]:
    cls = type(value)
    if cls is not type(again):
        # A model does not look at its own defaults: one of 0 for a float comes back as 0.0.
        if (cls, type(again)) != (int, float) or value != again:
            yield path, value
    elif (leaf := LEAVES.get(cls)) is not None:  # == loses the offset of a datetime
        if leaf.to_plain(value) != leaf.to_plain(again):
            yield path, value
    elif isinstance(value, dict):
        yield from _of_maps(value, again, path)
    elif isinstance(value, list | tuple):
        if len(value) != len(again):
            yield path, value
        names = getattr(cls, "_fields", None)  # of a NamedTuple
        for position, (one, other) in enumerate(zip(value, again, strict=False)):
            at = f".{names[position]}" if names else f"[{position}]"
            yield from _differences(one, other, path + at)
    elif isinstance(value, set | frozenset):
        if value != again or sorted(map(_type_name, value)) != sorted(map(_type_name, again)):
            yield path, value
    elif (names := _fields_of(value)) is not None:
        for name in names:
            one, other = getattr(value, name, None), getattr(again, name, None)
            yield from _differences(one, other, f"{path}.{name}")
    elif value != again and not (value != value and again != again):  # NaN is the same as NaN
        yield path, value


def _of_maps(
    value: dict[Any, Any], again: dict[Any, Any], path: str
) -> Iterator[tuple[str, object]]:
    if len(value) != len(again):
        yield path, value
    kinds = {key: type(key) for key in again}
    for position, (key, each) in enumerate(value.items()):
        if kinds.get(key) is not type(key):
            yield f"{path}[key {position}]", key
        else:
            yield from _differences(each, again[key], path + step(key, position))


def _fields_of(value: Any) -> list[str] | None:
    """Return the names of what is in a value of attrs, dataclasses or pydantic."""
    cls = type(value)
    if attrs.has(cls):
        return [field.name for field in attrs.fields(cls)]
    if hasattr(cls, "__pydantic_fields__") and not dataclasses.is_dataclass(cls):
        private = getattr(value, "__pydantic_private__", None)
        extra = getattr(value, "__pydantic_extra__", None)
        return [*cls.__pydantic_fields__, *(extra or ()), *(private or ())]
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return None


def _type_name(value: object) -> str:
    return type(value).__qualname__
