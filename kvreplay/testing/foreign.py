"""What others leave in a store's medium: no list shows it, and it hides nothing that is there.

LDK reads each name that a list shows. One that it does not know makes its whole start fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.errors import KeyNotFoundError
from kvreplay.testing.entries import Address, content, put

__all__ = ["ForeignTests"]

OWN = [("p", "s", "a"), ("p", "s", "b"), ("p", "s", "c"), ("p", "", "k"), ("", "", "k")]


class ForeignTests:
    """Only legal names are shown, and all of them."""

    def test_no_foreign_name_is_shown(
        self, store: Any, reopen: Callable[[], Any], foreign_things: Callable[[], object]
    ) -> None:
        for address in OWN:
            store.write(*address, b"v")
        store.close()
        foreign_things()
        again = reopen()
        _shows(again, OWN)
        again.write("p", "s", "new", b"v")
        again.remove("p", "s", "a")
        _shows(again, [*(address for address in OWN if address[2] != "a"), ("p", "s", "new")])
        with pytest.raises(KeyNotFoundError):
            again.read("p", "s", "a")

    def test_a_sweep_among_foreign_things(
        self, expiring: Any, reopen: Callable[[], Any], foreign_things: Callable[[], object]
    ) -> None:
        for key in ("a", "b", "c"):
            put(expiring, key, b"v", 5)
        put(expiring, "stays", b"v", 50)
        expiring.close()
        foreign_things()
        again = reopen()
        removed = 0
        while (swept := again.sweep("p", 5, 2)).visited:
            removed += swept.removed
        assert (removed, swept.more) == (3, False)
        _shows(again, [("p", "s", "stays")])


def _shows(store: Any, expected: list[Address]) -> None:
    """Each kind of list shows these entries, and no other name."""
    namespaces = {*((p, s) for p, s, _ in expected), ("p", "s"), ("q", ""), ("", "")}
    for namespace in namespaces:
        own = sorted(key for *where, key in expected if tuple(where) == namespace)
        assert sorted(store.list(*namespace)) == own
        if hasattr(store, "transaction"):
            with store.transaction() as txn:
                assert sorted(txn.list(*namespace)) == own
        if hasattr(store, "scan"):
            told = [address for address, _ in store.scan(namespace[0])]
            assert sorted(each[2] for each in told if each[:2] == namespace) == own
        if hasattr(store, "list_paginated"):
            assert sorted(_paged(store.list_paginated, namespace, "keys")) == own
            paged = _paged(store.list_paginated_with_values, namespace, "entries")
            assert sorted(paged) == [(key, b"v") for key in own]
    assert content(store, *namespaces) == dict.fromkeys(expected, b"v")


def _paged(call: Any, namespace: tuple[str, str], attribute: str) -> list[Any]:
    found, token = list[Any](), None
    while True:
        page = call(*namespace, token, limit=1)
        found += getattr(page, attribute)
        token = page.next_page_token
        if token is None:
            return found
