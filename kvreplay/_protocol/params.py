"""Parameters as canonical msgpack bytes: parameters are equal if and only if their bytes are.

Maps are sorted by their encoded keys at every depth; numbers and lengths take msgpack's
shortest form, floats always eight bytes. ``1``, ``1.0``, ``True``, ``"1"`` and ``b"1"`` all
differ, a list equals a tuple, and ``0.0`` differs from ``-0.0``. Text is compared as given:
the caller normalises the spellings of its domain (hex case, ``"0042"`` for ``"42"``, Unicode
forms).

The bytes are msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, cast

from kvreplay._protocol.packing import packer
from kvreplay.errors import InvalidParamsError

__all__ = ["MAX_DEPTH", "canonical", "comparable"]

MAX_DEPTH: Final = 64
"""How deep maps and lists may be nested."""

_TEXT: Final = frozenset((str,))
_PLAIN: Final = frozenset((str, int, bytes, bool, type(None)))

_pack: Final = packer()
_pack_strictly: Final = packer(strict_types=True)  # refuses subclasses, and tuples


def canonical(params: object, packed: bytes | None = None) -> bytes:
    """Encode parameters made of dict, list, tuple, str, bytes, int, float, bool and None.

    Args:
        packed: what :func:`comparable` made of them; the result, if all values are plain.

    Raises:
        InvalidParamsError: another type (even a subclass), NaN, an integer beyond 64 bits, a lone
            surrogate, or nesting deeper than :data:`MAX_DEPTH`. It names the kind of the
            value, and never shows the value.
    """
    if packed is not None and _is_flat(params):  # quick way, for plain params: bench_hit
        return packed
    try:
        encoded: bytes = _pack(_ordered(params, 0))
    except UnicodeEncodeError as error:
        raise InvalidParamsError(
            "params hold a lone surrogate, which is not text; nothing ran"
        ) from error
    except OverflowError as error:
        raise InvalidParamsError("params hold an integer beyond 64 bits; nothing ran") from error
    return encoded


def comparable(params: object) -> bytes | None:
    """Encode a map as :func:`canonical` does, but without its checks: only to compare the bytes.

    If these bytes equal those of :func:`canonical`, the params are the same (a ``bytearray`` equals
    its bytes). If they differ, or for ``None``, ask :func:`canonical`.
    """
    try:  # quick way, for canonical(): bench_hit
        if type(params) is dict and (form := _form_of(tuple(params))):
            packed: bytes = _pack_strictly(form | params)
            return packed
    except (TypeError, ValueError, OverflowError):
        pass  # canonical() says what is wrong
    return None


def _is_flat(params: object) -> bool:
    """Whether the params are a map of texts to plain scalars, as they nearly always are."""
    return (
        type(params) is dict
        and _TEXT.issuperset(map(type, params))
        and _PLAIN.issuperset(map(type, params.values()))
    )


# A client may choose a map's keys, so only small ones are remembered.
_MANY_KEYS: Final = 32
_LONG_KEYS: Final = 1024  # characters of all keys together


@lru_cache(maxsize=512)
def _form_of(keys: tuple[object, ...]) -> dict[str, object] | None:
    """Return a dict of the keys in the order of their encoded bytes; ``None``: one is not ASCII.

    Raises:
        ValueError: they are not texts, or too many or too long to be remembered. (What raises is
            not remembered.)
    """
    texts = [key for key in keys if type(key) is str] if len(keys) <= _MANY_KEYS else []
    if len(texts) < len(keys) or sum(map(len, texts)) > _LONG_KEYS:
        raise ValueError("not to be remembered")
    return _sorted_form(texts) if all(map(str.isascii, texts)) else None


def _sorted_form(texts: Iterable[str]) -> dict[str, object]:
    """Return a dict of ASCII texts in the order of their encoded bytes."""
    return dict.fromkeys(sorted(sorted(texts), key=len))  # msgpack begins with the length


def _ordered(value: object, depth: int) -> object:
    """Rebuild the value with sorted maps, and check every part of it."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        if value != value:
            raise InvalidParamsError("params hold NaN, which equals nothing; nothing ran")
        return value
    if depth >= MAX_DEPTH:
        raise InvalidParamsError(f"params are nested deeper than {MAX_DEPTH}; nothing ran")
    if isinstance(value, dict) and kind is dict:
        return {key: _ordered(value[key], depth + 1) for key in _ordered_keys(value)}
    if isinstance(value, list | tuple) and kind in (list, tuple):
        return [_ordered(item, depth + 1) for item in value]
    raise InvalidParamsError(
        f"params hold a {kind.__name__}; only dict, list, tuple, str, bytes, int, float, bool and"
        " None can be compared byte by byte: convert it first; nothing ran"
    )


def _ordered_keys(mapping: dict[object, object]) -> Iterable[object]:
    """Sort a map's keys by their encoded bytes."""
    if _TEXT.issuperset(map(type, mapping)):
        texts = cast(dict[str, object], mapping)
        if all(map(str.isascii, texts)):
            return _sorted_form(texts)
    return sorted(mapping, key=_packed_key)


def _packed_key(key: object) -> bytes:
    if type(key) not in (str, bytes, int, float, bool, type(None)):
        raise InvalidParamsError(
            f"params hold a map with a {type(key).__name__} as key; a key must be str, bytes, int,"
            " float, bool or None; nothing ran"
        )
    packed: bytes = _pack(_ordered(key, MAX_DEPTH))
    return packed
