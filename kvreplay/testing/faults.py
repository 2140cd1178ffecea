"""A read that fails says so: it never looks like an absent entry, or like a shorter list.

LDK takes an absent monitor update for one that was never written, and goes on with an older state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from kvreplay.errors import KeyNotFoundError, OutcomeUnknownError, StoreError
from kvreplay.store import SweepResult
from kvreplay.testing.entries import put
from kvreplay.testing.threads import elsewhere

__all__ = ["Fault", "FaultTests", "changes_of", "fill", "looks_at", "outcome_of"]

Fault = Callable[[], AbstractContextManager[object]]


class FaultTests:
    """The contract while the store's medium fails, and once it does not any more."""

    def test_a_failed_read_is_never_an_absence(self, store: Any, failing: Fault) -> None:
        fill(store)
        looks = looks_at(store)
        truths = {name: outcome_of(look) for name, look in looks.items()}

        def look() -> dict[str, Any]:
            with failing():
                return {name: outcome_of(look) for name, look in looks.items()}

        for name, found in elsewhere(look).items():
            assert found == truths[name] or is_refusal(found), f"{name}: {found!r}"
        assert {name: outcome_of(look) for name, look in looks.items()} == truths, "afterwards"

    def test_a_change_during_a_fault_says_what_it_has_done(
        self, store: Any, failing: Fault
    ) -> None:
        fill(store)
        changes = changes_of(store)

        def change() -> dict[str, Any]:
            with failing():
                return {name: outcome_of(act) for name, (act, _) in changes.items()}

        for name, said in elsewhere(change).items():
            _, happened = changes[name]
            if isinstance(said, OutcomeUnknownError):
                happened()
            elif isinstance(said, StoreError):
                assert is_refusal(said), f"{name}: {said!r}"
                assert not happened(), f"{name}: {said!r}, and yet it has happened"
            else:
                assert happened() is said, f"{name}: {said!r}, and the store shows something else"
        store.write("p", "s", "later", b"v")
        assert store.read("p", "s", "later") == b"v"


def fill(store: Any) -> None:
    """Write what the looks look at, and what the changes change."""
    for n in range(4):
        store.write("p", "s", f"k{n}", f"{n}".encode() * 3000)
    store.write("p", "", "k", b"v")
    store.write("", "", "top", b"")
    for key in ("removed", "swapped", "deleted", "in-txn"):
        store.write("changed", "s", key, b"v")
    if hasattr(store, "check_and_put"):
        put(store, "due", b"v", 5)
        put(store, "swept", b"v", 5, primary="q")


def looks_at(store: Any) -> Mapping[str, Callable[[], Any]]:
    """Every call that reads, and such changes as do not happen, by a name for the message."""
    looks: dict[str, Callable[[], Any]] = {
        "read": lambda: store.read("p", "s", "k1"),
        "read at the top": lambda: store.read("", "", "top"),
        "read what is absent": lambda: store.read("p", "s", "absent"),
        "read an unknown namespace": lambda: store.read("unknown", "", "k"),
        "list": lambda: sorted(store.list("p", "s")),
        "list at the top": lambda: sorted(store.list("", "")),
        "list an unknown namespace": lambda: store.list("unknown", ""),
    }
    if hasattr(store, "list_all_keys"):
        looks["list all keys"] = lambda: sorted(store.list_all_keys())
    if hasattr(store, "read_entry"):
        looks["read an entry"] = lambda: store.read_entry("p", "s", "k1")
        looks["read an expiry"] = lambda: store.read_entry("p", "s", "due")
        looks["read an entry that is absent"] = lambda: store.read_entry("p", "s", "absent")
    if hasattr(store, "scan"):
        looks["scan"] = lambda: sorted(store.scan(), key=lambda found: found[0])
        looks["scan a namespace"] = lambda: sorted(store.scan("p"), key=lambda found: found[0])
        looks["scan an unknown namespace"] = lambda: list(store.scan("unknown"))
    if hasattr(store, "list_paginated"):
        looks["pages"] = lambda: _pages(store.list_paginated, "keys")
        looks["pages with values"] = lambda: _pages(store.list_paginated_with_values, "entries")
    if hasattr(store, "check_and_put"):
        claim = store.check_and_put
        looks |= {
            "claim what is there": lambda: claim("p", "s", "k1", expected=None, value=b"x"),
            "compare": lambda: claim("p", "s", "k2", expected=b"other", value=b"x"),
            "delete what is absent": lambda: claim("p", "s", "absent", expected=None, value=None),
        }
    if hasattr(store, "sweep"):
        looks["sweep nothing"] = lambda: store.sweep("p", 4, 10)
    if hasattr(store, "transaction"):
        in_one = _in_a_transaction
        looks |= {
            "read in a transaction": in_one(store, lambda txn: txn.read("p", "s", "k1")),
            "miss in a transaction": in_one(store, lambda txn: txn.read("p", "s", "absent")),
            "list in a transaction": in_one(store, lambda txn: sorted(txn.list("p", "s"))),
            "claim in a transaction": in_one(
                store, lambda txn: txn.check_and_put("p", "s", "k1", expected=None, value=b"x")
            ),
        }
    return looks


def changes_of(store: Any) -> Mapping[str, tuple[Callable[[], bool], Callable[[], bool]]]:
    """Changes of one entry each: one says whether it has happened, and a look shows whether."""

    def now(key: str, value: bytes | None, primary: str = "changed") -> Callable[[], bool]:
        def happened() -> bool:
            try:
                return bool(store.read(primary, "s", key) == value)
            except KeyNotFoundError:
                return value is None

        return happened

    changes: dict[str, tuple[Callable[[], bool], Callable[[], bool]]] = {
        "write": (lambda: store.write("changed", "s", "new", b"v") is None, now("new", b"v")),
        "remove": (lambda: store.remove("changed", "s", "removed") is None, now("removed", None)),
    }
    if hasattr(store, "check_and_put"):
        claim = store.check_and_put
        changes |= {
            "claim": (
                lambda: claim("changed", "s", "claimed", expected=None, value=b"v") is None,
                now("claimed", b"v"),
            ),
            "compare and swap": (
                lambda: claim("changed", "s", "swapped", expected=b"v", value=b"w") == b"v",
                now("swapped", b"w"),
            ),
            "compare and delete": (
                lambda: claim("changed", "s", "deleted", expected=b"v", value=None) == b"v",
                now("deleted", None),
            ),
        }
    if hasattr(store, "sweep"):
        changes["sweep"] = (lambda: _swept(store.sweep("q", 5, 10)), now("swept", None, "q"))
    if hasattr(store, "transaction"):
        changes["a transaction"] = (
            _in_a_transaction(store, lambda txn: txn.remove("changed", "s", "in-txn") is None),
            now("in-txn", None),
        )
    return changes


def outcome_of(call: Callable[[], Any]) -> Any:
    """What a call returns; the class of an absence; or the error that it raises instead."""
    try:
        return call()
    except KeyNotFoundError:
        return KeyNotFoundError
    except StoreError as error:
        return error


def is_refusal(found: Any) -> bool:
    """Whether this is an error that says that something has failed."""
    return isinstance(found, StoreError)


def _swept(found: SweepResult) -> bool:
    assert found.visited == 1, "one entry was due"
    return found.removed == 1


def _in_a_transaction(store: Any, act: Callable[[Any], Any]) -> Callable[[], Any]:
    def call() -> Any:
        with store.transaction() as txn:
            return act(txn)

    return call


def _pages(call: Any, attribute: str) -> list[Any]:
    found, token = list[Any](), None
    while True:
        page = call("p", "s", token, limit=2)
        found += getattr(page, attribute)
        token = page.next_page_token
        if token is None:
            return found
