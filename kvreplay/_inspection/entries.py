"""The entries of a store, each with what it holds, and which namespaces are replay ones.

A primary namespace is a replay namespace if it is named, or if one of its entries is a record. A
record has a checksum and a shape of its own, so nothing else is taken for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from kvreplay._protocol.keys import HASHED, ReplayKey, name, scope_name
from kvreplay._protocol.record import ReplayRecord, decode
from kvreplay.errors import (
    ConfigError,
    CorruptRecordError,
    KeyNotFoundError,
    RecordError,
    UnsupportedRecordVersionError,
)
from kvreplay.store import Entry, InspectableKVStore, ScannableKVStore, missing_methods
from kvreplay.store.names import check_namespace

__all__ = [
    "Address",
    "Seen",
    "entries_of",
    "namespaces_of",
    "replay_namespaces",
    "seen_in",
    "seen_of",
]

Address = tuple[str, str, str]


@attrs.frozen(repr=False)
class Seen:
    """An entry as it was found.

    Attributes:
        found: the record that it holds, or what is wrong with it.
    """

    address: Address
    entry: Entry
    found: ReplayRecord | RecordError

    @property
    def is_record(self) -> bool:
        """Whether it is one, even if a later kvreplay has written it."""
        return isinstance(self.found, ReplayRecord | UnsupportedRecordVersionError)


def seen_in(store: Any, namespace: str | None = None) -> Iterator[Seen]:
    """Yield every entry of a store, or of one primary namespace, in no promised order.

    Each entry that exists during the whole walk is yielded once; the walk blocks no writer.
    """
    for address, entry in entries_of(store, namespace):
        yield seen_of(address, entry)


def seen_of(address: Address, entry: Entry) -> Seen:
    """Look at what an entry holds."""
    try:
        record = decode(entry.value)
    except RecordError as error:
        return Seen(address, entry, error)
    if not _belongs(record.key, address):
        return Seen(address, entry, CorruptRecordError("it is the record of another key"))
    return Seen(address, entry, record)


def _belongs(key: ReplayKey, address: Address) -> bool:
    """Say whether a key has this address."""
    _, secondary, own = address
    if (  # quick way, for name(): what is the name of an entry is a legal one
        key.scope == secondary
        and key.id == own
        and key.operation is None
        and not secondary.startswith(HASHED)
        and not own.startswith(HASHED)
    ):
        return True
    return secondary == scope_name(key.scope) and own == name(key.id, key.operation)


def entries_of(store: Any, namespace: str | None = None) -> Iterator[tuple[Address, Entry]]:
    """Yield every entry of a store, or of one primary namespace, a page at a time."""
    if not missing_methods(store, ScannableKVStore):
        yield from store.scan(namespace)
        return
    if missing := missing_methods(store, InspectableKVStore):
        raise ConfigError(
            f"the store cannot be looked through: it has no {', '.join(missing)}; nothing was done"
        )
    for address in store.list_all_keys():
        if namespace is None or address[0] == namespace:
            try:
                yield address, store.read_entry(*address)
            except KeyNotFoundError:
                pass  # it was removed since it was listed


def namespaces_of(store: Any) -> list[str]:
    """Return every primary namespace of a store, sorted."""
    return sorted({primary for primary, _, _ in store.list_all_keys()})


def is_empty(store: Any, namespace: str) -> bool:
    """Say whether a primary namespace has no entry: its name may be mistyped."""
    return next(entries_of(store, namespace), None) is None


def replay_namespaces(store: Any, named: str | None) -> tuple[list[str], list[str]]:
    """Return the replay namespaces, and all others, sorted.

    The named one is a replay namespace, and then there are no others. Else it is every one that has
    a record.

    Raises:
        InvalidNameError: the named one cannot be one.
    """
    if named is not None:
        check_namespace(named, "")
        return [named], []
    every = namespaces_of(store)
    replay = [each for each in every if each and _has_a_record(store, each)]
    return replay, [each for each in every if each not in replay]


def _has_a_record(store: Any, namespace: str) -> bool:
    return any(seen_of(*each).is_record for each in entries_of(store, namespace))
