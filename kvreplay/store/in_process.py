"""The explicit wrapper that makes a node's own plain store atomic, for one process only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvreplay.errors import (
    ConfigError,
    KeyNotFoundError,
    KVReplayError,
    OutcomeUnknownError,
    StoreError,
)
from kvreplay.store.closing import Closing
from kvreplay.store.contract import KVStoreSync, check_change, check_value
from kvreplay.store.locks import ForkSafeLock
from kvreplay.store.names import check_name, check_namespace

__all__ = ["InProcessAtomicStore"]


class InProcessAtomicStore(Closing):
    """Make a node's own plain ``KVStoreSync`` atomic, for **one process only**.

    A lock in this process makes ``check_and_put`` one step. It protects against other
    threads that go through *this object*, and against nothing else: not against another
    process, and not against code that writes to the wrapped store directly. A store that
    can compare and set by itself needs no wrapper.

    Args:
        inner: the store. It stays open when the wrapper is closed.
        not_found: what its ``read`` raises for an absent key. Any other exception of its own
            becomes a :class:`~kvreplay.StoreError`, and from a change an
            :class:`~kvreplay.OutcomeUnknownError`, since it is not known what it has done.
    """

    def __init__(
        self,
        inner: KVStoreSync,
        *,
        not_found: type[Exception] | tuple[type[Exception], ...] = KeyError,
    ) -> None:
        self._inner = inner
        self._not_found = not_found
        self._lock = ForkSafeLock()

    def __repr__(self) -> str:
        return f"<InProcessAtomicStore over {type(self._inner).__name__}>"

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Read from the wrapped store; its own ``not_found`` becomes ``KeyNotFoundError``."""
        check_name(primary_namespace, secondary_namespace, key)
        self._check_open()
        found = self._find(primary_namespace, secondary_namespace, key)
        if found is None:
            raise KeyNotFoundError("no entry under that name")
        return found

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Write to the wrapped store, never between the two steps of a ``check_and_put``."""
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        with self._lock:
            self._check_open()
            with _changing():
                self._inner.write(primary_namespace, secondary_namespace, key, value)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove from the wrapped store, never between the two steps of a ``check_and_put``."""
        check_name(primary_namespace, secondary_namespace, key)
        with self._lock:
            self._check_open()
            with _changing():
                self._inner.remove(primary_namespace, secondary_namespace, key, lazy)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """List the keys of the wrapped store."""
        check_namespace(primary_namespace, secondary_namespace)
        self._check_open()
        with _reading():
            return self._inner.list(primary_namespace, secondary_namespace)

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        """Walk the wrapped store, if it can be walked.

        Raises:
            ConfigError: the wrapped store has no ``list_all_keys``.
        """
        self._check_open()
        walk = getattr(self._inner, "list_all_keys", None)
        if walk is None:
            raise ConfigError(
                f"{type(self._inner).__name__} has no list_all_keys(), so its records cannot be"
                " walked; give it that method of MigratableKVStore"
            )
        return iter(walk())

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
        """Compare and put under this process's lock; ``expires_at`` is ignored."""
        check_name(primary_namespace, secondary_namespace, key)
        check_change(expected, value, expires_at)
        with self._lock:
            self._check_open()
            found = self._find(primary_namespace, secondary_namespace, key)
            if found == expected:
                with _changing():
                    if value is not None:
                        self._inner.write(primary_namespace, secondary_namespace, key, value)
                    elif found is not None:
                        self._inner.remove(primary_namespace, secondary_namespace, key, False)
            return found

    def _find(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes | None:
        with _reading():
            try:
                return bytes(self._inner.read(primary_namespace, secondary_namespace, key))
            except self._not_found:
                return None


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except KVReplayError:
        raise
    except Exception as error:  # foreign code: whatever it raises
        raise StoreError(
            f"the wrapped store could not be read ({type(error).__name__}); nothing was changed"
        ) from error


@contextmanager
def _changing() -> Iterator[None]:
    try:
        yield
    except KVReplayError:
        raise
    except Exception as error:  # foreign code: whatever it raises
        raise OutcomeUnknownError(
            f"the wrapped store failed in a change ({type(error).__name__}), which may or may not"
            " have happened: read again before deciding"
        ) from error
