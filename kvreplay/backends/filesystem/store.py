"""Entries as files, in the directory layout of LDK's ``FilesystemStore`` v2.

The value of ``(P, S, key)`` is the file ``root/P/S/key``, byte for byte; an empty namespace
is the folder ``[empty]``; the file's modification time is the entry's creation time, which
an update keeps (rust-lightning, ``lightning-persister/src/fs_store``). LDK can open the
directory afterwards, because nothing else is ever put below ``root``, not for a moment.
All else that the store needs lies beside it, in ``root.kvreplay/``:

* ``format``: says that the root was adopted, and by which version;
* ``locks/00`` … ``locks/ff``: an entry changes under the ``flock`` of its stripe;
* ``tmp/<stripe>-<unique>.tmp``: values that are being written, only under the stripe's lock;
* ``owners``: where the owners of claims hold their locks, for ``Replay``;
* ``expiry/``, ``stamps/``: see :mod:`kvreplay.backends.filesystem.expiry`.

Both belong to one store and one file system: copy, move and back them up together, with
hard links preserved (``rsync -aH``, ``tar``). Without them the copy's entries never expire.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import ClassVar

from kvreplay.backends._support import check_durability
from kvreplay.backends.durable_files import Folders, fsync_directory, write_temporary
from kvreplay.backends.filesystem.errors import nameless, opening_error, store_error
from kvreplay.backends.filesystem.expiry import ExpiryIndex, Mark, discard
from kvreplay.backends.filesystem.layout import (
    EMPTY,
    EntryFile,
    namespace_of,
    open_folders,
    resolve,
)
from kvreplay.backends.filesystem.locks import flocked, lock_file
from kvreplay.errors import (
    KeyNotFoundError,
    OutcomeUnknownError,
    StoreError,
    StoreUnavailableError,
)
from kvreplay.store import (
    Closing,
    Durability,
    SweepResult,
    check_change,
    check_name,
    check_namespace,
    check_sweep,
    check_value,
    is_name,
)

__all__ = ["FilesystemStore"]


class FilesystemStore(Closing):
    """An :class:`~kvreplay.store.ExpiringKVStore` of plain files, shared by processes.

    Each change of an entry is atomic against all threads and processes on this machine;
    after a crash the entry is its old or its new value as a whole. Nothing that matters is
    kept in memory, so a forked child may go on using its parent's store.

    Args:
        path: the root folder, created with mode 0700 if it is missing; its file system must
            support ``flock`` and hard links.
        durability: ``"full"``: a change survives a power cut once its call has returned, and
            a read returns nothing that a power cut could still undo. ``"process"``: the
            folders are not fsynced, so a power cut may undo the latest changes; every value
            is still old or new as a whole.

    Raises:
        ConfigError: ``path`` or ``durability`` is wrong.
        StoreError: the folders cannot be made or used.
        CorruptStoreError: ``path`` holds LDK's v1 layout, was adopted by another version
            of the format, or was adopted and is missing.
    """

    OPTIONS: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"durability": ("full", "process")}
    LOCATION: ClassVar[str] = "path"
    reads_are_local = True

    def __init__(self, path: str | os.PathLike[str], *, durability: Durability = "full") -> None:
        check_durability(durability)
        self._root = resolve(path)
        self._sidecar = f"{self._root}.kvreplay"
        self._durability = durability
        self._durable = durability == "full"
        try:
            open_folders(self._root, self._sidecar)
            self._root_id = _file_id(self._root)
        except OSError as error:
            raise opening_error(error, self._root) from error
        self._folders = Folders(self._root, durable=self._durable)
        self._expiry = ExpiryIndex(self._sidecar, durable=self._durable)

    def __repr__(self) -> str:
        return f"FilesystemStore({self._root!r}, durability={self._durability!r})"

    @property
    def identity(self) -> tuple[str, int, int]:
        """Equal for every store object on the same root folder, however it is spelt."""
        return ("filesystem", *self._root_id)

    @property
    def owners_file(self) -> str:
        """Where the owners of claims hold their locks; see :mod:`kvreplay.store.contract`."""
        return os.path.join(self._sidecar, "owners")

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value, after waiting for a writer that is making it durable right now."""
        check_name(primary_namespace, secondary_namespace, key)
        entry = EntryFile(primary_namespace, secondary_namespace, key)
        with self._reporting("read"):
            if not self._durable:
                value = self._load(entry)
            else:
                # A renamed file can be seen before its folder is fsynced. A caller that acts on
                # what it read must not lose that to a power cut.
                with flocked(lock_file(self._sidecar, entry.stripe), shared=True):
                    value = self._load(entry)
        if value is None:
            raise KeyNotFoundError("there is no such entry")
        return value

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace the entry as a whole; it has no expiry."""
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        entry = EntryFile(primary_namespace, secondary_namespace, key)
        with self._reporting("write"), self._locked(entry):
            self._put(entry, value, None)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove the entry; ``lazy`` leaves the fsync to a later change of its namespace."""
        check_name(primary_namespace, secondary_namespace, key)
        entry = EntryFile(primary_namespace, secondary_namespace, key)
        with self._reporting("remove"), self._locked(entry):
            self._delete(entry, durable=self._durable and not lazy)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys; a file whose name is not a legal key is not shown."""
        check_namespace(primary_namespace, secondary_namespace)
        folders = EntryFile(primary_namespace, secondary_namespace, "").parts
        return [*self._names(*folders, folders=False)]

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        """Walk the folders, one at a time and as the caller iterates."""
        self._check_open()
        self._check_root()
        return self._walk()

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
        with self._reporting("check and put"), self._locked(entry):
            found = self._load(entry)
            if found == expected:
                if value is not None:
                    self._put(entry, value, expires_at)
                elif found is not None:
                    self._delete(entry, durable=self._durable)
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
            self._check_root()
            return self._sweep(primary_namespace, min(now, sys.maxsize), limit)

    # The changes. For the first two the caller holds the entry's lock.

    def _put(self, entry: EntryFile, value: bytes, expires_at: int | None) -> None:
        target = self._file(entry)
        old_marker = self._expiry.current(entry)
        temporary = self._temporary(entry)
        write_temporary(temporary, value, mtime_ns=_mtime_ns(target))
        mark: Mark | None = None
        try:
            if expires_at is not None:
                stamp = self._temporary(entry)
                mark = self._expiry.mark(entry, temporary, expires_at, stamp)
            self._folders.place(entry.parts, lambda _: os.rename(temporary, target))
        except BaseException:
            # If the temporary is gone, an interrupt came after the rename: the mark counts.
            if discard(temporary) and mark is not None:
                mark.undo()
            raise
        try:
            if self._durable:
                _confirm(os.path.dirname(target))
        except BaseException:
            # Both markers stay: which of them is the live one is not known.
            if mark is not None:
                discard(mark.stamp)
            raise
        self._expiry.finish(entry, old_marker, mark)

    def _delete(self, entry: EntryFile, *, durable: bool) -> None:
        target = self._file(entry)
        folder = os.path.dirname(target)
        old_marker = self._expiry.current(entry)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        # Even if it was absent: an earlier removal may have been lazy, or cut short.
        if durable and os.path.isdir(folder):
            _confirm(folder)
        self._expiry.finish(entry, old_marker, None)

    def _sweep(self, primary: str, now: int, limit: int) -> SweepResult:
        visited, removed, more = list[str](), 0, False
        walked, changed = list[str](), set[str]()
        try:
            with contextlib.closing(self._expiry.due(primary, now, walked)) as due_markers:
                for due in due_markers:
                    if len(visited) == limit:
                        more = True
                        break
                    visited.append(due.path)
                    target = self._file(due.entry)
                    with self._locked(due.entry):
                        if _is_same_file(due.path, target):
                            os.unlink(target)
                            removed += 1
                            changed.add(os.path.dirname(target))
                        self._expiry.forget_stamp(due)
            # A marker is unlinked after its value has gone for good: without the marker no
            # later sweep would find a value that a power cut brought back.
            if self._durable:
                for folder in changed:
                    fsync_directory(folder)
            self._expiry.tidy(visited, walked)
        except (OSError, StoreError) as error:
            if not removed:
                raise
            raise OutcomeUnknownError(
                f"the sweep failed after it had removed {removed} due entries: sweep again"
            ) from (nameless(error) if isinstance(error, OSError) else error)
        return SweepResult(len(visited), removed, more)

    # Reading.

    def _load(self, entry: EntryFile) -> bytes | None:
        try:
            with open(self._file(entry), "rb", buffering=0) as file:
                return file.read()
        except FileNotFoundError:
            self._check_root()
            return None

    def _walk(self) -> Iterator[tuple[str, str, str]]:
        for primary in self._names(folders=True):
            for secondary in self._names(primary, folders=True):
                if primary == EMPTY and secondary != EMPTY:
                    continue  # no legal address leads here
                for key in self._names(primary, secondary, folders=False):
                    yield namespace_of(primary), namespace_of(secondary), key

    def _names(self, *parts: str, folders: bool) -> set[str]:
        """Return the legal names of folders or files; none if there is no such folder."""
        # A set: some file systems show a name twice if it is replaced during the listing.
        with self._reporting("list"):
            try:
                with os.scandir(os.path.join(self._root, *parts)) as found:
                    return {
                        each.name
                        for each in found
                        if (is_name(each.name) or (folders and each.name == EMPTY))
                        and each.is_dir() is folders
                    }
            except FileNotFoundError:
                self._check_root()
                return set()

    # Locks, paths and checks.

    @contextlib.contextmanager
    def _locked(self, entry: EntryFile) -> Iterator[None]:
        with flocked(lock_file(self._sidecar, entry.stripe)):
            self._check_root()
            yield

    def _file(self, entry: EntryFile) -> str:
        return os.path.join(self._root, entry.path)

    def _temporary(self, entry: EntryFile) -> str:
        name = f"{entry.stripe:02x}-{uuid.uuid4().hex}.tmp"
        return os.path.join(self._sidecar, "tmp", name)

    def _check_root(self) -> None:
        """Raise if the root is not there: then an absent file is not an absent entry."""
        cause: OSError | None = None
        try:
            if _file_id(self._root) == self._root_id:
                return
        except OSError as error:
            cause = error
        raise StoreUnavailableError(
            f"{self._root} is no longer the folder that was opened; nothing was done:"
            " mount it or move it back, or open the store again"
        ) from cause

    @contextlib.contextmanager
    def _reporting(self, doing: str) -> Iterator[None]:
        self._check_open()
        try:
            yield
        except OSError as error:
            nameless(error)
            if error.errno == errno.ENOENT:
                self._check_root()
                if not os.path.isdir(self._sidecar):
                    raise StoreUnavailableError(
                        f"{self._sidecar} is gone; nothing was done: move it back, or open"
                        " the store again to begin a new one"
                    ) from error
            raise store_error(error, doing, self._root) from error


def _file_id(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except FileNotFoundError:
        return False


def _mtime_ns(path: str) -> int | None:
    try:
        return os.lstat(path).st_mtime_ns
    except FileNotFoundError:
        return None


def _confirm(folder: str) -> None:
    """Make durable a change that has happened."""
    try:
        fsync_directory(folder)
    except OSError as error:
        raise OutcomeUnknownError(
            "the change was made, but the file system did not confirm that it will last: read"
            " again before deciding"
        ) from nameless(error)
