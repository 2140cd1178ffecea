"""Check every record of the replay namespaces, and move aside what is none.

What is in another namespace is somebody else's: it is neither judged nor touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

import attrs
import msgpack

from kvreplay._inspection.condition import Inspection
from kvreplay._inspection.entries import Address, Seen, seen_in
from kvreplay._protocol.keys import name
from kvreplay.errors import CorruptRecordError, RecordError
from kvreplay.store import CheckableKVStore, missing_methods

__all__ = ["QUARANTINE", "Bad", "check", "quarantine"]

QUARANTINE: Final = "kvreplay-quarantine"
"""The primary namespace of what was moved aside. The secondary one is where it was."""

_VERSION: Final = 1


@attrs.frozen
class Bad:
    """Something that is wrong.

    Attributes:
        address: of the entry; ``None``: it is about the store itself.
        seen: the entry, if it is no record and could be moved aside.
    """

    address: Address | None
    what: str
    seen: Seen | None = attrs.field(default=None, repr=False)


def check(
    inspection: Inspection, namespaces: Collection[str], passed: Callable[[], None]
) -> Iterator[Bad]:
    """Yield what is wrong with the records of these namespaces, and with the store itself.

    Args:
        passed: is called for each record that was looked at, sound or not.
    """
    for namespace in namespaces:
        for seen in seen_in(inspection.store, namespace):
            passed()
            if (what := _wrong(seen)) is not None:
                corrupt = isinstance(seen.found, CorruptRecordError)
                yield Bad(seen.address, what, seen if corrupt else None)
    if not missing_methods(inspection.store, CheckableKVStore):
        for fault in inspection.store.check():
            yield Bad(fault.address, fault.what)


def _wrong(seen: Seen) -> str | None:
    record, expires_at = seen.found, seen.entry.expires_at
    if isinstance(record, RecordError):
        return str(record).partition(":")[0]
    if record.claim is not None:
        return None if expires_at is None else "a claim has an expiry, so a sweep would remove it"
    if expires_at is None:
        return "it is not in the index of expiry, so no sweep removes it"
    if expires_at < (record.expires_at or 0):
        return "the index of expiry has an earlier time than the record"
    return None


def quarantine(store: Any, seen: Seen) -> str | None:
    """Move an entry aside, and return its key there; ``None``: it is not what was seen any more.

    It is copied first, so a crash in between loses nothing, and a second time completes it. Other
    bytes that were moved from there before are kept. A request for its key runs the handler then:
    what the entry said is known to nobody any more.
    """
    primary, secondary, key = seen.address
    value, expires_at = seen.entry.value, seen.entry.expires_at
    # As map, so that people can read it: see docs/format.md.
    aside = msgpack.packb(
        {
            "version": _VERSION,
            "secondary": secondary,
            "key": key,
            "value": value,
            "expires_at": expires_at,
        }
    )
    which = hashlib.sha256(value).hexdigest()
    own = name(f"{secondary}/{key}/{which}")
    store.write(QUARANTINE, primary, own, aside)
    found = store.check_and_put(primary, secondary, key, expected=value, value=None)
    return own if found == value else None
