"""The lock among processes that write. Because of it, no writer sleeps in LMDB's own lock.

LMDB's lock is a robust mutex in shared memory. Suppose that a process is killed after the mutex has
woken it, and before it has the mutex, because another process was faster. Then the wake-up is
lost: the mutex no longer says that others sleep, and they sleep until somebody else has to wait.
A ``flock`` is the kernel's. It forgets a dead waiter and wakes all others.
"""

from __future__ import annotations

import os
from pathlib import Path

from kvreplay.backends.file_lock import FileLock
from kvreplay.errors import StoreUnavailableError

__all__ = ["ProcessLock"]


class ProcessLock:
    """A lock on the directory of a store; one thread of this process at a time uses it.

    It keeps the directory open until :meth:`close`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory: FileLock | None = None

    def take(self, *, wait: bool) -> bool:
        """Take the lock; say whether it was taken, as it always is with ``wait``.

        Raises:
            StoreUnavailableError: the directory cannot be locked; nothing was changed.
        """
        try:
            if self._directory is None:
                self._directory = FileLock(str(self._path), os.O_RDONLY)
            self._directory.lock(wait=wait)
        except BlockingIOError:
            return False
        except OSError as error:
            self.close()
            raise StoreUnavailableError(
                f"the directory {self._path} cannot be locked: nothing was changed"
                f" ({os.strerror(error.errno or 0)})"
            ) from error
        return True

    def give_back(self) -> None:
        """Give the lock back; this does nothing if it is not held, and never fails."""
        if self._directory is not None and not self._directory.unlock():
            self._directory = None  # the next taker opens it anew

    def close(self) -> None:
        """Close the directory, which gives the lock back too."""
        if self._directory is not None:
            self._directory.close()
            self._directory = None
