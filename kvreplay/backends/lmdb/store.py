"""Entries in LMDB: durable, transactional, shared by threads and processes. The default engine.

An entry and its place in the expiry index change in the same write transaction.
``docs/format.md`` describes the bytes; what LMDB itself promises is in
http://www.lmdb.tech/doc/. The files must be on a local file system.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from os import getpid
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from kvreplay.backends._support import (
    LOCK_TIMEOUT,
    check_create,
    check_durability,
    check_lock_timeout,
    check_path,
    damaged_entries,
    unreadable,
)
from kvreplay.backends.lmdb import checking, entries, shared
from kvreplay.backends.lmdb.copying import compact, copy, pin
from kvreplay.backends.lmdb.environment import Environment
from kvreplay.backends.lmdb.transaction import calls_in
from kvreplay.backends.new_place import make_folder
from kvreplay.backends.pending import ALONE
from kvreplay.errors import (
    ConfigError,
    CorruptStoreError,
    KeyNotFoundError,
    OutcomeUnknownError,
    StoreError,
)
from kvreplay.store import (
    Change,
    Closing,
    Compacted,
    Durability,
    Entry,
    Fault,
    KVTransaction,
    Page,
    PageWithValues,
    SweepResult,
    ThreadBound,
    check_change,
    check_namespace,
    check_page,
    check_sweep,
    check_value,
    closed_error,
    page_token,
    place_of,
)
from kvreplay.store.durations import Duration

__all__ = ["LMDBStore"]

T = TypeVar("T")

_MAX_READERS: Final = 2**16  # 64 bytes each, in lock.mdb
_SWEEP_BATCH: Final = 1000  # due entries that a sweep visits in one transaction


class LMDBStore(Closing):
    """A :class:`~kvreplay.TransactionalKVStore` in one LMDB environment.

    Every call is atomic against all threads and processes that use the same files. A returned
    change is durable: with ``durability="full"`` it survives a power cut, with ``"process"`` a
    killed process, and a power cut may undo the latest changes without damage. Several objects
    in one process share the environment; after a fork, parent and child may both go on.
    Opening, like a change, waits while another process is in a transaction, within a bound.

    Each change looks whether the files at the path are still those that are open. If they are gone,
    or another store's, or an older copy, it is refused; if they are the same store's, as after a
    remount, they are opened anew.

    Args:
        path: the directory, created with mode 0700 if it is missing; a relative path begins at
            the current directory of this moment.
        map_size: bytes of address space for the map, and not of disk. A full map grows by itself;
            a generous value avoids that at little cost.
        durability: ``full`` or ``process``.
        max_readers: how many read transactions can be open at one moment, over all processes; the
            process that opens the files first decides.
        lock_timeout: how long opening, or a change, waits for its turn, at most: seconds, a
            timedelta, or text such as ``"5s"``. Then it raises
            :class:`~kvreplay.StoreUnavailableError`, and a change never happens later.
        create: make the store if there is none; ``False`` refuses that, and makes nothing.

    Raises:
        ConfigError: an argument is wrong, or this process has the files open with another
            durability.
        StoreNotFoundError: there is no store, and ``create`` is false.
        CorruptStoreError: the files are damaged, emptied, foreign, or of another format or engine.
        StoreUnavailableError: another process had the turn to write all the time.
        StoreError: they cannot be opened; the message says what to check.
    """

    OPTIONS: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        "map_size": "size",
        "durability": ("full", "process"),
        "max_readers": "integer",
        "lock_timeout": "duration",
        "create": "boolean",
    }
    LOCATION: ClassVar[str] = "path"
    reads_are_local: ClassVar[bool] = True

    _environment: Environment | None = None
    _leaving: Environment | None = None  # whose files this store's close still has to close

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        map_size: int = 16 * 1024**3,
        durability: Durability = "full",
        max_readers: int = 512,
        lock_timeout: Duration = LOCK_TIMEOUT,
        create: bool = True,
    ) -> None:
        check_durability(durability)
        check_create(create)
        self._bound = check_lock_timeout(lock_timeout)
        self._closing: list[bool] = []  # not empty once it is being closed
        if type(map_size) is not int or not 64 * 1024 <= map_size < 2**63:
            raise ConfigError("map_size must be an int of at least 65536 (bytes), below 2**63")
        if type(max_readers) is not int or not 1 <= max_readers <= _MAX_READERS:
            raise ConfigError(f"max_readers must be an int from 1 to {_MAX_READERS}")
        self._path = _place(check_path(path, "LMDB"))

        def join() -> None:
            self._environment = shared.acquire(
                self._path,
                map_size=map_size,
                durability=durability,
                max_readers=max_readers,
                lock_timeout=self._bound,
                creating=create,
            )

        try:
            shared.while_opening(self._path, join, self._bound)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<LMDBStore {self._path} {'open' if self._environment else 'closed'}>"

    @property
    def identity(self) -> tuple[str, object]:
        """Equal for two stores on the same files."""
        return "lmdb", self._opened().identity

    @property
    def owners_file(self) -> str:
        """Where the owners of claims hold their locks; see :mod:`kvreplay.store.contract`."""
        return str(self._path / "kvreplay.owners")

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value; see :meth:`kvreplay.KVStoreSync.read`."""
        entry = entries.entry_key(primary_namespace, secondary_namespace, key)
        environment = self._environment  # quick way, for _opened(): LMDB's rows of bench_hit
        if environment is None or not environment.mark[0]:
            environment = self._opened()
        if environment.removals.pending:  # quick way, for _shown(): LMDB's rows of bench_hit
            stored = _shown(environment, entry)
        else:
            stored = environment.handle.get(entry)
        if stored is None:
            raise KeyNotFoundError("no entry under that name")
        return stored[entries.HEAD :] or entries.empty_value(stored, environment.handle)

    def read_entry(self, primary_namespace: str, secondary_namespace: str, key: str) -> Entry:
        """Return value and expiry; see :meth:`kvreplay.InspectableKVStore.read_entry`."""
        entry = entries.entry_key(primary_namespace, secondary_namespace, key)
        environment = self._opened()
        stored = _shown(environment, entry)
        if stored is None:
            raise KeyNotFoundError("no entry under that name")
        value = stored[entries.HEAD :] or entries.empty_value(stored, environment.handle)
        return Entry(value, entries.expiry_of(stored))

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace; see :meth:`kvreplay.KVStoreSync.write`."""
        entry = entries.entry_key(primary_namespace, secondary_namespace, key)
        check_value(value)
        environment = self._opened()
        put = partial(entries.put, environment.handle, entry, value)
        environment.write(put, len(value), address=entry, bound=self._bound)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present; see :meth:`kvreplay.KVStoreSync.remove`.

        A lazy removal is made by the next commit of this process, or by :meth:`close`. Of 1,000
        that wait, the next one commits them all.
        """
        entry = entries.entry_key(primary_namespace, secondary_namespace, key)
        environment = self._opened()
        if not (lazy and environment.remove_lazily(entry, self._closing)):
            delete = partial(entries.delete, environment.handle, entry)
            environment.write(delete, address=entry, bound=self._bound)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys, page by page; see :meth:`kvreplay.KVStoreSync.list`."""
        check_namespace(primary_namespace, secondary_namespace)
        prefix = entries.prefix_of(primary_namespace, secondary_namespace)
        pages = self._pages(prefix, entries.shown_from)
        return entries.names_in(prefix, [*chain.from_iterable(pages)])

    def list_paginated(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> Page:
        """Return a page of keys; see :meth:`kvreplay.PaginatedKVStore.list_paginated`."""
        entries, token = self._page(
            primary_namespace, secondary_namespace, page_token, limit, with_values=False
        )
        return Page([key for _, key, _ in entries], token)

    def list_paginated_with_values(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> PageWithValues:
        """Return a page of keys and values; see :class:`kvreplay.PaginatedKVStore`."""
        entries, token = self._page(
            primary_namespace, secondary_namespace, page_token, limit, with_values=True
        )
        return PageWithValues([(key, value) for _, key, value in entries], token)

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        """Yield every address; see :meth:`kvreplay.MigratableKVStore.list_all_keys`.

        It holds no transaction between two pages, so it neither blocks a writer nor keeps old
        pages alive.
        """
        self._opened()
        pages = self._pages(b"", entries.shown_from)
        return filter(None, entries.addresses_in(chain.from_iterable(pages)))

    def scan(
        self, primary_namespace: str | None = None
    ) -> Iterator[tuple[tuple[str, str, str], Entry]]:
        """Yield every entry; see :meth:`kvreplay.store.ScannableKVStore.scan`.

        It holds no transaction between two pages of a thousand entries, or a mebibyte.
        """
        prefix = b""
        if primary_namespace is not None:
            check_namespace(primary_namespace, "")
            prefix = primary_namespace.encode() + b"\0"
        self._opened()
        return self._scan(prefix)

    def check(self) -> Iterator[Fault]:
        """Yield what is wrong with the indexes; see :meth:`kvreplay.store.CheckableKVStore.check`.

        Each page is looked at in one snapshot.
        """
        self._opened()
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
        """Compare and put in one transaction; see :meth:`kvreplay.AtomicKVStore.check_and_put`."""
        entry = entries.entry_key(primary_namespace, secondary_namespace, key)
        check_change(expected, value, expires_at)
        environment = self._opened()
        return environment.write(
            partial(entries.check_and_put, environment.handle, entry, expected, value, expires_at),
            len(value or b""),
            address=entry,
            bound=self._bound,
        )

    def check_and_put_each(self, changes: Sequence[Change]) -> Sequence[bytes | Exception | None]:
        """Commit many changes at once; see :meth:`kvreplay.BatchingKVStore.check_and_put_each`."""
        environment = self._opened()
        outcomes: dict[int, bytes | Exception | None] = {}
        operations = {}
        for index, each in enumerate(changes):
            try:
                entry = entries.entry_key(
                    each.primary_namespace, each.secondary_namespace, each.key
                )
                check_change(each.expected, each.value, each.expires_at)
            except StoreError as error:
                outcomes[index] = error
            else:
                operation = partial(
                    entries.check_and_put,
                    *(environment.handle, entry, each.expected, each.value, each.expires_at),
                )
                operations[index] = (operation, len(each.value or b""), entry)
        results = environment.write_each(list(operations.values()), bound=self._bound)
        outcomes.update(zip(operations, results, strict=True))
        return [outcomes[index] for index in range(len(changes))]

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """Remove due entries; see :meth:`kvreplay.ExpiringKVStore.sweep`.

        A large ``limit`` takes several transactions, and others may write between them.

        Raises:
            OutcomeUnknownError: it failed after it had removed some of them.
        """
        check_sweep(primary_namespace, now, limit)
        environment = self._opened()
        total = SweepResult(0, 0, more=True)
        while total.more and total.visited < limit:
            batch = min(limit - total.visited, _SWEEP_BATCH)
            try:
                sweep = partial(entries.sweep, environment.handle, primary_namespace, now, batch)
                swept = environment.write(sweep, ALONE, bound=self._bound)
            except StoreError as error:
                if not total.visited:
                    raise
                raise OutcomeUnknownError(
                    f"a sweep failed after it had removed {total.removed} entries: nothing else"
                    " was changed; sweep again"
                ) from error
            total = SweepResult(
                total.visited + swept.visited, total.removed + swept.removed, swept.more
            )
        return total

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the whole store; see :meth:`kvreplay.store.BackupKVStore.backup`.

        The file grows by what others write meanwhile, since no page is used again.
        """
        environment = self._opened()
        environment.make_removals(bound=self._bound)
        pinned = partial(environment.in_turn, partial(pin, environment.handle), bound=self._bound)
        make_folder(path, "LMDB", partial(copy, environment.handle, pinned))

    def compact(self) -> Compacted:
        """Free no longer used pages; see :meth:`kvreplay.store.CompactableKVStore.compact`.

        Raises:
            StoreUnavailableError: another process has the store open; stop it first.
        """
        environment = self._opened()
        environment.make_removals(bound=self._bound)
        return environment.in_turn(partial(compact, environment.handle), bound=self._bound)

    def transaction(self) -> AbstractContextManager[KVTransaction]:
        """All or nothing; see :meth:`kvreplay.TransactionalKVStore.transaction`.

        It holds the write lock of all processes.

        Raises:
            StoreUnavailableError: the map was full and has been grown: run it again.
        """
        environment = self._opened()
        block = environment.transaction(partial(calls_in, self, environment), bound=self._bound)
        return ThreadBound(block)

    def close(self) -> None:
        """Leave the environment; the last store on it in this process closes the files.

        If it was interrupted, a second call ends what the first one began.

        Raises:
            StoreError: it is closed, but could not make its lazy removals first.
        """
        environment, failure = self._environment, None
        if environment is not None and environment.pid == getpid():
            failure = environment.settle(self._closing, bound=self._bound)
        with shared.lock:
            environment = self._environment
            if environment is not None and environment.pid == getpid():  # else it is the parent's
                if environment.handle.users == 1:
                    environment.refuse_closing()
                # One after the other without a call between, so without an interrupt.
                environment.handle.users -= 1
                self._leaving = environment
            self._environment = None
            environment = self._leaving
        if environment is not None:
            shared.release(environment)
            self._leaving = None
        if failure is not None:
            raise failure

    def __del__(self) -> None:
        if self._environment is not None:
            warning = f"{self!r} was not closed"
            try:
                self.close()  # an interrupted opening has returned no store that one could close
            finally:
                warnings.warn(warning, ResourceWarning, stacklevel=2, source=self)

    def _opened(self) -> Environment:
        """Return this process's environment."""
        environment = self._environment
        if environment is not None and not environment.mark[0]:
            environment = self._reopened()
        if environment is None:
            raise closed_error()
        return environment

    def _reopened(self) -> Environment | None:
        """In a forked child: open the files anew, unless another thread has done so."""

        def rejoin() -> None:
            environment = self._environment
            if environment is not None and environment.pid != getpid():
                self._environment = shared.reacquire(environment)

        shared.while_opening(self._path, rejoin, self._bound)
        return self._environment

    def _page(
        self, primary: str, secondary: str, token: str | None, limit: int, *, with_values: bool
    ) -> tuple[Sequence[tuple[int, str, bytes]], str | None]:
        check_page(primary, secondary, limit)
        place = place_of(primary, secondary, token)
        prefix = entries.prefix_of(primary, secondary)
        environment = self._opened()
        handle = environment.handle
        hidden = environment.removals.pending.copy()  # before the look: see lazy_removals.py
        # With one more, to know whether more remain.
        look = partial(entries.page, handle, prefix, place, limit + 1, with_values, hidden)
        found = handle.read(look)
        if len(found) <= limit:
            return found, None
        creation, key, _ = found[limit - 1]
        return found[:limit], page_token(primary, secondary, (creation, key))

    def _pages(self, prefix: bytes, take: Callable[..., tuple[T, bytes]]) -> Iterator[T]:
        """Yield pages of all that starts with ``prefix``, in key order: the keys, or the items."""
        start = prefix
        while True:
            environment = self._opened()
            hidden = environment.removals.pending.copy()  # before the look: see lazy_removals.py
            look = partial(take, environment.handle, prefix, start, hidden)
            page, start = environment.handle.read(look)
            yield page
            if not start:
                return

    def _check(self) -> Iterator[Fault]:
        snapshots, expiring, sound = set[int](), 0, True
        for page in self._checked(checking.in_entries):
            snapshots.add(page.snapshot)
            expiring += page.expiring
            sound = sound and not page.faults
            yield from page.faults
        indexed, snapshot = self._opened().handle.read(
            partial(checking.of_expiry, self._opened().handle)
        )
        if sound and indexed == expiring and snapshots == {snapshot}:
            return  # each has its place in the index, and so there is nothing else in it
        for page in self._checked(checking.in_expiry):
            yield from page.faults

    def _checked(self, look: Callable[..., checking.Page]) -> Iterator[checking.Page]:
        start: bytes | None = b""
        while start is not None:
            handle = self._opened().handle
            try:
                page = handle.read(partial(look, handle, start))
            except CorruptStoreError:
                page = checking.Page([unreadable()], None)
            yield page
            start = page.next

    def _scan(self, prefix: bytes) -> Iterator[tuple[entries.Address, Entry]]:
        damaged = 0
        for page in self._pages(prefix, entries.items_from):
            addresses = entries.addresses_in(key for key, _ in page)
            for address, (_, stored) in zip(addresses, page, strict=True):
                if address is None:
                    continue
                if len(stored) < entries.HEAD:
                    damaged += 1
                else:
                    yield address, Entry(stored[entries.HEAD :], entries.expiry_of(stored))
        if damaged:
            raise damaged_entries(damaged, f"the LMDB store {self._path}")


def _shown(environment: Environment, entry: bytes) -> bytes | None:
    """Return what is stored of an entry, unless it is removed lazily."""
    hidden = environment.removals.pending.get(entry)  # before the look
    stored = environment.handle.get(entry)
    if hidden is not None and stored is not None and entries.identity_of(stored) == hidden:
        return None
    return stored


def _place(path: str) -> Path:
    """Return the absolute path of the place that a path names.

    A ``..`` leads where the kernel says, or, from a folder that is not there, one folder up.
    """
    place = Path(path).absolute()
    if os.pardir in place.parts:
        place = Path(os.path.realpath(place))
    try:
        str(place).encode()  # as LMDB's driver does
    except UnicodeEncodeError:
        raise ConfigError(
            "the path of an LMDB store, or the current directory, has a byte that is not UTF-8;"
            " nothing was opened: rename that folder, or choose another place"
        ) from None
    return place
