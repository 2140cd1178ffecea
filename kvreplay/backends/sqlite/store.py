"""Entries in one SQLite file, in ldk-node's own table: durable, transactional, shared by processes.

A node's ``ldk_node_data.sqlite`` opens here, and the node opens it afterwards. Never use it while
its node runs: ldk-node counts the creations in its memory, and two writers would give the same
numbers, after which pages leave out entries. ``docs/format.md`` describes the tables. The file must
be on a local file system.
"""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from os import getpid
from typing import Any, ClassVar, Final

from kvreplay.backends._support import (
    LOCK_TIMEOUT,
    check_create,
    check_durability,
    check_lock_timeout,
    check_path,
    damaged_entries,
    unreadable,
)
from kvreplay.backends.new_place import free_place, not_backed_up, taken
from kvreplay.backends.pending import ALONE
from kvreplay.backends.sqlite import checking, entries
from kvreplay.backends.sqlite.database import Block, Database
from kvreplay.backends.sqlite.errors import store_error
from kvreplay.backends.sqlite.files import OWNERS, make_copy
from kvreplay.backends.sqlite.joining import Joined
from kvreplay.errors import (
    CorruptStoreError,
    InvalidValueError,
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
    ForkSafeLock,
    JoinedTransaction,
    KVTransaction,
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
    closed_error,
    is_name,
    page_token,
    place_of,
)
from kvreplay.store.durations import Duration

__all__ = ["SQLiteStore"]

_SWEEP_BATCH: Final = 1000  # due entries that a sweep visits in one transaction

_MAX_VALUE: Final = 10**9 - 10**4  # bytes: SQLite's limit for a row, less the names

_opening: Final = ForkSafeLock()  # guards which database a store has


class SQLiteStore(Closing):
    """A :class:`~kvreplay.JoinableKVStore` in one SQLite database.

    Every call is atomic against all threads and processes that use the same file by kvreplay. A
    returned change is durable: with ``durability="full"`` it survives a power cut, with
    ``"process"`` a killed process, and a power cut may undo the latest changes without damage.
    After a fork, parent and child may both go on. Opening, like a change, waits while another
    process is in a transaction.

    Args:
        path: the file, created with mode 0600, and its directory with 0700, if they are missing; a
            relative path begins at the current directory of this moment.
        create: make the store if there is none.
        durability: ``full`` or ``process``.
        lock_timeout: how long a change waits, at most, for other writers: seconds, a timedelta, or
            text such as ``"5s"``. What has waited in vain raises ``StoreUnavailableError``, and
            never happens later.

    Raises:
        ConfigError: an argument is wrong.
        StoreNotFoundError: there is none, and ``create`` is false.
        CorruptStoreError: the file is damaged, emptied, foreign, of another engine or version.
        StoreError: it cannot be opened; the message says what to check.
    """

    OPTIONS: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        "create": "boolean",
        "durability": ("full", "process"),
        "lock_timeout": "duration",
    }
    LOCATION: ClassVar[str] = "path"
    reads_are_local: ClassVar[bool] = True

    _database: Database | None = None

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
        bound = check_lock_timeout(lock_timeout)
        self._path = os.path.realpath(check_path(path, "SQLite"))
        self._closing: list[bool] = []  # not empty once it is being closed
        try:
            self._database = Database(self._path, durability, bound)
            self._database.open(creating=create)
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._path} {'open' if self._database else 'closed'}>"

    @property
    def identity(self) -> tuple[str, str, tuple[int, int] | None]:
        """Equal for two stores on the same file."""
        database = self._opened()
        return "sqlite", database.id, database.connections.file

    @property
    def owners_file(self) -> str:
        """Where the owners of claims hold their locks; see :mod:`kvreplay.store.contract`."""
        return self._path + OWNERS

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value; see :meth:`kvreplay.KVStoreSync.read`."""
        try:  # quick way, for check_name(): SQLite's rows of bench_hit
            legal = is_name(key) and entries.namespace(primary_namespace, secondary_namespace)
        except TypeError:
            legal = None
        if not legal:
            check_name(primary_namespace, secondary_namespace, key)
        database = self._database  # quick way, for _opened(): SQLite's rows of bench_hit
        if database is None or not database.mark[0]:
            database = self._opened()
        address = (primary_namespace, secondary_namespace, key)
        if database.removals.pending:  # quick way, for _shown(): SQLite's rows of bench_hit
            row = _shown(database, address)
        else:
            row = database.connections.row(entries.VALUE, address)
        if row is None:
            raise KeyNotFoundError("no entry under that name")
        value = row[0]
        return value if type(value) is bytes else entries.checked(value, self._path)

    def read_entry(self, primary_namespace: str, secondary_namespace: str, key: str) -> Entry:
        """Return value and expiry; see :meth:`kvreplay.InspectableKVStore.read_entry`."""
        check_name(primary_namespace, secondary_namespace, key)
        address = (primary_namespace, secondary_namespace, key)
        row = _shown(self._opened(), address)
        if row is None:
            raise KeyNotFoundError("no entry under that name")
        return Entry(entries.checked(row[0], self._path), row[1])

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace; see :meth:`kvreplay.KVStoreSync.write`."""
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        _check_size(value)
        address = (primary_namespace, secondary_namespace, key)
        self._opened().write(partial(entries.put, address, value), len(value), address=address)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present; see :meth:`kvreplay.KVStoreSync.remove`.

        A lazy removal is made by the next commit of this process, or by :meth:`close`. Of 1,000
        that wait, the next one commits them all.
        """
        check_name(primary_namespace, secondary_namespace, key)
        address = (primary_namespace, secondary_namespace, key)
        database = self._opened()
        if not (lazy and database.remove_lazily(address, self._closing)):
            database.write(partial(entries.delete, address), address=address)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys, of one moment; see :meth:`kvreplay.KVStoreSync.list`."""
        check_namespace(primary_namespace, secondary_namespace)
        database, namespace = self._opened(), (primary_namespace, secondary_namespace)
        hidden = _hidden(database, namespace)
        sql = entries.KEYS.replace("{identity}", entries.IDENTITY if hidden else "")
        rows = entries.legal_rows(database.connections.rows, sql, namespace, entries.OF_KEYS)
        if hidden:
            rows = [row for row in rows if hidden.get(row[0]) != row[1:]]
        return [row[0] for row in rows]

    def list_paginated(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> Page:
        """Return a page of keys; see :meth:`kvreplay.PaginatedKVStore.list_paginated`."""
        rows, token = self._page("NULL", primary_namespace, secondary_namespace, page_token, limit)
        return Page([row[0] for row in rows], token)

    def list_paginated_with_values(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> PageWithValues:
        """Return a page of keys and values; see :class:`kvreplay.PaginatedKVStore`."""
        rows, token = self._page("value", primary_namespace, secondary_namespace, page_token, limit)
        return PageWithValues(
            [(row[0], entries.checked(row[1], self._path)) for row in rows], token
        )

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        """Yield every address; see :meth:`kvreplay.MigratableKVStore.list_all_keys`.

        It holds no transaction between two pages, so it neither blocks a writer nor keeps the log.
        """
        self._opened()
        return self._walk()

    def scan(
        self, primary_namespace: str | None = None
    ) -> Iterator[tuple[tuple[str, str, str], Entry]]:
        """Yield every entry; see :meth:`kvreplay.store.ScannableKVStore.scan`.

        It holds no transaction between two pages of a thousand entries, or a mebibyte.
        """
        if primary_namespace is not None:
            check_namespace(primary_namespace, "")
        self._opened()
        return self._scan(primary_namespace)

    def check(self) -> Iterator[Fault]:
        """Yield what is wrong; see :meth:`kvreplay.store.CheckableKVStore.check`.

        SQLite's own check reads the whole file in one snapshot, and the log grows meanwhile. An
        interrupt waits for it.
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
        check_name(primary_namespace, secondary_namespace, key)
        check_change(expected, value, expires_at)
        _check_size(value)
        address = (primary_namespace, secondary_namespace, key)
        return self._opened().write(
            partial(entries.check_and_put, address, expected, value, expires_at),
            len(value or b""),
            address=address,
        )

    def check_and_put_each(self, changes: Sequence[Change]) -> Sequence[bytes | Exception | None]:
        """Commit many changes at once; see :meth:`kvreplay.BatchingKVStore.check_and_put_each`."""
        database = self._opened()
        outcomes: dict[int, bytes | Exception | None] = {}
        operations = {}
        for index, each in enumerate(changes):
            address = (each.primary_namespace, each.secondary_namespace, each.key)
            try:
                check_name(*address)
                check_change(each.expected, each.value, each.expires_at)
                _check_size(each.value)
            except StoreError as error:
                outcomes[index] = error
            else:
                operation = partial(
                    entries.check_and_put, address, each.expected, each.value, each.expires_at
                )
                operations[index] = (operation, len(each.value or b""), address)
        results = database.write_each(list(operations.values()))
        outcomes.update(zip(operations, results, strict=True))
        return [outcomes[index] for index in range(len(changes))]

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """Remove due entries; see :meth:`kvreplay.ExpiringKVStore.sweep`.

        A large ``limit`` takes several transactions, and others may write between them.

        Raises:
            OutcomeUnknownError: it failed after it had removed some of them.
        """
        check_sweep(primary_namespace, now, limit)
        database = self._opened()
        total = SweepResult(0, 0, more=True)
        while total.more and total.visited < limit:
            batch = min(limit - total.visited, _SWEEP_BATCH)
            try:
                swept = database.write(partial(entries.sweep, primary_namespace, now, batch), ALONE)
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

        The log grows by what others write meanwhile. A fork waits for it, for some seconds at most;
        the child of one that could not wait for the end is refused any SQLite store.
        """
        database = self._opened()
        database.make_removals()
        try:
            place = free_place(path, "SQLite")
            try:
                make_copy(place, database.connections)
            except FileExistsError as error:
                raise taken(place) from error
        except OSError as error:
            raise not_backed_up(error) from error
        except sqlite3.Error as error:
            raise store_error(error, str(path)) from error

    def compact(self) -> Compacted:
        """Free no longer used pages; see :meth:`kvreplay.store.CompactableKVStore.compact`.

        Other processes may have the store open, and read; who writes waits for it. It needs room in
        the folder for temporary files, and in the log. An interrupt waits for it.
        """
        return self._opened().compact()

    def transaction(self) -> AbstractContextManager[KVTransaction]:
        """All or nothing; see :meth:`kvreplay.TransactionalKVStore.transaction`.

        It holds the write lock of all processes.
        """
        database = self._opened()
        # It holds the store too, so that this is not deleted, and closed, meanwhile.
        return ThreadBound(database.transaction(partial(_Transaction, self)))

    def join(
        self, connection: object, *, lock_timeout: float | None
    ) -> AbstractContextManager[JoinedTransaction]:
        """Change entries in a caller's transaction; see :meth:`kvreplay.JoinableKVStore.join`.

        The connection is an :class:`sqlite3.Connection` to the store's own file, with a transaction
        that was begun by ``BEGIN IMMEDIATE``; any other must still be able to get the write lock.
        How durable its commit is, its own ``PRAGMA synchronous`` says.

        Raises:
            InFlightError: another transaction holds the write lock after ``lock_timeout``.
            StoreUnavailableError: the transaction has read an older state, so it cannot write.
            ClaimLostError: the transaction was ended inside the block.
        """
        # It holds the store too, likewise.
        return ThreadBound(self._opened().join(connection, lock_timeout, partial(_Joined, self)))

    def close(self) -> None:
        """Close the files, once another thread's transaction has ended.

        If it was interrupted, a second call ends what the first one began.

        Raises:
            StoreUnavailableError: that transaction has not ended within ``lock_timeout``.
            StoreError: it is closed, but could not make its lazy removals first.
        """
        database, failure = self._database, None
        if database is not None:
            if database.pid == getpid():  # else it is the parent's
                failure = database.settle(self._closing)
                database.close()
            self._database = None
        if failure is not None:
            raise failure

    def __del__(self) -> None:
        if self._database is not None:
            warning = f"{self!r} was not closed"
            try:
                self.close()  # an interrupted opening has returned no store that one could close
            finally:
                warnings.warn(warning, ResourceWarning, stacklevel=2, source=self)

    def _opened(self) -> Database:
        """Return this process's database."""
        database = self._database
        if database is not None and database.pid != getpid():
            database = self._reopened()
        if database is None:
            raise closed_error()
        return database

    def _reopened(self) -> Database | None:
        """In a forked child: open the file anew, unless another thread has done so."""
        with _opening:
            database = self._database
            if database is not None and database.pid != getpid():
                own = Database(self._path, database.durability, database.lock_timeout)
                try:
                    own.open(creating=False)
                    self._database = database = own
                except BaseException:
                    own.close()
                    raise
            return database

    def _page(
        self, value: str, primary: str, secondary: str, token: str | None, limit: int
    ) -> tuple[Any, str | None]:
        check_page(primary, secondary, limit)
        place = place_of(primary, secondary, token)
        database = self._opened()
        hidden = _hidden(database, (primary, secondary))
        sql, args = entries.PAGE, tuple[Any, ...]()
        if place is not None:
            sql, args = entries.PAGE_AFTER, (place[0], *place)
        args = (primary, secondary, *args, limit + 1 + len(hidden))
        sql = sql.replace("{value}", value)
        rows = entries.legal_rows(database.connections.rows, sql, args, entries.OF_KEYS)
        if hidden:
            rows = [row for row in rows if hidden.get(row[0]) != row[2:]]
        if len(rows) <= limit:
            return rows, None
        key, _, order, _ = rows[limit - 1]
        if type(order) is not int or order < 0:
            raise CorruptStoreError(
                f"an entry of the SQLite store {self._path} has a sort_order that is no creation"
                " number, so that no page can end there: another program has written it; nothing"
                " was changed: remove that entry and write it again, or ask for larger pages"
            )
        return rows[:limit], page_token(primary, secondary, (order, key))

    def _walk(self) -> Iterator[tuple[str, str, str]]:
        last: tuple[str, str, str] = ("", "", "")
        while True:
            database = self._opened()
            hidden = database.removals.pending.copy()  # before the look: see lazy_removals.py
            sql = entries.ALL_KEYS.replace("{identity}", entries.IDENTITY if hidden else "")
            rows = entries.legal_rows(database.connections.rows, sql, last, entries.OF_ADDRESSES)
            yield from (row[:3] for row in rows if not hidden or hidden.get(row[:3]) != row[3:])
            if len(rows) < entries.WALK:
                return
            last = rows[-1][:3]

    def _check(self) -> Iterator[Fault]:
        for look in (checking.in_tables, checking.in_entries):
            try:
                yield from look(lambda: self._opened().connections)
            except CorruptStoreError:
                yield unreadable()

    def _scan(self, primary: str | None) -> Iterator[tuple[entries.Address, Entry]]:
        last: tuple[str, str, str] = (primary or "", "", "")
        damaged = 0
        while primary in (None, last[0]):
            database = self._opened()
            hidden = database.removals.pending.copy()  # before the look: see lazy_removals.py
            take = partial(database.connections.some_rows, entries.first_few)
            rows = entries.legal_rows(take, entries.SCAN, last, entries.OF_ADDRESSES)
            if not rows:
                break
            for row in rows:
                address = row[:3]
                if primary not in (None, row[0]):
                    break
                if hidden and hidden.get(address) == row[5:]:
                    continue
                if type(row[3]) is bytes:
                    yield address, Entry(row[3], row[4])
                else:
                    damaged += 1
            last = rows[-1][:3]
        if damaged:
            raise damaged_entries(damaged, f"the SQLite store {self._path}")


def _shown(database: Database, address: entries.Address) -> Any:
    """Return value, expiry and identity of an entry, unless it is removed lazily."""
    hidden = database.removals.pending.get(address)  # before the look: see lazy_removals.py
    row = database.connections.row(entries.IDENTIFIED, address)
    return None if row is None or row[2:] == hidden else row


def _hidden(database: Database, namespace: tuple[str, str]) -> dict[str, entries.Identity]:
    """Return the identities of the namespace's entries that are removed lazily, by their keys."""
    pending = database.removals.pending
    if not pending:
        return {}
    return {
        address[2]: identity
        for address, identity in pending.copy().items()
        if address[:2] == namespace
    }


def _check_size(value: bytes | None) -> None:
    if value is not None and len(value) > _MAX_VALUE:
        raise InvalidValueError(
            f"a value of {len(value)} bytes is more than SQLite can hold ({_MAX_VALUE}); nothing"
            " was written"
        )


class _Transaction:
    """The store's calls inside a caller's transaction."""

    def __init__(self, store: SQLiteStore, block: Block | Joined) -> None:
        self._store = store
        self._run = block.run

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        check_name(primary_namespace, secondary_namespace, key)
        address = (primary_namespace, secondary_namespace, key)
        row = self._run(lambda txn: txn.run(entries.VALUE, address).fetchone())
        if row is None:
            raise KeyNotFoundError("no entry under that name")
        return entries.checked(row[0], self._store._path)

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        _check_size(value)
        address = (primary_namespace, secondary_namespace, key)
        self._run(partial(entries.put, address, value), len(value))

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        check_name(primary_namespace, secondary_namespace, key)
        self._run(partial(entries.delete, (primary_namespace, secondary_namespace, key)))

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        check_namespace(primary_namespace, secondary_namespace)
        namespace = (primary_namespace, secondary_namespace)
        sql = entries.KEYS.replace("{identity}", "")
        found = self._run(lambda txn: entries.legal_rows(txn.rows, sql, namespace, entries.OF_KEYS))
        return [key for (key,) in found]

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
        check_name(primary_namespace, secondary_namespace, key)
        check_change(expected, value, expires_at)
        _check_size(value)
        address = (primary_namespace, secondary_namespace, key)
        return self._run(
            partial(entries.check_and_put, address, expected, value, expires_at), len(value or b"")
        )


class _Joined(_Transaction):
    """The store's calls inside a caller's own transaction."""

    sees_commits = False  # it holds the write lock

    def __init__(self, store: SQLiteStore, block: Joined) -> None:
        super().__init__(store, block)
        self.undo = block.undo
