"""The explicit wrapper that makes a node's own plain store atomic, for one process only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final

from kvreplay.errors import (
    ConfigError,
    InvalidNameError,
    KeyNotFoundError,
    KVReplayError,
    OutcomeUnknownError,
    StoreError,
)
from kvreplay.store.closing import Closing
from kvreplay.store.contract import KVStoreSync, check_change, check_value
from kvreplay.store.locks import ForkSafeLock
from kvreplay.store.names import check_name, check_namespace, is_name

__all__ = ["InProcessAtomicStore"]

Address = tuple[str, str, str]


class InProcessAtomicStore(Closing):
    """Make a node's own plain ``KVStoreSync`` atomic, for **one process only**.

    A lock in this process makes ``check_and_put`` one step. It protects against other
    threads that go through *this object*, and against nothing else: not against another
    process, and not against code that writes to the wrapped store directly. A store that
    can compare and set by itself needs no wrapper.

    Args:
        inner: the store. It stays open when the wrapper is closed. Names that its lists show and
            that are not legal are left out.
        not_found: what its ``read`` raises for an absent key, and **for nothing else**: what it
            raises looks like an absent entry, so an owner's claim or a channel's state counts as
            never written. A ``KeyError`` may also come out of a bug inside your ``read``. So raise
            a class of your own for absence if you can, and name it here. Any other exception of
            its own becomes a :class:`~kvreplay.StoreError`, and from a change an
            :class:`~kvreplay.OutcomeUnknownError`, since it is not known what it has done.

    Raises:
        ConfigError: ``not_found`` is no class of exceptions, or one that tells of other failures
            too, such as ``Exception`` or ``OSError``.
    """

    def __init__(
        self,
        inner: KVStoreSync,
        *,
        not_found: type[Exception] | tuple[type[Exception], ...] = KeyError,
    ) -> None:
        _check_not_found(not_found)
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
        """List the keys of the wrapped store; a name that is no legal key is left out."""
        check_namespace(primary_namespace, secondary_namespace)
        self._check_open()
        with _reading():
            found = self._inner.list(primary_namespace, secondary_namespace)
            return [key for key in found if isinstance(key, str) and is_name(key)]

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
        return _walked(walk)

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
                found: object = self._inner.read(primary_namespace, secondary_namespace, key)
            except self._not_found:
                return None
        if not isinstance(found, bytes | bytearray | memoryview):
            raise StoreError(
                f"the wrapped store has read a {type(found).__name__}, which is no bytes; nothing"
                " was changed: mend that store"
            )
        return bytes(found)


_TOO_MUCH: Final = (BaseException, Exception, OSError, LookupError, KVReplayError, StoreError)


def _check_not_found(not_found: object) -> None:
    classes = not_found if isinstance(not_found, tuple) else (not_found,)
    if not classes or not all(
        isinstance(each, type) and issubclass(each, Exception) and each not in _TOO_MUCH
        for each in classes
    ):
        raise ConfigError(
            "not_found must be the class of exceptions, or a tuple of classes, that the wrapped"
            " store's read raises for an absent key and for nothing else; Exception or OSError"
            " would make each failure look like an absent entry"
        )


def _walked(walk: Callable[[], Iterable[Address]]) -> Iterator[Address]:
    """Yield the legal addresses of a walk; the caller's own exceptions pass."""
    with _reading():
        addresses = iter(walk())
    while True:
        with _reading():
            found = [*islice(addresses, 1)]
            legal = list(filter(_is_legal, found))
        if not found:
            return
        yield from legal


def _is_legal(address: Address) -> bool:
    try:
        check_name(*address)
    except InvalidNameError:
        return False
    return True


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # foreign code: whatever it raises
        if _says_what_it_is(error):
            raise
        raise StoreError(
            f"the wrapped store could not be read ({type(error).__name__}); nothing was changed"
        ) from error


@contextmanager
def _changing() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # foreign code: whatever it raises
        if _says_what_it_is(error):
            raise
        raise OutcomeUnknownError(
            f"the wrapped store failed in a change ({type(error).__name__}), which may or may not"
            " have happened: read again before deciding"
        ) from error


def _says_what_it_is(error: Exception) -> bool:
    """Whether it is kvreplay's own. An absence is not: it can only be the answer to a read."""
    return isinstance(error, KVReplayError) and not isinstance(error, KeyNotFoundError)
