"""The store contract: what a key-value store promises, one protocol for each capability.

The four methods and the name rules are those of LDK's ``KVStoreSync``
(rust-lightning, ``lightning/src/util/persist.rs``). Each further capability is a
further protocol, and a store that lacks one does not have the method.

What every store promises:

* An entry is addressed by ``(primary_namespace, secondary_namespace, key)``.
* When a mutating call returns, its change is durable at the store's declared level.
  When it raises, nothing changed; only :class:`~kvreplay.OutcomeUnknownError` says
  otherwise.
* Two calls on one key take effect in some order that both callers agree on, over
  all threads, and over all processes where the engine can be shared.
* A forked child may go on using the store object that it inherits, and so may its parent.
* It is a context manager; ``close()`` may be called twice, and a closed store answers
  every other call with :class:`~kvreplay.StoreError`.

These attributes are optional:

* ``reads_are_local = True`` says that ``read`` comes from this machine's memory or page cache, so
  that an event loop may call it inline.
* ``identity`` (hashable) is equal for two store objects that show the same entries.
* ``owners_file`` (a path) is a file beside the entries, the same one for every process that shares
  them. ``Replay`` makes it, and holds a POSIX record lock on a byte of it while it runs handlers.
  By this lock every process of the machine knows whether the owner of a claim lives. The store
  itself must never open the file: to close it would end the lock. Without the attribute, or with
  ``None``, a claim of another process holds until its lease is over.
* ``spans_machines = True`` says that processes on other machines use the same entries. ``Replay``
  then renews the leases of its claims unless it is told not to, since only the lease shows there
  that an owner lives.
* ``clock`` is a :class:`~kvreplay.clock.Clock` that all who share the entries have in common, such
  as that of a server. ``Replay`` goes by it, unless it is given another.
* ``max_change_bytes`` is how many bytes one change can carry: the expected and the new value
  together, or the value that is written. A larger one is an :class:`~kvreplay.InvalidValueError`.
  Without the attribute a store takes values of any size that it has room for.
* ``awaited`` is the same store for an event loop: see :mod:`kvreplay.store.awaited`.
* ``in_transaction`` is true while this thread's calls on the store are a part of a transaction that
  holds the write lock and is not committed yet. What ``Replay`` answers then is shared with no
  other thread, and it waits for nobody: no other run could end meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Literal, Protocol, runtime_checkable

import attrs

from kvreplay.errors import InvalidValueError
from kvreplay.store.names import check_namespace

__all__ = [
    "MAX_EXPIRES_AT",
    "AtomicKVStore",
    "BatchingKVStore",
    "Change",
    "Durability",
    "Entry",
    "ExpiringKVStore",
    "InspectableKVStore",
    "JoinableKVStore",
    "JoinedState",
    "JoinedTransaction",
    "KVStoreSync",
    "KVTransaction",
    "MigratableKVStore",
    "Page",
    "PageWithValues",
    "PaginatedKVStore",
    "PromptKVStore",
    "SweepResult",
    "TransactionalKVStore",
    "check_change",
    "check_sweep",
    "check_value",
    "missing_methods",
]

MAX_EXPIRES_AT: Final = 2**63 - 1
"""The latest expiry of an entry, in milliseconds since the epoch: a signed 64-bit integer."""

Durability = Literal["full", "process"]
"""What a returned change survives. ``full``: a power cut. ``process``: a killed process; a
power cut may undo the latest changes, and damages nothing."""


@runtime_checkable
class KVStoreSync(Protocol):
    """LDK's contract: four blocking calls over a two-level namespace."""

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value, even of an entry whose expiry is past.

        Raises:
            KeyNotFoundError: there is no such entry; no other failure raises it.
        """

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace the entry, durably and as a whole; it has no expiry."""

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove the entry; succeed if there is none.

        ``lazy`` spares the wait for a commit. For this process the entry is gone at once, for
        others once this process commits its next change, or closes the store. A later write, by
        whichever process and of whatever bytes, wins over it, and makes a new entry. A crash
        before that commit may bring the entry back, and nothing else.
        """

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the keys of one namespace in no promised order; none if it is unknown."""


@runtime_checkable
class MigratableKVStore(KVStoreSync, Protocol):
    """A store whose whole content can be walked."""

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        """Yield every ``(primary_namespace, secondary_namespace, key)`` in no promised order.

        Each entry that exists during the whole walk is yielded exactly once; the walk
        blocks no writer.
        """


@runtime_checkable
class AtomicKVStore(MigratableKVStore, Protocol):
    """A store with the one primitive behind claim, complete, release and prune."""

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
        """Put ``value`` if the entry is exactly ``expected``, in one atomic step.

        Args:
            expected: the bytes that must be there; ``None``: there must be no entry.
            value: the bytes to put; ``None`` deletes.
            expires_at: milliseconds since the epoch (UTC) from which a sweep may drop the
                entry; ``None``: never. A store that is not expiring ignores it.

        Returns:
            What was found (``None``: nothing). The change happened if and only if that
            equals ``expected``, so the loser learns the winner's bytes in the same call.
        """


@attrs.frozen(repr=False)
class Change:
    """The arguments of one :meth:`AtomicKVStore.check_and_put`."""

    primary_namespace: str
    secondary_namespace: str
    key: str
    expected: bytes | None
    value: bytes | None
    expires_at: int | None = None


@runtime_checkable
class BatchingKVStore(AtomicKVStore, Protocol):
    """A store to which many changes at once cost little more than one."""

    def check_and_put_each(self, changes: Sequence[Change]) -> Sequence[bytes | Exception | None]:
        """Do :meth:`~AtomicKVStore.check_and_put` for each change, in this order.

        Each is an atomic step of its own, and durable when this returns. None fails because another
        one does.

        Returns:
            For each change what was found, or what its ``check_and_put`` would have raised.
        """


@runtime_checkable
class PromptKVStore(AtomicKVStore, Protocol):
    """A store whose changes take moments, as in memory, unless another thread is in one.

    An event loop makes its changes itself, and gives one to a thread only if it would wait.
    """

    def check_and_put_at_once(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        key: str,
        *,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None = None,
    ) -> bytes | None:
        """Do :meth:`~AtomicKVStore.check_and_put` if that waits for nobody.

        Raises:
            StoreUnavailableError: it would wait for another thread; nothing was changed.
        """


@attrs.frozen
class Page:
    """Some keys of one namespace, and a token for the page after it; ``None``: it is the last."""

    keys: Sequence[str] = attrs.field(repr=False)
    next_page_token: str | None = attrs.field(repr=False)


@attrs.frozen
class PageWithValues:
    """As :class:`Page`, with each key's value as it was at one moment."""

    entries: Sequence[tuple[str, bytes]] = attrs.field(repr=False)
    next_page_token: str | None = attrs.field(repr=False)


@runtime_checkable
class PaginatedKVStore(MigratableKVStore, Protocol):
    """A store that knows the order of creation: LDK's ``PaginatedKVStoreSync``.

    The entries that were *created* last come first. An update does not move an entry; one that was
    removed and is written again is new. Whoever follows the tokens sees each entry that exists all
    the time exactly once, and none that was created after the first page. A token outlives the
    entry at which its page ended, and a restart. It is opaque, and belongs to one namespace.
    """

    def list_paginated(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> Page:
        """Return at most ``limit`` keys (1 to 1000), and a token if there are more.

        Raises:
            InvalidValueError: the token is not one of this namespace, or the limit is not legal.
        """

    def list_paginated_with_values(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> PageWithValues:
        """Do as :meth:`list_paginated`, and return each value too."""


@attrs.frozen
class SweepResult:
    """What one bounded sweep did: due entries visited and removed, and whether more may be due."""

    visited: int
    removed: int
    more: bool


@runtime_checkable
class ExpiringKVStore(AtomicKVStore, Protocol):
    """A store that indexes expiry, so that a sweep visits only what is due."""

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """Remove due entries (``expires_at <= now``) of one primary namespace.

        Visits at most ``limit`` (at least 1) of them, and removes an entry only if it is
        still due in the same atomic step.

        Args:
            now: milliseconds since the epoch, UTC.
        """


@attrs.frozen
class Entry:
    """A value and its expiry: milliseconds since the epoch (UTC), or ``None``: never."""

    value: bytes = attrs.field(repr=False)
    expires_at: int | None


@runtime_checkable
class InspectableKVStore(ExpiringKVStore, Protocol):
    """A store that tells an entry's expiry too, without which no copy of it is exact."""

    def read_entry(self, primary_namespace: str, secondary_namespace: str, key: str) -> Entry:
        """Return the value and its expiry, as one change has put them.

        Raises:
            KeyNotFoundError: there is no such entry; no other failure raises it.
        """


class KVTransaction(Protocol):
    """The store's calls inside one transaction: it reads its own changes."""

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """As :meth:`KVStoreSync.read`, and sees this transaction's changes."""

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """As :meth:`KVStoreSync.write`, kept if the transaction commits."""

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """As :meth:`KVStoreSync.remove`, kept if the transaction commits, even if ``lazy``."""

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """As :meth:`KVStoreSync.list`, and sees this transaction's changes."""

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
        """As :meth:`AtomicKVStore.check_and_put`, kept if the transaction commits."""


@runtime_checkable
class TransactionalKVStore(ExpiringKVStore, Protocol):
    """A store that changes several entries all or not at all."""

    def transaction(self) -> AbstractContextManager[KVTransaction]:
        """Hold the store's write lock for a block: commit at its end, or undo if it raises.

        Use the transaction's methods inside; a change through the store itself by the same
        thread is refused with :class:`~kvreplay.StoreError`. Readers are not held up and
        see all of the changes or none. The transaction belongs to the thread that began it:
        its use by any other thread, or after its end, is refused.
        """


class JoinedState(Protocol):
    """What is true of a transaction that the caller began.

    Attributes:
        sees_commits: whether it sees what others commit while it is open. If not, it is of no use
            to wait in it for another owner's answer.
    """

    sees_commits: bool


class JoinedTransaction(KVTransaction, JoinedState, Protocol):
    """The store's calls inside a transaction that the caller began, and will end.

    Its ``check_and_put`` waits for another transaction that has changed the entry and is still
    open, as long as ``lock_timeout`` allows for the whole block, and then raises
    :class:`~kvreplay.InFlightError`; nothing was changed.
    """

    def undo(self) -> None:
        """Undo all that was changed since the block began, the caller's own changes too."""


@runtime_checkable
class JoinableKVStore(TransactionalKVStore, Protocol):
    """A store whose entries can change in a transaction of the caller's own database."""

    def join(
        self, connection: object, *, lock_timeout: float | None
    ) -> AbstractContextManager[JoinedTransaction]:
        """Change entries in the transaction that is open on ``connection``, during a block.

        The block is a savepoint of that transaction. If it raises, all that was changed in it is
        undone, and the transaction can go on. It neither commits nor ends the transaction.

        Args:
            lock_timeout: how long the block waits for others, in seconds; ``None``: no limit.

        Raises:
            ConfigError: the connection is of a kind that the store does not know, has no
                transaction open, is of another database than the store's, or cannot write.
            StoreError: the database refused. What it says of a conflict between transactions
                (PostgreSQL's 40001 and 40P01) comes out as the driver's own exception: the caller
                must run the whole transaction again.
        """


def check_value(value: object, expires_at: object = None) -> None:
    """Check that a value is ``bytes`` and an expiry a time in integer milliseconds or ``None``.

    Raises:
        InvalidValueError: it is not; the message never shows the value.
    """
    # Not a subclass, which may have its own ``==``: equal values must be the same bytes.
    if type(value) is not bytes:
        raise InvalidValueError(
            f"a value must be bytes, not {type(value).__name__}; nothing was written"
        )
    if expires_at is not None and not (
        type(expires_at) is int and 0 <= expires_at <= MAX_EXPIRES_AT
    ):
        raise InvalidValueError(
            "expires_at must be an int of milliseconds since the epoch, from 0 to 2**63 - 1,"
            " or None; nothing was written"
        )


def check_change(expected: object, value: object, expires_at: object) -> None:
    """Check the arguments of a ``check_and_put``, as :func:`check_value` does."""
    if expected is not None:
        check_value(expected)
    check_value(b"" if value is None else value, expires_at)


def check_sweep(primary_namespace: str, now: object, limit: object) -> None:
    """Check the arguments of a ``sweep``.

    Raises:
        InvalidNameError: the namespace breaks the name rules.
        InvalidValueError: ``now`` is not an ``int``, or ``limit`` not one of at least 1.
    """
    check_namespace(primary_namespace, "")
    if type(now) is not int:
        raise InvalidValueError(
            "now must be an int of milliseconds since the epoch; nothing was swept"
        )
    if type(limit) is not int or limit < 1:
        raise InvalidValueError("limit must be an int of at least 1; nothing was swept")


def missing_methods(store: object, capability: type[Any]) -> list[str]:
    """Return the methods of a protocol that a store does not have.

    Not ``isinstance``, which since Python 3.12 does not see the methods that a proxy passes on.
    """
    methods = {each for cls in capability.__mro__ for each in vars(cls) if not each.startswith("_")}
    return [each for each in sorted(methods) if not callable(getattr(store, each, None))]
