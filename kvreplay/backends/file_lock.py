"""Files that are kept open to be locked with ``flock``. A forked child must not keep them.

A child has a copy of each of its parent's descriptors, and a copy keeps a lock alive even if the
parent is dead. So a child closes them at once. After a fork that runs no hook of Python's, it
closes them before it opens a lock file of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from os import getpid
from typing import Final

from kvreplay.store import ForkSafeLock

__all__ = ["FileLock"]


class FileLock:
    """An open file that can be locked against all threads and processes that open it anew.

    It owns its descriptor: when the object is deleted, the file is closed and the lock ends.

    Args:
        path: a file or a directory.
        flags: as for ``os.open``; close-on-exec is added.
        mode: the permissions of a file that is created.
    """

    __slots__ = ("_fd", "_pid")

    def __init__(self, path: str, flags: int, mode: int = 0o600) -> None:
        self._fd: int | None = None
        self._pid = getpid()
        if _opened.pid != self._pid:
            _close_inherited()
        self._fd = os.open(path, flags | os.O_CLOEXEC, mode)
        _opened.files[self._fd] = path

    def __del__(self) -> None:
        self.close()

    def lock(self, *, shared: bool = False, wait: bool = True) -> None:
        """Wait for the lock, without a time limit; with ``wait=False`` raise ``BlockingIOError``.

        A ``shared`` lock excludes only locks that are not shared.
        """
        assert self._fd is not None
        fcntl.flock(
            self._fd,
            (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB),
        )

    def unlock(self) -> bool:
        """Give the lock back, even if a child has a copy of the descriptor; it never fails.

        A failure here must not hide that the work under the lock was done. Then the file is closed,
        which ends the lock too.

        Returns:
            Whether the file is still open here.
        """
        if self._fd is not None and self._pid == getpid():
            try:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            except OSError:
                self.close()
        return self._fd is not None

    def close(self) -> None:
        """Close the file; a second time, and in a forked child, this does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None and self._pid == getpid():
            _opened.files.pop(fd, None)
            with contextlib.suppress(OSError):  # Linux closes it, whatever it reports
                os.close(fd)


class _Opened:
    """The open lock files of one process: the path of each descriptor."""

    def __init__(self) -> None:
        self.pid = getpid()
        self.files: dict[int, str] = {}


_opened = _Opened()
_changing: Final = ForkSafeLock()


def _close_inherited() -> None:
    global _opened
    with _changing:
        if _opened.pid == getpid():
            return
        inherited, _opened = _opened, _Opened()
    for fd, path in inherited.files.items():
        with contextlib.suppress(OSError):
            # Not if it has been closed, and its number stands for another file by now.
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                os.close(fd)


os.register_at_fork(after_in_child=_close_inherited)
