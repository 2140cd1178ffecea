"""A store that fails when a test says so, over any other store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from kvreplay.errors import ConfigError, StoreUnavailableError
from kvreplay.store import (
    AtomicKVStore,
    Change,
    Entry,
    KVTransaction,
    Page,
    PageWithValues,
    SweepResult,
    ThreadBound,
    missing_methods,
)
from kvreplay.testing.planned_faults import (
    CALLS,
    CHANGES,
    Fault,
    PlannedFaults,
    failure,
    lost_outcome,
)

__all__ = ["FaultyStore"]

T = TypeVar("T")


class FaultyStore:
    """A store that passes everything on to another one, and fails when it is told to.

    It has the methods and attributes that the other store has, and no more. ``awaited`` is left
    out, so ``AsyncReplay`` calls it in threads. Closing it closes that store::

        store = FaultyStore(open_store("memory:"))
        store.fail()  # the next change is not made
        with pytest.raises(StoreUnavailableError):
            handle(request)
        handle(request)  # the retry goes through

    Calls are counted over all threads. What ``check_and_put_each`` and ``check_and_put_at_once`` do
    counts as ``check_and_put``. A call counts in a transaction too, and the end of one that is not
    undone as ``commit``.

    A forked child has faults of its own: a copy of those that are left at the fork.

    Args:
        inner: an :class:`~kvreplay.AtomicKVStore`.

    Raises:
        ConfigError: the store is none; the message names what it has not.
    """

    def __init__(self, inner: AtomicKVStore) -> None:
        if missing := missing_methods(inner, AtomicKVStore):
            raise ConfigError(
                "FaultyStore needs a store that is AtomicKVStore, and"
                f" {type(inner).__name__} has no {', no '.join(missing)}"
            )
        self.inner = inner
        self._faults = PlannedFaults()

    def __repr__(self) -> str:
        return f"<FaultyStore over {self.inner!r}>"

    # What is to fail.

    def fail(
        self,
        error: Exception | Callable[[], Exception] | None = None,
        *,
        on: str | Collection[str] | None = None,
        after: int = 0,
        times: int = 1,
    ) -> None:
        """Let calls raise an error, and change nothing.

        Faults that are for the same call happen in the order in which you ask for them.

        Args:
            error: an exception, or what makes one; by default a ``StoreUnavailableError``.
            on: which calls, by the names of the store's methods, such as ``"read"`` or
                ``"check_and_put"``. ``"transaction"`` is the beginning of one, and ``"commit"`` its
                end. By default whatever changes the store, but a sweep.
            after: how many such calls go well before.
            times: how many such calls fail then.

        Raises:
            ConfigError: the store has no such call, or a number is wrong.
        """
        self._faults.add(Fault(self._calls(on), after, times, failure(error), applied=None))

    def lose_outcome(
        self,
        *,
        applied: bool,
        on: str | Collection[str] | None = None,
        after: int = 0,
        times: int = 1,
    ) -> None:
        """Let changes raise :class:`~kvreplay.OutcomeUnknownError`.

        ``Replay.execute`` makes two changes, a claim and an answer: with ``after=1`` it is the
        answer whose outcome is lost, when the handler has run. In a transaction only the
        ``"commit"`` has an outcome, and only that counts.

        Args:
            applied: whether the change is made all the same.
            on: which changes, as for :meth:`fail`.
            after: how many such changes go well before.
            times: how many such changes lose their outcome then.

        Raises:
            ConfigError: the store has no such change, or a number is wrong.
        """
        calls = self._calls(on)
        if idle := calls - {*CHANGES, "sweep"}:
            raise ConfigError(f'"{min(idle)}" changes nothing, so it has no outcome to lose')
        self._faults.add(Fault(calls, after, times, lost_outcome, applied=bool(applied)))

    def heal(self) -> None:
        """Forget the faults that have not happened."""
        self._faults.clear()

    @property
    def faults_left(self) -> int:
        """How many calls are still to fail; 0 when a test has met all that it has asked for."""
        return self._faults.left

    def _calls(self, on: str | Collection[str] | None) -> frozenset[str]:
        if on is None:
            return frozenset(CHANGES)
        calls = frozenset((on,) if isinstance(on, str) else on)
        for call in calls:
            if call not in CALLS:
                raise ConfigError(f'there is no call "{call}"; choose of {", ".join(CALLS)}')
            method = "transaction" if call == "commit" else call
            if not hasattr(self, method):
                raise ConfigError(f"{type(self.inner).__name__} has no {method}() that could fail")
        return calls

    def _call(self, name: str, call: Callable[[], T], *, has_outcome: bool = True) -> T:
        fault = self._faults.due(name, has_outcome=has_outcome)
        if fault is None:
            return call()
        if fault.applied:
            call()
        raise fault.error()

    # The calls that every store has.

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Read; see :meth:`kvreplay.KVStoreSync.read`."""
        read = partial(self.inner.read, primary_namespace, secondary_namespace, key)
        return self._call("read", read)

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace; see :meth:`kvreplay.KVStoreSync.write`."""
        write = partial(self.inner.write, primary_namespace, secondary_namespace, key, value)
        self._call("write", write)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present; see :meth:`kvreplay.KVStoreSync.remove`."""
        remove = partial(self.inner.remove, primary_namespace, secondary_namespace, key, lazy)
        self._call("remove", remove)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the keys; see :meth:`kvreplay.KVStoreSync.list`."""
        return self._call("list", partial(self.inner.list, primary_namespace, secondary_namespace))

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        """Walk the store; see :meth:`kvreplay.MigratableKVStore.list_all_keys`."""
        return self._call("list_all_keys", self.inner.list_all_keys)

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
        """Check and put; see :meth:`kvreplay.AtomicKVStore.check_and_put`."""
        put = partial(
            self.inner.check_and_put,
            *(primary_namespace, secondary_namespace, key),
            expected=expected,
            value=value,
            expires_at=expires_at,
        )
        return self._call("check_and_put", put)

    def close(self) -> None:
        """Close the other store."""
        self.inner.close()  # type: ignore[attr-defined]  # every store has it

    def __enter__(self) -> Self:
        self.inner.__enter__()  # type: ignore[attr-defined]  # every store has it
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # What only some stores have: it is here if the other store has it.

    if TYPE_CHECKING:

        def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult: ...

        def transaction(self) -> AbstractContextManager[KVTransaction]: ...

        def read_entry(
            self, primary_namespace: str, secondary_namespace: str, key: str
        ) -> Entry: ...

        def scan(
            self, primary_namespace: str | None = None
        ) -> Iterator[tuple[tuple[str, str, str], Entry]]: ...

        def list_paginated(
            self,
            primary_namespace: str,
            secondary_namespace: str,
            page_token: str | None = None,
            *,
            limit: int = 50,
        ) -> Page: ...

        def list_paginated_with_values(
            self,
            primary_namespace: str,
            secondary_namespace: str,
            page_token: str | None = None,
            *,
            limit: int = 50,
        ) -> PageWithValues: ...

    else:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or name == "inner":  # a copy of this has none yet
                raise AttributeError(f"FaultyStore has no {name}")
            if name == "awaited":  # its calls would meet no faults
                raise AttributeError(f"FaultyStore has no {name}")
            there = getattr(self.inner, name)
            if name in _SPECIAL:
                return partial(_SPECIAL[name], self)
            if name in CALLS:
                return partial(self._passed_on, name)
            return there

    def _passed_on(self, name: str, *args: Any, **options: Any) -> Any:
        return self._call(name, partial(getattr(self.inner, name), *args, **options))

    def _check_and_put_each(self, changes: Sequence[Change]) -> Sequence[object]:
        faults = [self._faults.due("check_and_put") for _ in changes]
        made = [n for n, fault in enumerate(faults) if fault is None or fault.applied]
        results: Any = [None if fault is None else fault.error() for fault in faults]
        inner: Any = self.inner
        found = inner.check_and_put_each([changes[n] for n in made]) if made else ()
        for n, each in zip(made, found, strict=True):
            if faults[n] is None:
                results[n] = each
        return tuple(results)

    def _check_and_put_at_once(self, *address: str, **options: Any) -> bytes | None:
        if self._faults.are_planned("check_and_put"):
            # An event loop gives what would wait to a thread: the fault meets it there.
            raise StoreUnavailableError("a fault is due; nothing was changed: use check_and_put")
        inner: Any = self.inner
        found: bytes | None = inner.check_and_put_at_once(*address, **options)
        return found

    def _transaction(self) -> AbstractContextManager[KVTransaction]:
        return ThreadBound(self._block())

    def _block(self) -> Generator[KVTransaction, None, None]:
        inner: Any = self.inner
        if fault := self._faults.due("transaction"):
            raise fault.error()
        with inner.transaction() as transaction:
            yield _FaultyTransaction(self, transaction)
            fault = self._faults.due("commit")
            if fault and not fault.applied:
                raise fault.error()  # so it is undone
        if fault:
            raise fault.error()


class _FaultyTransaction:
    """The calls in one transaction."""

    def __init__(self, store: FaultyStore, transaction: KVTransaction) -> None:
        self._store = store
        self._transaction = transaction

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        found: bytes = self._call("read", primary_namespace, secondary_namespace, key)
        return found

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        self._call("write", primary_namespace, secondary_namespace, key, value)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        self._call("remove", primary_namespace, secondary_namespace, key, lazy)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        found: list[str] = self._call("list", primary_namespace, secondary_namespace)
        return found

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
        found: bytes | None = self._call(
            "check_and_put",
            *(primary_namespace, secondary_namespace, key),
            expected=expected,
            value=value,
            expires_at=expires_at,
        )
        return found

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        call = partial(getattr(self._transaction, name), *args, **options)
        return self._store._call(name, call, has_outcome=False)


_SPECIAL: Final[dict[str, Callable[..., Any]]] = {
    "check_and_put_each": FaultyStore._check_and_put_each,
    "check_and_put_at_once": FaultyStore._check_and_put_at_once,
    "transaction": FaultyStore._transaction,
}
"""The calls in which more than one thing may fail, or none."""
