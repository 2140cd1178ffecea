"""The order in which a migration walks a store, without all its keys in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from tempfile import SpooledTemporaryFile
from typing import Any, Final

from kvreplay.store.paging import MAX_PAGE

__all__ = ["Address", "namespaces", "newest_first", "oldest_first"]

Address = tuple[str, str, str]

_REMEMBERED: Final = 20_000  # namespaces
_IN_MEMORY: Final = 64 * 1024  # bytes of keys, before a temporary file holds them


def namespaces(addresses: Iterable[Address]) -> Iterator[tuple[str, str]]:
    """Yield the namespaces of these addresses; where there are very many, one may come again."""
    seen: dict[tuple[str, str], None] = {}
    for primary, secondary, _ in addresses:
        if (primary, secondary) not in seen:
            if len(seen) >= _REMEMBERED:
                del seen[next(iter(seen))]
            seen[primary, secondary] = None
            yield primary, secondary


def newest_first(store: Any, namespace: tuple[str, str]) -> Iterator[str]:
    """Yield the keys of a namespace page by page, those that were created last come first."""
    for page in _pages(store, namespace):
        yield from page


def oldest_first(store: Any, namespace: tuple[str, str]) -> Iterator[str]:
    """Yield the keys of a namespace in the order of their creation, as they are at the start.

    The pages come in the other order. A temporary file without a name keeps them meanwhile.
    """
    with SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        ends = [0]
        for page in _pages(store, namespace):
            spool.write("\n".join(page).encode())
            ends.append(spool.tell())
        for end, start in pairwise(reversed(ends)):
            spool.seek(start)
            yield from reversed(spool.read(end - start).decode().split("\n"))


def _pages(store: Any, namespace: tuple[str, str]) -> Iterator[list[str]]:
    token: str | None = None
    while True:
        page = store.list_paginated(*namespace, token, limit=MAX_PAGE)
        if page.keys:
            yield list(page.keys)
        token = page.next_page_token
        if token is None:
            return
