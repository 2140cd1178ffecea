"""How entries lie in LMDB, and the steps that change them inside a transaction.

``entries``: ``primary NUL secondary NUL key`` -> expiry (8 bytes), creation (8), the id of the
transaction that put it (8), then the value.
``expiry``: ``primary NUL expiry secondary NUL key`` -> nothing, for entries that expire.
``created``: a digest of ``primary NUL secondary``, creation -> key.
An expiry is ``expires_at + 1``, big-endian, so that zeros can mean *none*. A creation is a number,
big-endian, which an entry gets when it is made; an update keeps it, so ``created`` stays as it is.
``meta`` has the last one that was given. The digest keeps ``created`` small. A database with many
items for one key would do so too, but LMDB counts its pages wrongly, and ``verify`` complains.
Creation and transaction are the identity of an entry: no two states of it share one.

The transaction is each step's last argument: a step is passed on as a ``partial`` without it.

Another program may have put something else there. A key that is no legal address is not shown. A
value that is too short for its head is damaged, and that is told.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final

from kvreplay.backends._support import SCAN_BYTES
from kvreplay.backends.lmdb.handle import Handle, Transaction
from kvreplay.errors import CorruptStoreError
from kvreplay.store import MAX_NAME_LENGTH, SweepResult, check_name, check_namespace
from kvreplay.store.names import are_names
from kvreplay.store.paging import Place

__all__ = [
    "HEAD",
    "NEVER",
    "PAGE",
    "Address",
    "Hidden",
    "addresses_in",
    "check_and_put",
    "created_key",
    "creation_of",
    "delete",
    "delete_if",
    "digest_of",
    "empty_value",
    "entry_in",
    "entry_key",
    "expiry_of",
    "identity_at",
    "identity_of",
    "index_key",
    "items_from",
    "keys_from",
    "last_creation",
    "names_in",
    "page",
    "prefix_of",
    "put",
    "shown_from",
    "stamp_of",
    "sweep",
]

PAGE: Final = 1000
"""How many entries a walk takes from one read transaction."""

HEAD: Final = 24
"""Bytes before each value: eight of expiry, the stamp, and sixteen of its identity."""

Address = tuple[str, str, str]

Hidden = Mapping[bytes, bytes]
"""For the keys of entries that are removed lazily, their identities."""

_STAMP: Final = 8
_CREATED: Final = 16  # where the creation ends
_DIGEST: Final = 16
NEVER: Final = bytes(_STAMP)
"""The stamp of an entry without an expiry."""
_LAST: Final = b"created"  # the key of the last creation, in the database ``meta``
_NONE: Final = bytes(8)
_MOST: Final = 2**63 - 1  # what a token of a page can name
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


@lru_cache(maxsize=1024)
def digest_of(namespace: bytes) -> bytes:
    """Return what the keys of a namespace's creations start with."""
    return hashlib.sha256(namespace, usedforsecurity=False).digest()[:_DIGEST]


def addresses_in(keys: Iterable[bytes]) -> Iterator[Address | None]:
    """Yield the address that each of LMDB's keys is, or ``None`` where it is no legal one."""
    seen, namespace = b"", list[str]()
    for each in keys:
        prefix, _, own = each.rpartition(b"\0")
        if prefix != seen or not namespace:
            seen, namespace = prefix, _namespace_of(prefix)
        name = _name_of(own)
        yield (namespace[0], namespace[1], name) if name is not None and namespace else None


def names_in(prefix: bytes, keys: list[bytes]) -> list[str]:
    """Return the legal names of entries of one namespace."""
    own = [key[len(prefix) :] for key in keys]
    try:
        names = b"\0".join(own).decode("ascii").split("\0")
        if len(names) == len(own) and are_names(names):
            return names
    except UnicodeDecodeError:
        pass  # there is a foreign one among them
    return [name for key in own if (name := _name_of(key)) is not None]


def _namespace_of(prefix: bytes) -> list[str]:
    """Return the two parts of a legal namespace, or nothing."""
    parts = prefix.split(b"\0")
    names = [_name_of(each) if each else "" for each in parts]
    if len(names) != 2 or None in names or (names[1] and not names[0]):
        return []
    return [each or "" for each in names]


def _name_of(key: bytes) -> str | None:
    if 0 < len(key) <= MAX_NAME_LENGTH and not key.translate(None, _LEGAL):
        return key.decode()
    return None


def empty_value(stored: bytes, handle: Handle) -> bytes:
    """Return the value of what is stored, where that has no byte beyond a head.

    Raises:
        CorruptStoreError: it is shorter than a head. No change of kvreplay's makes such an entry.
    """
    if len(stored) < HEAD:
        raise CorruptStoreError(
            f"an entry of the LMDB store {handle.path} is too short: another program has put it"
            " there, or it is damaged; nothing was changed: write or remove that entry, or restore"
            " the store from a backup"
        )
    return b""


def index_key(entry: bytes, stamp: bytes) -> bytes:
    """Return an entry's key in the expiry index: by primary namespace, then time."""
    primary, _, rest = entry.partition(b"\0")
    return primary + b"\0" + stamp + rest


def entry_in(index: bytes) -> tuple[bytes, bytes]:
    """Return the entry's key that a key of the expiry index names, and the bytes of the expiry."""
    primary, _, rest = index.partition(b"\0")
    return primary + b"\0" + rest[_STAMP:], rest[:_STAMP]


def expiry_of(stored: bytes) -> int | None:
    """Return when a stored entry may be dropped, in milliseconds since the epoch, or ``None``."""
    stamp = int.from_bytes(stored[:_STAMP], "big")
    return stamp - 1 if stamp else None


def stamp_of(stored: bytes) -> bytes:
    """Return the bytes of a stored entry's expiry."""
    return stored[:_STAMP]


def creation_of(stored: bytes) -> bytes:
    """Return the bytes of the number of a stored entry's creation."""
    return stored[_STAMP:_CREATED]


def created_key(entry: bytes, stored: bytes) -> bytes:
    """Return a stored entry's key among the creations of its namespace."""
    namespace, _, _ = entry.rpartition(b"\0")
    return digest_of(namespace) + creation_of(stored)


def identity_of(stored: bytes) -> bytes:
    """Return what tells a stored entry from what was put there before, or will be."""
    return stored[_STAMP:HEAD]


def identity_at(handle: Handle, entry: bytes) -> bytes | None:
    """Return the identity of the entry that is stored, if one is."""
    stored = handle.get(entry)
    return None if stored is None else identity_of(stored)


def put(handle: Handle, entry: bytes, value: bytes, txn: Transaction) -> None:
    """Create or replace an entry, which then does not expire."""
    old = txn.get(entry, None, handle.entries)
    _replace(handle, txn, entry, old, value)


def delete(handle: Handle, entry: bytes, txn: Transaction) -> None:
    """Remove an entry if it is there."""
    old = txn.get(entry, None, handle.entries)
    _replace(handle, txn, entry, old, None)


def delete_if(handle: Handle, entry: bytes, identity: bytes, txn: Transaction) -> None:
    """Remove an entry if it is there with this identity."""
    old = txn.get(entry, None, handle.entries)
    if old is not None and identity_of(old) == identity:
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
    stamp = NEVER
    if value is not None and expires_at is not None:
        stamp = (expires_at + 1).to_bytes(_STAMP, "big")
    if expected is None and value is not None:  # quick way, for _replace(): bench_durable
        creation = _next_creation(handle, txn)
        head = stamp + creation + _id_of(txn)
        if txn.put(entry, head + value, overwrite=False, db=handle.entries):
            _note_creation(handle, txn, entry, creation)
            _index(handle, txn, entry, stamp)
            return None
    old = txn.get(entry, None, handle.entries)
    found = None if old is None else old[HEAD:] or empty_value(old, handle)
    if found == expected:
        _replace(handle, txn, entry, old, value, stamp)
    return found


def _replace(
    handle: Handle,
    txn: Transaction,
    entry: bytes,
    old: bytes | None,
    value: bytes | None,
    stamp: bytes = NEVER,
) -> None:
    """Change an entry and its places in the indexes together."""
    if old is not None and len(old) < HEAD:
        _drop_damaged(handle, txn, entry)
        old = None
    if old is not None and old[:_STAMP] not in (NEVER, stamp):
        txn.delete(index_key(entry, old[:_STAMP]), db=handle.expiry)
    if value is not None:
        creation = _next_creation(handle, txn) if old is None else old[_STAMP:_CREATED]
        txn.put(entry, stamp + creation + _id_of(txn) + value, db=handle.entries)
        if old is None:
            _note_creation(handle, txn, entry, creation)
        _index(handle, txn, entry, stamp)
    elif old is not None:
        _drop(handle, txn, entry, old)


def _index(handle: Handle, txn: Transaction, entry: bytes, stamp: bytes) -> None:
    """Put an entry in its place in the expiry index, if it expires."""
    if stamp != NEVER:
        txn.put(index_key(entry, stamp), b"", db=handle.expiry)


def _id_of(txn: Transaction) -> bytes:
    return txn.id().to_bytes(8, "big")


def last_creation(handle: Handle, txn: Transaction) -> bytes:
    """Return the bytes of the last number of a creation that was given."""
    return txn.get(_LAST, _NONE, handle.files.meta)


def _next_creation(handle: Handle, txn: Transaction) -> bytes:
    return (int.from_bytes(last_creation(handle, txn), "big") + 1).to_bytes(8, "big")


def _note_creation(handle: Handle, txn: Transaction, entry: bytes, creation: bytes) -> None:
    """Give a new entry its place among those of its namespace; the number is never given again."""
    namespace, _, key = entry.rpartition(b"\0")
    txn.put(_LAST, creation, db=handle.files.meta)
    txn.put(digest_of(namespace) + creation, key, db=handle.files.created)


def _drop(handle: Handle, txn: Transaction, entry: bytes, old: bytes) -> bool:
    """Remove an entry that is there, and its place among those of its namespace."""
    txn.delete(created_key(entry, old), db=handle.files.created)
    return txn.delete(entry, db=handle.entries)


def _drop_damaged(handle: Handle, txn: Transaction, entry: bytes) -> None:
    """Remove an entry that does not tell its place among those of its namespace, and that place."""
    namespace, _, key = entry.rpartition(b"\0")
    digest = digest_of(namespace)
    with txn.cursor(handle.files.created) as cursor:
        found = cursor.set_range(digest)
        while found and cursor.key().startswith(digest):
            found = cursor.delete() if cursor.value() == key else cursor.next()
    txn.delete(entry, db=handle.entries)


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
            stamp = index[len(prefix) : len(prefix) + _STAMP]
            if not index.startswith(prefix) or int.from_bytes(stamp, "big") > now + 1:
                break
            if len(due) == limit:
                more = True
                break
            due.append(index)
            found = cursor.next()
    removed = 0
    for index in due:
        stamp, rest = index[len(prefix) : len(prefix) + _STAMP], index[len(prefix) + _STAMP :]
        stored = txn.get(prefix + rest, None, handle.entries)
        txn.delete(index, db=handle.expiry)
        if stored is not None and stored[:_STAMP] == stamp:
            removed += _drop(handle, txn, prefix + rest, stored)
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


def shown_from(
    handle: Handle, prefix: bytes, start: bytes, hidden: Hidden, txn: Transaction
) -> tuple[list[bytes], bytes]:
    """Return the keys of a page of entries that are not hidden, and where the next one starts."""
    keys = keys_from(handle, prefix, start, PAGE, txn)
    after = keys[-1] + b"\0" if len(keys) == PAGE else b""  # the least key that is greater
    if hidden:
        keys = [key for key in keys if not _is_hidden(handle, key, hidden, txn)]
    return keys, after


def items_from(
    handle: Handle, prefix: bytes, start: bytes, hidden: Hidden, txn: Transaction
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Do as :func:`shown_from`, and return what is stored of each entry too."""
    items: list[tuple[bytes, bytes]] = []
    after, room = b"", SCAN_BYTES
    with txn.cursor(handle.entries) as cursor:
        if cursor.set_range(start) if start else cursor.first():
            for item in cursor:
                if not item[0].startswith(prefix):
                    break
                if len(items) == PAGE or room <= 0:
                    after = item[0]
                    break
                items.append(item)
                room -= len(item[1])
    if hidden:
        items = [item for item in items if hidden.get(item[0]) != identity_of(item[1])]
    return items, after


def _is_hidden(handle: Handle, key: bytes, hidden: Hidden, txn: Transaction) -> bool:
    if key not in hidden:
        return False
    stored = txn.get(key, None, handle.entries)
    return stored is not None and identity_of(stored) == hidden[key]


def page(
    handle: Handle,
    prefix: bytes,
    place: Place | None,
    limit: int,
    with_values: bool,
    hidden: Hidden,
    txn: Transaction,
) -> list[tuple[int, str, bytes]]:
    """Return entries of one namespace; the one that was made last comes first.

    Args:
        prefix: what the keys of the namespace's entries start with.
        place: return those that were made before this one.
        hidden: leave out those that are hidden.

    Returns:
        At most ``limit`` times the creation, the key, and the value if it is asked for.
    """
    entries: list[tuple[int, str, bytes]] = []
    digest = digest_of(prefix[:-1])
    end = digest + (place[0] if place else _MOST).to_bytes(8, "big")
    with txn.cursor(handle.files.created) as cursor, txn.cursor(handle.entries) as own:
        found = cursor.prev() if cursor.set_range(end) else cursor.last()
        while found and len(entries) < limit:
            item, key = cursor.item()
            if not item.startswith(digest):
                break
            name = _name_of(key)
            # Else another program has put it there, or has removed its entry.
            if name is not None and len(item) == _DIGEST + 8 and own.set_key(prefix + key):
                creation, identity = int.from_bytes(item[_DIGEST:], "big"), hidden.get(prefix + key)
                if not with_values and identity is None:
                    entries.append((creation, name, b""))
                elif identity != identity_of(stored := own.value()):
                    value = stored[HEAD:] or empty_value(stored, handle)
                    entries.append((creation, name, value))
            found = cursor.prev()
    return entries
