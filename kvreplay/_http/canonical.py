"""One form of all JSON texts that say the same, so that their digests are equal.

White space, escapes, the order of members and the way in which a number is written make no
difference: ``1.0`` is ``1``. Numbers are compared exactly, whatever their size, and not as floats.
``null`` is not the absence of a member, ``true`` is not ``1``, and the order of an array counts.

A text that two readers may take for two things has no such form: one with a name twice in an
object, or nested so deeply that a reader may give up.
"""

from __future__ import annotations

from json import JSONDecoder
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Final

__all__ = ["canonical"]

_DEEPEST: Final = 64
"""Far from where ``json`` gives up, so that the same text never has a form only at times."""


class _Number(str):
    """A number, in its one form."""


def canonical(body: bytes) -> bytes | None:
    """Return the one form of a JSON text, which is JSON too; ``None``: it has none."""
    try:
        return _written(_decoder.decode(body.decode()), _DEEPEST).encode()
    except (ValueError, RecursionError):
        return None


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) != len(members):
        raise ValueError("a name is twice in an object")
    return found


def _constant(name: str) -> None:
    raise ValueError("NaN and Infinity are no JSON")


def _number(text: str) -> _Number:
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, fraction = mantissa.removeprefix("-").partition(".")
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return _Number("0")
    power = int(exponent or 0) - len(fraction) + len(digits) - len(significant)
    sign = "-" if text[0] == "-" else ""
    return _Number(f"{sign}{significant}e{power}")


_decoder: Final = JSONDecoder(
    object_pairs_hook=_object,
    parse_constant=_constant,
    parse_float=_number,
    parse_int=_number,
)


def _written(value: Any, room: int) -> str:
    kind = type(value)
    if kind is _Number:
        return str(value)
    if kind is str:
        return _quoted(value)
    if kind is not dict and kind is not list:
        return "null" if value is None else "true" if value else "false"
    if not room:
        raise ValueError("it is nested too deeply")
    if kind is list:
        return f"[{','.join([_written(each, room - 1) for each in value])}]"
    members = [f"{_quoted(name)}:{_written(value[name], room - 1)}" for name in sorted(value)]
    return f"{{{','.join(members)}}}"
