"""Tokens of pages in creation order, the same for every engine that gives them.

A token is ``order.key.check``: the creation number and the key of the last entry of a page, and a
checksum over these and the namespace. So it needs nothing that is stored: it outlives its entry and
a restart. The checksum finds a token of another namespace; it is no protection against forgery.
"""

from __future__ import annotations

import zlib
from typing import Final

from kvreplay.errors import InvalidValueError
from kvreplay.store.names import check_namespace, is_name

__all__ = ["MAX_PAGE", "Place", "check_page", "page_token", "place_of"]

MAX_PAGE: Final = 1000
"""How many entries are in a page, at most."""

Place = tuple[int, str]
"""Where a page ended: the creation number and the key of its last entry."""

_MAX_ORDER: Final = 2**63 - 1


def page_token(primary_namespace: str, secondary_namespace: str, place: Place) -> str:
    """Return the token for the page after this place."""
    text = f"{place[0]}.{place[1]}"
    return f"{text}.{_checksum(primary_namespace, secondary_namespace, text)}"


def place_of(primary_namespace: str, secondary_namespace: str, token: object) -> Place | None:
    """Return the place that a token names; ``None`` for no token: the first page.

    Raises:
        InvalidValueError: it is not a token of this namespace.
    """
    if token is None:
        return None
    if isinstance(token, str):
        text, _, checksum = token.rpartition(".")
        order, _, key = text.partition(".")
        if (
            checksum == _checksum(primary_namespace, secondary_namespace, text)
            and is_name(key)
            and order.isascii()
            and order.isdecimal()
            and len(order) <= 19
            and int(order) <= _MAX_ORDER
        ):
            return int(order), key
    raise InvalidValueError(
        "the page token is not one of this namespace; nothing was read: begin again with no token"
    )


def check_page(primary_namespace: str, secondary_namespace: str, limit: object) -> None:
    """Check the arguments of ``list_paginated``, besides its token.

    Raises:
        InvalidNameError: the namespace breaks the name rules.
        InvalidValueError: ``limit`` is not an ``int`` from 1 to 1000.
    """
    check_namespace(primary_namespace, secondary_namespace)
    if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
        raise InvalidValueError(f"limit must be an int from 1 to {MAX_PAGE}; nothing was read")


def _checksum(primary_namespace: str, secondary_namespace: str, text: str) -> str:
    named = f"{primary_namespace}/{secondary_namespace}/{text}"
    return f"{zlib.crc32(named.encode(errors='surrogatepass')):08x}"
