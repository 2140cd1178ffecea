"""How entries lie in LMDB, and the steps that change them inside a transaction.

``entries``: ``primary NUL secondary NUL key`` -> 8 bytes of expiry, then the value.
``expiry``: ``primary NUL expiry secondary NUL key`` -> nothing, for entries that expire.
An expiry is ``expires_at + 1``, big-endian, so that zeros can mean *none*.

The transaction is each step's last argument: a step is passed on as a ``partial`` without it.
"""

from __future__ import annotations

import string
from functools import lru_cache
from typing import Final

from kvreplay.backends.lmdb.handle import Handle, Transaction
from kvreplay.store import MAX_NAME_LENGTH, SweepResult, check_name, check_namespace

__all__ = [
    "PAGE",
    "STAMP",
    "check_and_put",
    "delete",
    "entry_key",
    "expiry_of",
    "index_key",
    "keys_from",
    "prefix_of",
    "put",
    "sweep",
]

PAGE: Final = 1000
"""How many keys a walk takes from one read transaction."""

STAMP: Final = 8
"""Bytes of expiry before each value."""

_NEVER: Final = bytes(STAMP)
_LEGAL: Final = (string.ascii_letters + string.digits + "_-").encode()


def entry_key(primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
    """Check the names and return the entry's LMDB key."""
    try:  # quick way, for check_name(): LMDB's rows of bench_hit
        own = key.encode()
        if 0 < len(own) <= MAX_NAME_LENGTH and not own.translate(None, _LEGAL):
            return prefix_of(primary_namespace, secondary_namespace) + own
    except (AttributeError, TypeError, UnicodeEncodeError):
        pass
    check_name(primary_namespace, secondary_namespace, key)  # it says what is wrong
    return f"{primary_namespace}\0{secondary_namespace}\0{key}".encode()


@lru_cache(maxsize=1024)
def prefix_of(primary_namespace: str, secondary_namespace: str) -> bytes:
    """Check a namespace and return what the keys of its entries start with."""
    check_namespace(primary_namespace, secondary_namespace)
    return f"{primary_namespace}\0{secondary_namespace}\0".encode()


def index_key(entry: bytes, stamp: bytes) -> bytes:
    """Return an entry's key in the expiry index: by primary namespace, then time."""
    primary, _, rest = entry.partition(b"\0")
    return primary + b"\0" + stamp + rest


def expiry_of(stored: bytes) -> int | None:
    """Return when a stored entry may be dropped, in milliseconds since the epoch, or ``None``."""
    stamp = int.from_bytes(stored[:STAMP], "big")
    return stamp - 1 if stamp else None


def put(handle: Handle, entry: bytes, value: bytes, txn: Transaction) -> None:
    """Create or replace an entry, which then does not expire."""
    old = txn.get(entry, None, handle.entries)
    _replace(handle, txn, entry, old, value)


def delete(handle: Handle, entry: bytes, txn: Transaction) -> None:
    """Remove an entry if it is there."""
    old = txn.get(entry, None, handle.entries)
    _replace(handle, txn, entry, old, None)


def check_and_put(
    handle: Handle,
    entry: bytes,
    expected: bytes | None,
    value: bytes | None,
    expires_at: int | None,
    txn: Transaction,
) -> bytes | None:
    """Change an entry if it is as expected; return what was found."""
    stamp = _NEVER
    if value is not None and expires_at is not None:
        stamp = (expires_at + 1).to_bytes(STAMP, "big")
    if (
        expected is None
        and value is not None  # quick way, one call looks and puts: bench_durable
        and txn.put(entry, stamp + value, overwrite=False, db=handle.entries)
    ):
        _index(handle, txn, entry, stamp)
        return None
    old = txn.get(entry, None, handle.entries)
    found = None if old is None else old[STAMP:]
    if found == expected:
        _replace(handle, txn, entry, old, value, stamp)
    return found


def _replace(
    handle: Handle,
    txn: Transaction,
    entry: bytes,
    old: bytes | None,
    value: bytes | None,
    stamp: bytes = _NEVER,
) -> None:
    """Change an entry and its place in the expiry index together."""
    if old is not None and old[:STAMP] not in (_NEVER, stamp):
        txn.delete(index_key(entry, old[:STAMP]), db=handle.expiry)
    if value is not None:
        txn.put(entry, stamp + value, db=handle.entries)
        _index(handle, txn, entry, stamp)
    elif old is not None:
        txn.delete(entry, db=handle.entries)


def _index(handle: Handle, txn: Transaction, entry: bytes, stamp: bytes) -> None:
    """Put an entry in its place in the expiry index, if it expires."""
    if stamp != _NEVER:
        txn.put(index_key(entry, stamp), b"", db=handle.expiry)


def sweep(
    handle: Handle, primary_namespace: str, now: int, limit: int, txn: Transaction
) -> SweepResult:
    """Remove due entries of one primary namespace, the longest due first."""
    prefix = primary_namespace.encode() + b"\0"
    due: list[bytes] = []
    more = False
    with txn.cursor(handle.expiry) as cursor:
        found = cursor.set_range(prefix)
        while found:
            index = cursor.key()
            stamp = index[len(prefix) : len(prefix) + STAMP]
            if not index.startswith(prefix) or int.from_bytes(stamp, "big") > now + 1:
                break
            if len(due) == limit:
                more = True
                break
            due.append(index)
            found = cursor.next()
    removed = 0
    for index in due:
        stamp, rest = index[len(prefix) : len(prefix) + STAMP], index[len(prefix) + STAMP :]
        stored = txn.get(prefix + rest, None, handle.entries)
        txn.delete(index, db=handle.expiry)
        if stored is not None and stored[:STAMP] == stamp:
            removed += txn.delete(prefix + rest, db=handle.entries)
    return SweepResult(len(due), removed, more)


def keys_from(
    handle: Handle, prefix: bytes, start: bytes, limit: int | None, txn: Transaction
) -> list[bytes]:
    """Return the entries' keys from ``start`` on that have the prefix, at most ``limit``."""
    keys: list[bytes] = []
    with txn.cursor(handle.entries) as cursor:
        found = cursor.set_range(start) if start else cursor.first()
        while found and len(keys) != limit:
            key = cursor.key()
            if not key.startswith(prefix):
                break
            keys.append(key)
            found = cursor.next()
    return keys
