"""What survives a fork, and what belongs to one thread or process; for those who write a store."""

from __future__ import annotations

import _thread
import mmap
import threading
from contextlib import AbstractContextManager
from os import getpid
from typing import Any, Final, Generic, TypeAlias, TypeVar

from kvreplay.errors import StoreError

__all__ = ["ForkSafeLock", "ProcessMark", "ThreadBound", "process_mark"]

T = TypeVar("T")


class ForkSafeLock:
    """A re-entrant mutex of which every process has its own.

    So a forked child finds it free, whichever thread of its parent held it, and even if the fork
    ran none of Python's hooks. What the lock guards may then be half-way through another thread's
    change: order the steps of a change so that what it guards is sound after each of them.

    Use it as ``with lock:``. An interrupt leaves it free: the block is entered and left by single
    C calls, between which CPython does not look for signals.
    """

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[int, Any] = {}

    def _own(self) -> Any:
        pid = getpid()
        lock = self._locks.get(pid)
        # setdefault is one step, so that all threads of a new process get the same lock.
        return self._locks.setdefault(pid, _thread.RLock()) if lock is None else lock

    # The ``with`` statement looks up both of these, and only then calls what they return: the
    # C methods of this process's lock.

    @property
    def __enter__(self) -> Any:
        return self._own().__enter__

    @property
    def __exit__(self) -> Any:
        return self._own().__exit__

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it, as :meth:`threading.Lock.acquire` does; say whether it was taken."""
        return bool(self._own().acquire(blocking, timeout))

    def release(self) -> None:
        """Give it back."""
        self._own().release()

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds it."""
        return bool(self._own()._is_owned())


ProcessMark: TypeAlias = "mmap.mmap | _PidMark"
_MADV_WIPEONFORK: Final = 18  # madvise(2), which Python gives no name


def process_mark() -> ProcessMark:
    """Return a mark whose first item is true in this process, and false in a forked child.

    It is a page that the kernel wipes in the child, at any kind of fork (Linux 4.14). To look at it
    costs a tenth of what ``getpid()`` does, which is a system call. Elsewhere it compares the pid.
    """
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError, AttributeError):
        return _PidMark()
    page[0] = 1
    return page


class _PidMark:
    def __init__(self) -> None:
        self._pid = getpid()

    def __getitem__(self, index: int) -> bool:
        return self._pid == getpid()


class ThreadBound(Generic[T]):
    """A block that only the thread that began it can end; if another one tries, it stays open."""

    __slots__ = ("_block", "_thread")

    def __init__(self, block: AbstractContextManager[T]) -> None:
        self._block = block
        self._thread: int | None = None

    def __enter__(self) -> T:
        entered = self._block.__enter__()
        self._thread = threading.get_ident()
        return entered

    def __exit__(self, *exc: Any) -> bool | None:
        if self._thread != threading.get_ident():
            raise StoreError(
                "only the thread that began a transaction can end it; it is still open there, and"
                " nothing was changed"
            )
        return self._block.__exit__(*exc)
