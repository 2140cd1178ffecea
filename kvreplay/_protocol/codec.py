"""How an answer of some type becomes what msgpack can hold, and is made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import attrs

__all__ = ["Codec"]

T = TypeVar("T")


@attrs.define(eq=False)
class Codec(Generic[T]):
    """The two directions of one type. Both may raise anything.

    Attributes:
        encode: makes of a response what msgpack can hold.
        decode: makes the response again, of what was decoded from msgpack.
        name: what messages call the type.
        is_typed: it is that of a type. Its ``encode`` has tried ``decode``, and its errors say
            where the culprit is, and show no value.
    """

    encode: Callable[[T], object]
    decode: Callable[[Any], T]
    name: str
    is_typed: bool = True
