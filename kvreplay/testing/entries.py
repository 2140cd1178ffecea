"""What the tests put into a store, and what they find in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvreplay.errors import KeyNotFoundError
from kvreplay.store import MAX_NAME_LENGTH, AtomicKVStore

__all__ = ["LONGEST", "Address", "content", "count_up", "every_call", "put"]

Address = tuple[str, str, str]

LONGEST = "N" * MAX_NAME_LENGTH


def put(
    store: AtomicKVStore,
    key: str,
    value: bytes | None,
    expires_at: int | None = None,
    primary: str = "p",
) -> None:
    """Put a value by check-and-put, whatever is there."""
    try:
        expected = store.read(primary, "s", key)
    except KeyNotFoundError:
        expected = None
    found = store.check_and_put(
        primary, "s", key, expected=expected, value=value, expires_at=expires_at
    )
    assert found == expected


def count_up(store: AtomicKVStore, times: int) -> None:
    """Add to the number in the entry ``p/s/n``, while others do the same."""
    for _ in range(times):
        expected = store.read("p", "s", "n")
        while True:
            value = str(int(expected) + 1).encode()
            found = store.check_and_put("p", "s", "n", expected=expected, value=value)
            if found == expected:
                break
            assert found is not None
            expected = found


def content(store: Any, *namespaces: tuple[str, str]) -> dict[Address, bytes]:
    """Every entry of a store; if it cannot be walked, every entry of these namespaces."""
    if hasattr(store, "list_all_keys"):
        addresses = list(store.list_all_keys())
    else:
        addresses = [(p, s, k) for p, s in namespaces or [("p", "s")] for k in store.list(p, s)]
    assert len(addresses) == len(set(addresses)), "an entry is shown twice"
    return {address: store.read(*address) for address in addresses}


def every_call(store: Any) -> list[Callable[[], object]]:
    """Every call that a store has, on an entry that is there and on one that is not."""
    calls: list[Callable[[], object]] = [
        lambda: store.read("p", "s", "k"),
        lambda: store.read("p", "s", "absent"),
        lambda: store.write("p", "s", "k", b"w"),
        lambda: store.remove("p", "s", "k"),
        lambda: store.remove("p", "s", "absent"),
        lambda: store.remove("p", "s", "k", lazy=True),
        lambda: store.list("p", "s"),
        lambda: store.list("unknown", ""),
    ]
    if hasattr(store, "list_all_keys"):
        calls.append(lambda: list(store.list_all_keys()))
    if hasattr(store, "check_and_put"):
        calls += [
            lambda: store.check_and_put("p", "s", "k", expected=b"v", value=b"w"),
            lambda: store.check_and_put("p", "s", "k", expected=b"x", value=b"w"),
            lambda: store.check_and_put("p", "s", "k", expected=b"v", value=None),
        ]
    if hasattr(store, "sweep"):
        calls.append(lambda: store.sweep("p", 10, 10))
    if hasattr(store, "read_entry"):
        calls.append(lambda: store.read_entry("p", "s", "k"))
    if hasattr(store, "scan"):
        calls.append(lambda: list(store.scan()))
        calls.append(lambda: list(store.scan("unknown")))
    if hasattr(store, "check"):
        calls.append(lambda: list(store.check()))
    if hasattr(store, "backup"):
        calls.append(lambda: store.backup("unused"))
    if hasattr(store, "compact"):
        calls.append(store.compact)
    if hasattr(store, "list_paginated"):
        calls.append(lambda: store.list_paginated("p", "s"))
        calls.append(lambda: store.list_paginated_with_values("p", "s"))
    if hasattr(store, "transaction"):
        calls.append(lambda: store.transaction().__enter__())
    return calls
