"""Entries as files, in the directory layout of LDK's ``FilesystemStore`` v2.

The value of ``(P, S, key)`` is the file ``root/P/S/key``, byte for byte; an empty namespace
is the folder ``[empty]``; the file's modification time is the entry's creation time, which
an update keeps (rust-lightning, ``lightning-persister/src/fs_store``). LDK can open the
directory afterwards, because nothing else is ever put below ``root``, not for a moment.
All else that the store needs lies beside it, in ``root.kvreplay/``:

* ``format``: says that the root was adopted, by which version, and which store it is: see
  :mod:`kvreplay.backends.filesystem.presence`;
* ``locks/00`` … ``locks/ff``: an entry changes under the ``flock`` of its stripe;
* ``locks/newest``: its modification time is the last creation time that was given;
* ``tmp/<stripe>-<unique>.tmp``: values that are being written, only under the stripe's lock;
* ``owners``: where the owners of claims hold their locks, for ``Replay``;
* ``expiry/``, ``stamps/``: see :mod:`kvreplay.backends.filesystem.expiry`.

Both belong to one store and one file system: copy, move and back them up together, with
hard links preserved (``rsync -aH``, ``tar``). Without them the copy's entries never expire. To copy
entries into another store with their expiry, use ``read_entry`` and ``check_and_put``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, TypeVar

from kvreplay.backends._support import (
    LOCK_TIMEOUT,
    check_create,
    check_durability,
    check_lock_timeout,
    is_there,
)
from kvreplay.backends.filesystem.checking import has_lost_its_expiry
from kvreplay.backends.filesystem.copying import make_copy
from kvreplay.backends.filesystem.creation import Creations, creation_time
from kvreplay.backends.filesystem.entries import Entries
from kvreplay.backends.filesystem.errors import nameless, opening_error, store_error
from kvreplay.backends.filesystem.expiry import ExpiryIndex
from kvreplay.backends.filesystem.layout import EMPTY, EntryFile, folder_name, namespace_of, resolve
from kvreplay.backends.filesystem.listing import names, newest_first, refuse_lost_folder
from kvreplay.backends.filesystem.locks import flocked, lock_file, read_locked
from kvreplay.backends.filesystem.opening import open_folders
from kvreplay.backends.new_place import free_place, not_backed_up, taken
from kvreplay.errors import (
    ConfigError,
    KeyNotFoundError,
    OutcomeUnknownError,
    StoreError,
    StoreUnavailableError,
)
from kvreplay.store import (
    Closing,
    Durability,
    Entry,
    Fault,
    Page,
    PageWithValues,
    SweepResult,
    ThreadBound,
    check_change,
    check_name,
    check_namespace,
    check_page,
    check_sweep,
    check_value,
    page_token,
    place_of,
)
from kvreplay.store.durations import Duration
from kvreplay.store.paging import Place

__all__ = ["FilesystemStore"]

T = TypeVar("T")


class FilesystemStore(Closing):
    """An :class:`~kvreplay.store.ExpiringKVStore` of plain files, shared by processes.

    Each change of an entry is atomic against all threads and processes on this machine;
    after a crash the entry is its old or its new value as a whole. Nothing that matters is
    kept in memory, so a forked child may go on using its parent's store.

    Args:
        path: the root folder, created with mode 0700 if it is missing. Its file system must know
            ``flock``, hard and symbolic links and the fsync of a folder, which is tried here.
        create: make the store if there is none; ``False``: refuse, and make nothing.
        durability: ``"full"``: a change survives a power cut once its call has returned, and
            a read returns nothing that a power cut could still undo. ``"process"``: the
            folders are not fsynced, so a power cut may undo the latest changes; every value
            is still old or new as a whole.
        lock_timeout: how long a change waits for others on the same stripe: seconds, a timedelta,
            or text such as ``"5s"``; then it is a StoreUnavailableError and never happens. A read
            does not wait.

    Raises:
        ConfigError: ``path``, ``create``, ``durability`` or ``lock_timeout`` is wrong.
        StoreError: the folders cannot be made or used, or their file system cannot do what a store
            needs.
        StoreNotFoundError: there is no store, and ``create`` is false.
        CorruptStoreError: ``path`` holds an LMDB store or LDK's v1 layout, was adopted by another
            version of the format, or was adopted and is missing.
    """

    OPTIONS: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        "create": "boolean",
        "durability": ("full", "process"),
        "lock_timeout": "duration",
    }
    LOCATION: ClassVar[str] = "path"
    reads_are_local = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        durability: Durability = "full",
        lock_timeout: Duration = LOCK_TIMEOUT,
    ) -> None:
        check_durability(durability)
        check_create(create)
        self._lock_timeout = check_lock_timeout(lock_timeout)
        self._root = resolve(path)
        given = os.fspath(path)
        if not os.path.isabs(given):  # and it is not shortened: a ".." may follow a link
            given = os.path.join(os.getcwd(), given)
        self._sidecar = f"{self._root}.kvreplay"
        self._durability = durability
        self._durable = durability == "full"
        try:
            self._presence = open_folders(
                self._root, self._sidecar, given, create=create, lock_timeout=self._lock_timeout
            )
        except OSError as error:
            raise opening_error(error, self._root) from error
        self._expiry = ExpiryIndex(self._sidecar, durable=self._durable)
        self._entries = Entries(
            self._root,
            self._sidecar,
            self._presence,
            self._expiry,
            Creations(self._sidecar, self._lock_timeout),
            durable=self._durable,
        )

    def __repr__(self) -> str:
        return f"FilesystemStore({self._root!r}, durability={self._durability!r})"

    @property
    def identity(self) -> tuple[str, str, int, int]:
        """Equal for every store object on the same root folder, however it is spelt."""
        return self._presence.identity

    @property
    def owners_file(self) -> str:
        """Where the owners of claims hold their locks; see :mod:`kvreplay.store.contract`."""
        return os.path.join(self._sidecar, "owners")

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value; a writer that is making it durable right now is not waited for."""
        check_name(primary_namespace, secondary_namespace, key)
        entry = EntryFile(primary_namespace, secondary_namespace, key)
        with self._reporting("read"):
            value = self._durably(self._entries.load, entry)
        if value is None:
            raise KeyNotFoundError("there is no such entry")
        return value

    def read_entry(self, primary_namespace: str, secondary_namespace: str, key: str) -> Entry:
        """Return value and expiry; see :meth:`kvreplay.InspectableKVStore.read_entry`."""
        check_name(primary_namespace, secondary_namespace, key)
        entry = EntryFile(primary_namespace, secondary_namespace, key)
        with self._reporting("read"):
            found = self._load_with_expiry(entry)
        if found is None:
            raise KeyNotFoundError("there is no such entry")
        return found

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace the entry as a whole; it has no expiry."""
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        entry = EntryFile(primary_namespace, secondary_namespace, key)
        with self._reporting("write"), self._lock_of(entry):
            self._presence.check()
            self._entries.put(entry, value, None, creation_time(self._entries.file(entry)))

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove the entry; ``lazy`` leaves the fsync to a later change of its namespace."""
        check_name(primary_namespace, secondary_namespace, key)
        entry = EntryFile(primary_namespace, secondary_namespace, key)
        with self._reporting("remove"), self._lock_of(entry):
            self._presence.check()
            self._entries.delete(entry, lazy=lazy)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys; a file whose name is not a legal key is not shown."""
        check_namespace(primary_namespace, secondary_namespace)
        folders = EntryFile(primary_namespace, secondary_namespace, "").parts
        return [*self._names(*folders, folders=False)]

    def list_paginated(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> Page:
        """Return a page of keys; see :meth:`kvreplay.PaginatedKVStore.list_paginated`.

        It lists the namespace's folder and looks at each file in it, whatever the limit.
        """
        places, token = self._page(primary_namespace, secondary_namespace, page_token, limit)
        return Page([key for _, key in places], token)

    def list_paginated_with_values(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> PageWithValues:
        """Return a page of keys and values; an entry that is removed meanwhile is left out."""
        places, token = self._page(primary_namespace, secondary_namespace, page_token, limit)
        entries = list[tuple[str, bytes]]()
        for place in places:
            entry = EntryFile(primary_namespace, secondary_namespace, place[1])
            with self._reporting("read"):
                value = self._durably(partial(self._entries.load_of, place), entry)
            if value is not None:
                entries.append((place[1], value))
        return PageWithValues(entries, token)

    def _page(
        self, primary_namespace: str, secondary_namespace: str, token: str | None, limit: int
    ) -> tuple[Sequence[Place], str | None]:
        check_page(primary_namespace, secondary_namespace, limit)
        place = place_of(primary_namespace, secondary_namespace, token)
        folders = EntryFile(primary_namespace, secondary_namespace, "").parts
        found = self._listed(lambda folder: newest_first(folder, place, limit + 1), folders) or []
        if len(found) <= limit:
            return found, None
        del found[limit:]
        return found, page_token(primary_namespace, secondary_namespace, found[-1])

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        """Walk the folders, one at a time and as the caller iterates."""
        self._check_open()
        self._presence.check()
        return self._walk()

    def scan(
        self, primary_namespace: str | None = None
    ) -> Iterator[tuple[tuple[str, str, str], Entry]]:
        """Yield every entry; see :meth:`kvreplay.store.ScannableKVStore.scan`.

        It lists one folder at a time, and then reads each file.
        """
        if primary_namespace is not None:
            check_namespace(primary_namespace, "")
        self._check_open()
        self._presence.check()
        return self._scan(primary_namespace)

    def check(self) -> Iterator[Fault]:
        """Yield the entries whose expiry is lost; see :class:`kvreplay.store.CheckableKVStore`."""
        self._check_open()
        self._presence.check()
        return self._check()

    def check_and_put(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        key: str,
        *,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None = None,
    ) -> bytes | None:
        """Compare and put under the entry's lock; if the entry is another, nothing is written."""
        check_name(primary_namespace, secondary_namespace, key)
        check_change(expected, value, expires_at)
        entry = EntryFile(primary_namespace, secondary_namespace, key)
        with self._reporting("check and put"), self._lock_of(entry):
            self._presence.check()
            created = list[int]()
            found = self._entries.find(entry, lambda file: created.append(file.st_mtime_ns))
            if found == expected:
                if value is not None:
                    self._entries.put(entry, value, expires_at, created[0] if created else None)
                elif found is not None:
                    self._entries.delete(entry, lazy=False)
        return found

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """Remove due entries, minute after minute, each under its own lock.

        It lists the minutes that have an expiry, and takes a few file operations for each
        entry that it visits. A power cut may bring entries back; they are still due.

        Raises:
            OutcomeUnknownError: it failed after it had removed some of them.
        """
        check_sweep(primary_namespace, now, limit)
        with self._reporting("sweep"):
            self._presence.check()
            return self._sweep(primary_namespace, min(now, sys.maxsize), limit)

    def _sweep(self, primary: str, now: int, limit: int) -> SweepResult:
        visited, removed, more = list[str](), 0, False
        walked, changed = list[str](), set[tuple[str, ...]]()
        try:
            with contextlib.closing(self._expiry.due(primary, now, walked)) as due_markers:
                for due in due_markers:
                    if len(visited) == limit:
                        more = True
                        break
                    visited.append(due.path)
                    target = self._entries.file(due.entry)
                    with self._lock_of(due.entry):
                        self._presence.check()
                        if _is_same_file(due.path, target):
                            os.unlink(target)
                            removed += 1
                        else:
                            refuse_lost_folder(self._root, due.entry.parts)
                        self._expiry.forget_stamp(due)
                    # Even if it was gone: a sweep before this one may have been cut short.
                    changed.add(due.entry.parts)
            # A marker is unlinked after its value has gone for good: without the marker no
            # later sweep would find a value that a power cut brought back.
            self._forget_folders(changed)
            self._expiry.tidy(visited, walked)
        except (OSError, StoreError) as error:
            if not removed:
                raise
            raise OutcomeUnknownError(
                f"the sweep failed after it had removed {removed} due entries: sweep again"
            ) from (nameless(error) if isinstance(error, OSError) else error)
        return SweepResult(len(visited), removed, more)

    def _forget_folders(self, changed: set[tuple[str, ...]]) -> None:
        """Remove the folders that are empty now, and make durable what was removed."""
        left = set[tuple[str, ...]]()
        for parts in changed:
            left.add(self._entries.folders.remove_empty(parts))
            self._expiry.remove_empty(parts)
        for parts in left:
            self._entries.folders.confirm(parts)

    def _scan(self, primary: str | None) -> Iterator[tuple[tuple[str, str, str], Entry]]:
        for address in self._walk(primary):
            entry = EntryFile(*address)
            with self._reporting("read"):
                found = self._load_with_expiry(entry)
            if found is not None:  # else it was removed since its folder was listed
                yield address, found

    def _check(self) -> Iterator[Fault]:
        for address in self._walk():
            entry = EntryFile(*address)
            with self._reporting("read"):
                lost = has_lost_its_expiry(entry, self._entries, self._expiry, self._lock_of)
            if lost:
                yield Fault(
                    address,
                    "its expiry is lost, so that no sweep removes it: the store was copied without"
                    " its hard links",
                )

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy each entry as it is at some moment; see :class:`kvreplay.store.BackupKVStore`.

        The copy is a root, and a folder beside it.
        """
        self._check_open()
        self._presence.check()
        place = self._free_place(path)
        try:
            make_copy(place, self._whole_entries(), lock_timeout=self._lock_timeout)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise taken(place) from nameless(error)
            raise not_backed_up(error) from nameless(error)

    def _free_place(self, path: str | os.PathLike[str]) -> str:
        try:
            place = free_place(path, "filesystem")
            if is_there(f"{place}.kvreplay"):
                raise taken(f"{place}.kvreplay")
        except OSError as error:
            raise not_backed_up(error) from error
        if any(os.path.commonpath((place, own)) == own for own in (self._root, self._sidecar)):
            raise ConfigError(
                f"{place} is inside of the store itself: nothing was made; give another path"
            )
        return place

    def _whole_entries(self) -> Iterator[tuple[EntryFile, Entry, int]]:
        for address in self._walk():
            entry, seen = EntryFile(*address), list[os.stat_result]()
            with self._reporting("read"):
                found = self._load_with_expiry(entry, look=seen.append)
            if found is not None:  # else it was removed since its folder was listed
                yield entry, found, seen[-1].st_mtime_ns

    def _walk(self, only: str | None = None) -> Iterator[tuple[str, str, str]]:
        for primary in self._names(folders=True) if only is None else [folder_name(only)]:
            for secondary in self._names(primary, folders=True):
                if primary == EMPTY and secondary != EMPTY:
                    continue  # no legal address leads here
                for key in self._names(primary, secondary, folders=False):
                    yield namespace_of(primary), namespace_of(secondary), key

    def _names(self, *parts: str, folders: bool) -> set[str]:
        """Return the legal names of folders or files; none if there is no such folder."""
        return self._listed(partial(names, folders=folders), parts) or set()

    def _listed(self, look: Callable[[str], T], parts: tuple[str, ...]) -> T | None:
        """Look at a folder; ``None`` if there is no such folder."""
        with self._reporting("list"):
            try:
                return look(os.path.join(self._root, *parts))
            except FileNotFoundError:
                refuse_lost_folder(self._root, parts)
                self._presence.check()
                return None

    # Locks and checks.

    def _lock_of(self, entry: EntryFile) -> ThreadBound[None]:
        return flocked(lock_file(self._sidecar, entry.stripe), limit=self._lock_timeout)

    def _load_with_expiry(
        self, entry: EntryFile, look: Callable[[os.stat_result], None] | None = None
    ) -> Entry | None:
        load = partial(self._entries.load_with_expiry, look=look)
        try:
            path = lock_file(self._sidecar, entry.stripe)
            return read_locked(path, partial(load, locked=True), entry)
        except BlockingIOError:
            pass
        return self._durably(partial(load, locked=False), entry)

    def _durably(self, load: Callable[[EntryFile], T], entry: EntryFile) -> T:
        """Read what a power cut cannot undo, without waiting for whoever changes it.

        A renamed file can be seen before its folder is fsynced. If somebody holds the entry's lock,
        he may be between the two, so this makes durable itself what it has read.
        """
        if not self._durable:
            return load(entry)
        try:
            return read_locked(lock_file(self._sidecar, entry.stripe), load, entry)
        except BlockingIOError:
            pass
        found = load(entry)
        self._entries.folders.confirm(entry.parts)
        return found

    @contextlib.contextmanager
    def _reporting(self, doing: str) -> Iterator[None]:
        self._check_open()
        try:
            yield
        except OSError as error:
            nameless(error)
            if error.errno == errno.ENOENT:
                self._presence.check()
                raise StoreUnavailableError(
                    f"cannot {doing}: a file of {self._sidecar} is gone; no entry was changed: move"
                    " it back, or open the store again"
                ) from error
            raise store_error(error, doing, self._root) from error


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except FileNotFoundError:
        return False
