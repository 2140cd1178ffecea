"""A store offers the capabilities whose methods it has. Tests of the others are left out."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from kvreplay.store import (
    AtomicKVStore,
    BackupKVStore,
    BatchingKVStore,
    CheckableKVStore,
    CompactableKVStore,
    ExpiringKVStore,
    InspectableKVStore,
    MigratableKVStore,
    PaginatedKVStore,
    PromptKVStore,
    ScannableKVStore,
    TransactionalKVStore,
)

__all__ = ["class_opened_by", "leave_out", "unclaimed"]

CAPABILITIES: Final[Mapping[str, tuple[type, tuple[str, ...]]]] = {
    # the fixture of the tests that need it: (the capability, what it has beyond the four calls)
    "walkable": (MigratableKVStore, ("list_all_keys",)),
    "atomic": (AtomicKVStore, ("list_all_keys", "check_and_put")),
    "backable": (BackupKVStore, ("list_all_keys", "backup")),
    "batching": (BatchingKVStore, ("list_all_keys", "check_and_put", "check_and_put_each")),
    "checkable": (CheckableKVStore, ("list_all_keys", "check")),
    "compactable": (CompactableKVStore, ("list_all_keys", "compact")),
    "expiring": (ExpiringKVStore, ("list_all_keys", "check_and_put", "sweep")),
    "inspectable": (
        InspectableKVStore,
        ("list_all_keys", "check_and_put", "sweep", "read_entry"),
    ),
    "paginated": (
        PaginatedKVStore,
        ("list_all_keys", "list_paginated", "list_paginated_with_values"),
    ),
    "prompt": (PromptKVStore, ("list_all_keys", "check_and_put", "check_and_put_at_once")),
    "scannable": (
        ScannableKVStore,
        ("list_all_keys", "check_and_put", "sweep", "read_entry", "scan"),
    ),
    "transactional": (
        TransactionalKVStore,
        ("list_all_keys", "check_and_put", "sweep", "transaction"),
    ),
}


def unclaimed(store: object) -> dict[str, str]:
    """The fixtures of the capabilities that a store, or its class, does not offer, and why."""
    name = store.__name__ if isinstance(store, type) else type(store).__name__
    reasons: dict[str, str] = {}
    for fixture, (capability, methods) in CAPABILITIES.items():
        missing = next((method for method in methods if not hasattr(store, method)), None)
        if missing is not None:
            reasons[fixture] = f"{name} is no {capability.__name__}: it has no {missing}()"
    if not hasattr(store, "max_change_bytes"):
        reasons["bounded"] = f"{name} takes values of any size: it has no max_change_bytes"
    return reasons


def class_opened_by(opens: Callable[..., Any]) -> type | None:
    """The class of the stores that it opens, if it is that class or its annotation names it."""
    returned: object = opens
    if not isinstance(opens, type):
        try:
            returned = typing.get_type_hints(opens).get("return")
        except NameError:  # a name that is imported for type checkers only
            return None
    # A class with __getattr__ shows its methods only once it is opened.
    if returned is Any or not isinstance(returned, type) or hasattr(returned, "__getattr__"):
        return None
    return returned


def leave_out(tests: type, fixtures: Collection[str]) -> None:
    """Hide the tests of a class that use any of these fixtures from pytest."""
    for name in dir(tests):
        test = getattr(tests, name)
        if name.startswith("test_") and callable(test):
            used = inspect.signature(test).parameters.keys()
            if not used.isdisjoint(fixtures):
                setattr(tests, name, None)
