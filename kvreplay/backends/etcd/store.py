"""Entries in an etcd cluster: they outlive any machine, as long as a majority of members runs.

``docs/etcd.md`` has what it needs of a cluster, and what each of etcd's errors means.
``docs/format.md`` describes the keys.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, TypeVar

from kvreplay.backends._support import check_create, check_lock_timeout, damaged_entries
from kvreplay.backends.etcd.aio import AsyncEtcdStore
from kvreplay.backends.etcd.cluster import Cluster
from kvreplay.backends.etcd.layout import Address, Keys, Range
from kvreplay.backends.etcd.links import tls_context
from kvreplay.backends.etcd.location import locate
from kvreplay.backends.etcd.opening import check_version, find_mark
from kvreplay.backends.etcd.operations import FIRST_SCAN, OVERHEAD, Operation, Operations
from kvreplay.backends.etcd.session import Session
from kvreplay.errors import ConfigError
from kvreplay.store import (
    Closing,
    Entry,
    ForkSafeLock,
    Page,
    PageWithValues,
    SweepResult,
    closed_error,
)
from kvreplay.store.durations import Duration

__all__ = ["EtcdStore"]

T = TypeVar("T")

_opening: Final = ForkSafeLock()  # guards which session a store has


class EtcdStore(Closing):
    """A :class:`~kvreplay.PaginatedKVStore` and more in an etcd cluster; no transactions.

    Every call is atomic against all threads, processes and machines that use the same prefix, and
    linearizable: a read shows every change that had returned before it began. A returned change is
    on the disks of a majority of the members. A change whose answer was lost is an
    ``OutcomeUnknownError``: it may have happened, and may still happen a little later.

    It makes no thread, but for a moment one that asks DNS for a member's name. A forked child has
    connections of its own.

    Args:
        url: ``etcd://HOST:2379,HOST:2379,HOST:2379/PREFIX``, with ``USER:PASSWORD@`` before the
            hosts if etcd asks for it. The keys of the store lie below the prefix, by default
            ``/kvreplay``.
        create: make the store if nothing is under the prefix.
        timeout: how long a request may take, at most, over all members that it is made to: seconds,
            a timedelta, or text such as ``"5s"``. A call is one request; only walks, lists of more
            than a thousand keys, and sweeps make several. etcd itself gives up after 7 s.
        pool_size: how many connections to a member a process keeps open for its next calls; and
            how many an event loop uses at once, at most.
        max_request_bytes: what the members have as ``--max-request-bytes``. A change must fit into
            it, the expected and the new value together.
        tls: speak TLS; by default if one of the following is given.
        ca: the file with the certificate of who signs the members' ones; by default those that
            this system trusts.
        cert: the file with a certificate of our own, for members that ask for one.
        key: the file with its key.

    Raises:
        ConfigError: an argument is wrong, or the version of etcd loses changes.
        StoreNotFoundError: there is no store, and ``create`` is false.
        CorruptStoreError: something else is under the prefix.
        StoreUnavailableError: no majority of the members answers.
        StoreError: etcd refuses the user; the message says what to grant.
    """

    OPTIONS: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        "create": "boolean",
        "timeout": "duration",
        "pool_size": "integer",
        "max_request_bytes": "size",
        "tls": "boolean",
        "ca": "text",
        "cert": "text",
        "key": "text",
    }
    LOCATION: ClassVar[str] = "url"
    spans_machines: ClassVar[bool] = True

    _session: Session | None = None

    def __init__(
        self,
        url: str,
        *,
        create: bool = True,
        timeout: Duration = 10.0,
        pool_size: int = 10,
        max_request_bytes: int = 1536 * 1024,
        tls: bool | None = None,
        ca: str | None = None,
        cert: str | None = None,
        key: str | None = None,
    ) -> None:
        check_create(create)
        if type(pool_size) is not int or pool_size < 1:
            raise ConfigError("pool_size must be an int of at least 1; nothing was opened")
        if type(max_request_bytes) is not int or max_request_bytes < 2 * OVERHEAD:
            raise ConfigError(
                f"max_request_bytes must be an int of at least {2 * OVERHEAD}; nothing was opened"
            )
        if not isinstance(tls, bool | None):
            raise ConfigError("tls must be True, False or None; nothing was opened")
        if key is not None and cert is None:
            raise ConfigError("key is given, and no cert; nothing was opened: name both, or none")
        secured = any(each is not None for each in (ca, cert)) if tls is None else tls
        if not secured and (ca is not None or cert is not None):
            raise ConfigError("tls is false, and ca or cert is given; nothing was opened")
        location = locate(url)
        self._pool_size = pool_size
        self._context = tls_context(ca, cert, key) if secured else None
        self._cluster = Cluster(
            location.members, location.user, check_lock_timeout(timeout, "timeout")
        )
        self.max_change_bytes = max_request_bytes - OVERHEAD
        self._pid = os.getpid()
        session = Session(self._cluster, self._context, pool_size)
        keys = Keys(location.prefix)
        try:
            session.run(check_version())
            mark = session.run(find_mark(keys, create))
        except BaseException:
            session.close()
            raise
        self.identity = ("etcd", self._cluster.id, mark.decode())
        self._operations = Operations(keys, mark, self.max_change_bytes, self._cluster)
        self.awaited = AsyncEtcdStore(
            *(self._cluster, self._context, pool_size, self._operations),
            *(self.identity, self.max_change_bytes),
        )
        self._session = session

    def __repr__(self) -> str:
        state = "open" if self._session else "closed"
        return f"<EtcdStore {len(self._cluster.members)} members {state}>"

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
        self._run(self._operations.write(primary_namespace, secondary_namespace, key, value))

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present; see :meth:`kvreplay.KVStoreSync.remove`. A lazy removal waits too."""
        self._run(self._operations.remove(primary_namespace, secondary_namespace, key))

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys; see :meth:`kvreplay.KVStoreSync.list`."""
        return self._run(self._operations.keys(primary_namespace, secondary_namespace))

    def list_paginated(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> Page:
        """Return a page of keys; see :meth:`kvreplay.PaginatedKVStore.list_paginated`.

        etcd has no index of creation: for each page the member looks through the whole namespace.
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

    def list_all_keys(self) -> Iterator[Address]:
        """Yield every address; see :meth:`kvreplay.MigratableKVStore.list_all_keys`."""
        self._opened()
        return self._walk()

    def _walk(self) -> Iterator[Address]:
        place: Range | None = self._operations.walk()
        while place is not None:
            addresses, place = self._run(self._operations.some_keys(place))
            yield from addresses

    def scan(self, primary_namespace: str | None = None) -> Iterator[tuple[Address, Entry]]:
        """Yield every entry; see :meth:`kvreplay.store.ScannableKVStore.scan`."""
        place = self._operations.walk(primary_namespace)
        self._opened()
        return self._scan(place)

    def _scan(self, place: Range | None) -> Iterator[tuple[Address, Entry]]:
        limit, all_damaged = FIRST_SCAN, 0
        while place is not None:
            scanned = self._run(self._operations.some_entries(place, limit))
            yield from scanned.entries
            place, limit = scanned.next, scanned.limit
            all_damaged += scanned.damaged
        if all_damaged:
            raise damaged_entries(all_damaged, "this etcd store")

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
        return self._run(
            self._operations.check_and_put(
                primary_namespace, secondary_namespace, key, expected, value, expires_at
            )
        )

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """Remove due entries; see :meth:`kvreplay.ExpiringKVStore.sweep`.

        It also visits, and counts, what the index of expiries has of entries that were removed or
        are due later: it removes that from the index. A large ``limit`` takes several
        transactions, of at most 100 entries each.

        Raises:
            OutcomeUnknownError: it failed after it had removed some of them.
        """
        return self._run(self._operations.sweep(primary_namespace, now, limit))

    def remove_store(self) -> None:
        """Remove the whole store from the cluster, with what marks it, in one transaction.

        Whoever changes it from then on is told ``CorruptStoreError``.
        """
        self._run(self._operations.remove_store())

    def close(self) -> None:
        """Close the connections of this process; those in use end with their calls."""
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
                self._session = Session(self._cluster, self._context, self._pool_size)
                self._pid = os.getpid()
            return self._session

    def _run(self, operation: Operation[T]) -> T:
        return self._opened().run(operation)


_inherited: Final[list[Session]] = []
"""Sessions of a parent process, which a child must not end: they share its sockets."""
