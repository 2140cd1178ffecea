"""Where in a response is what msgpack cannot hold: for the developer who has to change it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgpack

__all__ = ["MAX_NESTING", "culprit", "find_culprit", "kind_of", "step"]

MAX_NESTING: Final = 500
"""How deep maps and lists may be nested: a little less than the least that a msgpack allows."""

_PLAIN_WORD: Final = re.compile(r"[A-Za-z_]{1,32}")
_HELD: Final = (float, bytes, bytearray, memoryview, msgpack.ExtType, msgpack.Timestamp)
_KEYS: Final = (str, bytes, int, float, msgpack.ExtType, msgpack.Timestamp)


def culprit(value: object) -> str:
    """Say what in a response that msgpack has refused is to blame, and where it is.

    Returns:
        A text to follow the word ``response``, such as ``["invoice"]["expiry"]: a datetime``.
        It never shows a value. A key of a map is shown only if it is a plain word, since keys may
        be payload too; any other is counted from 0, as an item of a list is.
    """
    return find_culprit(value) or ": what msgpack refuses, at no place that can be named"


def find_culprit(value: object) -> str | None:
    """Say the same of any value; ``None``: nothing in it is to blame."""
    try:
        return next(_culprits(value, "", []), None)
    except RecursionError:
        return f": nested deeper than {MAX_NESTING}"


def step(key: object, position: int) -> str:
    """Return how a path shows the value of a map's key."""
    if type(key) is str and _PLAIN_WORD.fullmatch(key):
        return f'["{key}"]'
    return f"[key {position}]"


def kind_of(value: object) -> str:
    """Return the name of a value's type, with its article."""
    name = type(value).__name__
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def _culprits(value: object, path: str, around: list[int]) -> Iterator[str]:
    if (problem := _problem(value)) is not None:
        yield f"{path}: {problem}"
    if not isinstance(value, dict | list | tuple) or isinstance(value, msgpack.ExtType):
        return
    if id(value) in around:
        yield f"{path}: {kind_of(value)} that refers to itself"
        return
    if len(around) >= MAX_NESTING:
        yield f": nested deeper than {MAX_NESTING}"
        return
    around.append(id(value))
    if isinstance(value, dict):
        for position, (key, each) in enumerate(value.items()):
            problem = _problem(key)
            if problem is None and key is not None and not isinstance(key, _KEYS):
                problem = kind_of(key)
            if problem is not None:
                yield f"{path}[key {position}]: {problem} as a key"
            yield from _culprits(each, path + step(key, position), around)
    else:
        for position, each in enumerate(value):
            yield from _culprits(each, f"{path}[{position}]", around)
    around.pop()


def _problem(value: object) -> str | None:
    """Return what is wrong with the value itself, whatever is in it; ``None``: nothing is."""
    if value is None or isinstance(value, (*_HELD, dict, list, tuple)):
        return None
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**64 else "an integer beyond 64 bits"
    if not isinstance(value, str):
        return kind_of(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{kind_of(value)} with a lone surrogate"
    return None
