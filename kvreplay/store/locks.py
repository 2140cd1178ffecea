"""Locks and blocks that keep to their thread, and survive a fork; for those who write a store."""

from __future__ import annotations

import _thread
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


class ForkSafeLock(_thread.RLock):  # type: ignore[misc]  # final in the stubs only
    """A mutex that a forked child finds free, unless the forking thread itself holds it.

    Taking and leaving it in a ``with`` is one step of the interpreter's own, between which no
    interrupt comes: so a Ctrl-C leaves it free. It is held by one thread at a time, for one block.

    Args:
        brief: it is only ever held for moments, so a fork waits for it, and in the child what
            it guards is whole.
    """

    def __init__(self, *, brief: bool = False) -> None:
        super().__init__()
        self.brief = brief
        _fork_safe_locks[id(self)] = self

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds it."""
        return bool(self._is_owned())  # type: ignore[attr-defined]


_fork_safe_locks: weakref.WeakValueDictionary[int, ForkSafeLock] = weakref.WeakValueDictionary()
_held_for_fork: dict[int, list[ForkSafeLock]] = {}  # by the forking thread


def _before_fork() -> None:
    me = threading.get_ident()
    held = _held_for_fork[me] = []
    for lock in [found() for found in _fork_safe_locks.valuerefs()]:
        if lock is None or not lock.brief or lock.is_mine:
            continue
        if lock.acquire(timeout=FORK_PATIENCE):
            held.append(lock)


def _after_fork() -> None:
    for lock in _held_for_fork.pop(threading.get_ident()):
        lock.release()


def _after_fork_in_child() -> None:
    _after_fork()
    _held_for_fork.clear()
    for lock in list(_fork_safe_locks.values()):
        if not lock.is_mine:
            lock._at_fork_reinit()  # type: ignore[attr-defined]


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)
