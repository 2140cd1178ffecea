"""Entries in a table of PostgreSQL: shared by processes on any machine, durable, transactional.

``docs/postgresql.md`` has what it needs of a server, and what becomes of a failover.
``docs/format.md`` describes the tables.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar, Final, TypeVar

from kvreplay.backends._support import (
    LOCK_TIMEOUT,
    OwnTransaction,
    check_create,
    check_durability,
    check_lock_timeout,
    own_transaction_error,
)
from kvreplay.backends.postgresql.aio import AsyncPostgreSQLStore
from kvreplay.backends.postgresql.clock import ServerClock
from kvreplay.backends.postgresql.joining import joined
from kvreplay.backends.postgresql.location import PARAMETERS, connection_string
from kvreplay.backends.postgresql.opening import open_place
from kvreplay.backends.postgresql.operations import Operation, Operations
from kvreplay.backends.postgresql.session import Session
from kvreplay.backends.postgresql.statements import WALK, Statements
from kvreplay.backends.postgresql.timeline import Timeline
from kvreplay.backends.postgresql.transaction import Transaction
from kvreplay.errors import ConfigError
from kvreplay.store import (
    Closing,
    Durability,
    Entry,
    ForkSafeLock,
    JoinedTransaction,
    KVTransaction,
    Page,
    PageWithValues,
    SweepResult,
    ThreadBound,
    check_namespace,
    closed_error,
)
from kvreplay.store.durations import Duration

__all__ = ["PostgreSQLStore"]

T = TypeVar("T")

_opening: Final = ForkSafeLock()  # guards which session a store has


class PostgreSQLStore(Closing):
    """A :class:`~kvreplay.TransactionalKVStore` in a PostgreSQL database.

    Every call is atomic against all threads, processes and machines that use the same tables. A
    returned change is committed: as durable as the server and its ``synchronous_commit`` make it.
    A change whose answer was lost with its connection is an ``OutcomeUnknownError``.

    It makes no thread but those of psycopg's pool. A forked child has connections of its own.

    Args:
        url: libpq's URL of the server and the database, with any parameters of libpq's.
        create: make the schema and the tables if there are none.
        durability: ``full``: a returned change survives a power cut of the server. ``process``: it
            survives the end of this process, and the server may forget the latest ones if it
            crashes (``synchronous_commit=off``).
        lock_timeout: how long a call waits, at most, for a connection of the pool, and for locks of
            other transactions: seconds, a timedelta, or text such as ``"5s"``. What has waited in
            vain raises ``StoreUnavailableError``, and never happens later.
        reply_timeout: how much longer the server may take to answer, likewise.
        pool_size: how many connections a process has, at most.
        schema: where the tables are; by default the first schema of the ``search_path``.

    Raises:
        ConfigError: an argument is wrong, or the server runs with ``fsync=off``.
        StoreNotFoundError: there is no database, or no store, and ``create`` is false.
        CorruptStoreError: the tables are foreign, or of another version.
        StoreUnavailableError: no connection could be made.
        StoreError: the role may not do it; the message says what to grant.
    """

    OPTIONS: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        "create": "boolean",
        "durability": ("full", "process"),
        "lock_timeout": "duration",
        "reply_timeout": "duration",
        "pool_size": "integer",
        "schema": "text",
    }
    LOCATION: ClassVar[str] = "url"
    PARAMETERS: ClassVar[Collection[str]] = PARAMETERS
    spans_machines: ClassVar[bool] = True

    _session: Session | None = None

    def __init__(
        self,
        url: str,
        *,
        create: bool = True,
        durability: Durability = "full",
        lock_timeout: Duration = LOCK_TIMEOUT,
        reply_timeout: Duration = 10.0,
        pool_size: int = 10,
        schema: str | None = None,
    ) -> None:
        check_create(create)
        check_durability(durability)
        if type(pool_size) is not int or pool_size < 2:
            raise ConfigError("pool_size must be an int of at least 2; nothing was opened")
        if schema is not None and (type(schema) is not str or not schema or "\0" in schema):
            raise ConfigError("schema must be a name, or None; nothing was opened")
        bound = check_lock_timeout(reply_timeout, "reply_timeout")
        self.clock = ServerClock()
        self._place = open_place(
            connection_string(url, bound),
            schema=schema,
            create=create,
            durability=durability,
            lock_timeout=check_lock_timeout(lock_timeout),
            reply_timeout=bound,
            pool_size=pool_size,
            clock=self.clock,
        )
        self._operations = Operations(Statements(self._place.schema))
        self._joined = Operations(Statements(self._place.schema, joined=True))
        self._transactions: dict[int, OwnTransaction] = {}  # by the thread that holds it
        self._timeline = Timeline()
        self.awaited = AsyncPostgreSQLStore(
            *(self._place, self.clock, self._timeline, self.identity),
            *(self._operations, self._joined),
        )
        self._pid = os.getpid()
        self._session = Session(self._place, self.clock, self._timeline)

    def __repr__(self) -> str:
        state = "open" if self._session else "closed"
        return f"<PostgreSQLStore schema={self._place.schema!r} {state}>"

    @property
    def identity(self) -> tuple[str, str, int]:
        """Equal for two stores on the same tables."""
        return "postgresql", self._place.id, self._place.database

    @property
    def schema(self) -> str:
        """The schema that has the tables."""
        return self._place.schema

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value; see :meth:`kvreplay.KVStoreSync.read`."""
        return self._run(self._operations.read(primary_namespace, secondary_namespace, key))

    def read_entry(self, primary_namespace: str, secondary_namespace: str, key: str) -> Entry:
        """Return value and expiry; see :meth:`kvreplay.InspectableKVStore.read_entry`."""
        return self._run(self._operations.read_entry(primary_namespace, secondary_namespace, key))

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace; see :meth:`kvreplay.KVStoreSync.write`."""
        self._change(self._operations.write(primary_namespace, secondary_namespace, key, value))

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present; see :meth:`kvreplay.KVStoreSync.remove`.

        A lazy removal is a commit that waits for no flush of the server's.
        """
        self._change(self._operations.remove(primary_namespace, secondary_namespace, key, lazy))

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys, of one moment; see :meth:`kvreplay.KVStoreSync.list`."""
        return self._run(self._operations.list(primary_namespace, secondary_namespace))

    def list_paginated(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> Page:
        """Return a page of keys; see :meth:`kvreplay.PaginatedKVStore.list_paginated`.

        An entry counts as created when its change began. One that was being created when the first
        page was asked for may show in a later page.
        """
        return self._run(
            self._operations.page(primary_namespace, secondary_namespace, page_token, limit)
        )

    def list_paginated_with_values(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> PageWithValues:
        """Return a page of keys and values; see :class:`kvreplay.PaginatedKVStore`."""
        return self._run(
            self._operations.page_with_values(
                primary_namespace, secondary_namespace, page_token, limit
            )
        )

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        """Yield every address; see :meth:`kvreplay.MigratableKVStore.list_all_keys`.

        It holds no transaction between two pages of a thousand keys.
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

    def _scan(self, primary: str | None) -> Iterator[tuple[tuple[str, str, str], Entry]]:
        last = (primary or "", "", "")
        while primary in (None, last[0]):
            page = self._run(self._operations.some_entries(last))
            if not page:
                return
            for each in page:
                if primary not in (None, each[0][0]):
                    return
                yield each
            last = page[-1][0]

    def _walk(self) -> Iterator[tuple[str, str, str]]:
        last = ("", "", "")
        while True:
            keys = self._run(self._operations.some_keys(last))
            yield from keys
            if len(keys) < WALK:
                return
            last = keys[-1]

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
        """Compare and put in one statement; see :meth:`kvreplay.AtomicKVStore.check_and_put`."""
        return self._change(
            self._operations.check_and_put(
                primary_namespace, secondary_namespace, key, expected, value, expires_at
            )
        )

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """Remove due entries; see :meth:`kvreplay.ExpiringKVStore.sweep`.

        It leaves out those that another transaction is changing. A large ``limit`` takes several
        transactions.

        Raises:
            OutcomeUnknownError: it failed after it had removed some of them.
        """
        return self._change(self._operations.sweep(primary_namespace, now, limit))

    def transaction(self) -> AbstractContextManager[KVTransaction]:
        """All or nothing; see :meth:`kvreplay.TransactionalKVStore.transaction`.

        It holds the write lock of this store on all machines. A transaction of your own, joined by
        ``execute_in_transaction(…, connection=…)``, holds up only those that change the same key.
        """
        self._opened()
        return ThreadBound(self._transaction())

    def _transaction(self) -> Generator[KVTransaction, None, None]:
        session = self._opened()
        self._refuse_own()
        place, own = self._place, OwnTransaction()
        thread = threading.get_ident()
        lease = session.lease(place.lock_timeout)
        try:
            transaction = Transaction(lease, own, self._operations, session)
            self._transactions[thread] = own
            try:
                transaction.begin()
                yield transaction
                own.check_usable()  # a forked child would commit on its parent's connection
                own.ended = True
                transaction.commit()
            except BaseException:
                if not own.is_inherited:
                    transaction.roll_back()
                raise
        finally:
            own.ended = True
            try:
                if not own.is_inherited:
                    session.keep(lease)
            finally:
                self._transactions.pop(thread, None)
                lease.end()

    def join(
        self, connection: object, *, lock_timeout: float | None
    ) -> AbstractContextManager[JoinedTransaction]:
        """Join a caller's transaction; see :meth:`kvreplay.JoinableKVStore.join`.

        Args:
            connection: a ``psycopg.Connection``, or a ``Connection`` or ``Session`` of SQLAlchemy
                on psycopg. Without autocommit psycopg's connection is in a transaction from its
                first statement on.
        """
        self._opened()
        self._refuse_own()
        return ThreadBound(joined(connection, lock_timeout, self._place, self.clock, self._joined))

    def close(self) -> None:
        """Close the connections of this process; those in use end with their calls.

        Raises:
            StoreError: this thread holds a transaction of the store; it is not closed.
        """
        self._refuse_own()
        session = self._session
        if session is not None:
            self.awaited.cut()
            if self._pid == os.getpid():  # else it is the parent's
                session.close()
        self._session = None  # only now: what an interrupt breaks off can be done again

    def __del__(self) -> None:
        if self._session is not None and self._pid == os.getpid():
            warning = f"{self!r} was not closed"
            try:
                self.close()
            finally:
                warnings.warn(warning, ResourceWarning, stacklevel=2, source=self)

    def _opened(self) -> Session:
        """Return this process's session."""
        session = self._session
        if session is not None and self._pid != os.getpid():
            session = self._reopened()
        if session is None:
            raise closed_error()
        return session

    def _reopened(self) -> Session | None:
        """In a forked child: have connections of its own, unless another thread has done so."""
        with _opening:
            if self._session is not None and self._pid != os.getpid():
                _inherited.append(self._session)
                self._transactions = {}
                self._session = Session(self._place, self.clock, self._timeline)
                self._pid = os.getpid()
            return self._session

    def _run(self, operation: Operation[T]) -> T:
        return self._opened().run(operation)

    def _change(self, operation: Operation[T]) -> T:
        session = self._opened()
        self._refuse_own()
        return session.run(operation)

    def _refuse_own(self) -> None:
        """Refuse what would wait for this very thread's transaction."""
        own = self._transactions.get(threading.get_ident())
        if own is not None and own.is_mine:
            raise own_transaction_error()


_inherited: Final[list[Session]] = []
"""Sessions of a parent process, which a child must not end: they share its sockets."""
