"""The value of the ``Idempotency-Key`` header, as a client sends it.

draft-ietf-httpapi-idempotency-key-header-07 makes it an Item of Structured Fields (RFC 9651) whose
value is a String: ``Idempotency-Key: "8e03978e-40d5-43e8-bc93-6894a57f9324"``. Parameters may
follow; none has a meaning, so they are checked and ignored. Two lines of the header are a list, and
no Item.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["LONGEST", "MalformedKeyError", "quoted_key", "raw_key"]

LONGEST: Final = 255
"""Characters of a key."""

_STRING: Final = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_BARE_ITEM: Final = "|".join(
    [
        r"-?[0-9]{1,12}\.[0-9]{1,3}",
        r"-?[0-9]{1,15}",
        _STRING,
        r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*",  # a Token
        r":(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2,3}=*)?:",  # a Byte Sequence
        r"\?[01]",
        r"@-?[0-9]{1,15}",  # a Date
        r'%"(?:[ !#-$&-~]|%[0-9a-f]{2})*"',  # a Display String
    ]
)
_PARAMETERS: Final = rf"(?:; *[a-z*][a-z0-9_\-.*]*(?:=(?:{_BARE_ITEM}))?)*"
_item: Final = re.compile(rf" *({_STRING}){_PARAMETERS} *").fullmatch
_plain: Final = re.compile(r'"([ !#-\[\]-~]{1,255})"').fullmatch  # nearly every key
_bare: Final = re.compile(r"[!-+\--:<-~]+").fullmatch  # what is visible, without "," and ";"
_printable: Final = re.compile(r"[ -~]+").fullmatch
_LONGEST_FIELD: Final = 4096


class MalformedKeyError(Exception):
    """The header holds no key; the message says why, and does not show it."""


def quoted_key(field: str, *, or_bare: bool) -> str:
    """Return the key of a Structured Fields String.

    Args:
        or_bare: a key without quotes is accepted too.

    Raises:
        MalformedKeyError: it is no String, empty, or too long.
    """
    plain = _plain(field)
    if plain is not None:
        return plain[1]
    if or_bare and '"' not in field and _bare(field.strip(" ")):
        return _checked(field.strip(" "))
    found = _item(field) if len(field) <= _LONGEST_FIELD else None
    if found is None:
        raise MalformedKeyError(
            'it is not one Structured Fields String: a text in quotes, such as "8e03978e-40d5"'
        )
    return _checked(re.sub(r"\\(.)", r"\1", found[1][1:-1]))


def raw_key(field: str) -> str:
    """Return the key of a header whose whole value is the key.

    Raises:
        MalformedKeyError: it is empty, too long, or not printable ASCII.
    """
    key = field.strip(" ")
    if key and not _printable(key):
        raise MalformedKeyError("it has characters other than printable ASCII")
    return _checked(key)


def _checked(key: str) -> str:
    if not key:
        raise MalformedKeyError("it is empty")
    if len(key) > LONGEST:
        raise MalformedKeyError(f"it is longer than {LONGEST} characters")
    return key
