"""Locks and blocks that keep to their thread, and survive a fork; for those who write a store."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic, TypeVar

from kvreplay.errors import StoreError

__all__ = ["FORK_PATIENCE", "ForkSafeLock", "ThreadBound"]

T = TypeVar("T")

FORK_PATIENCE = 10.0
"""Seconds that a fork waits, at most, for what other threads are in the middle of."""


class ThreadBound(Generic[T]):
    """A block that only the thread that began it can end; for any other it stays open."""

    __slots__ = ("_block", "_thread")

    def __init__(self, block: AbstractContextManager[T]) -> None:
        self._block = block
        self._thread: int | None = None

    def __enter__(self) -> T:
        entered = self._block.__enter__()
        self._thread = threading.get_ident()
        return entered

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if self._thread != threading.get_ident():
            raise StoreError(
                "a transaction ends on the thread that began it, and there it is still open;"
                " nothing was changed"
            )
        return self._block.__exit__(exc_type, exc, traceback)


class ForkSafeLock:
    """A mutex that a forked child finds free, unless the forking thread itself holds it.

    Args:
        brief: it is only ever held for moments, so a fork waits for it, and in the child what
            it guards is whole.
    """

    __slots__ = ("__weakref__", "_brief", "_lock", "_owner")

    def __init__(self, *, brief: bool = False) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._brief = brief
        _fork_safe_locks[id(self)] = self

    def acquire(self, timeout: float = -1) -> bool:
        """Take it; after ``timeout`` seconds (negative: never) give up and return ``False``."""
        if not self._lock.acquire(timeout=timeout):
            return False
        self._owner = threading.get_ident()
        return True

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds it."""
        return self._owner == threading.get_ident()

    def release(self) -> None:
        """Let go of it."""
        self._owner = None
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(self, *exc: object) -> None:
        self._owner = None
        self._lock.release()


_fork_safe_locks: weakref.WeakValueDictionary[int, ForkSafeLock] = weakref.WeakValueDictionary()
_held_for_fork: dict[int, list[ForkSafeLock]] = {}  # by the forking thread


def _before_fork() -> None:
    me = threading.get_ident()
    held = _held_for_fork[me] = []
    for lock in [found() for found in _fork_safe_locks.valuerefs()]:
        if lock is not None and lock._brief and not lock.is_mine and lock.acquire(FORK_PATIENCE):
            held.append(lock)


def _after_fork() -> None:
    for lock in _held_for_fork.pop(threading.get_ident()):
        lock.release()


def _after_fork_in_child() -> None:
    _after_fork()
    _held_for_fork.clear()
    for lock in list(_fork_safe_locks.values()):
        if not lock.is_mine:
            lock._lock, lock._owner = threading.Lock(), None


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)
