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

    It owns its descriptor: when the object is deleted, the file is closed and the lock ends. It
    cannot be interrupted between the two, nor closed twice.

    Args:
        path: a file or a directory.
        flags: as for ``os.open``; close-on-exec is added.
        mode: the permissions of a file that is created.
    """

    __slots__ = ("_fds", "_pid")

    def __init__(self, path: str, flags: int, mode: int = 0o600) -> None:
        self._fds: list[int] = []  # at most one
        self._pid = getpid()
        if _opened.pid != self._pid:
            _close_inherited()
        opening = map(os.open, (path,), (flags | os.O_CLOEXEC,), (mode,))
        # By an operator: no interrupt comes between the call and the note of its descriptor.
        self._fds += opening
        _opened.files[self._fds[0]] = path

    def __del__(self) -> None:
        self.close()

    def lock(self, *, shared: bool = False, wait: bool = True) -> None:
        """Wait for the lock, without a time limit; with ``wait=False`` raise ``BlockingIOError``.

        A ``shared`` lock excludes only locks that are not shared.
        """
        fcntl.flock(
            self._fds[0],
            (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB),
        )

    def unlock(self) -> bool:
        """Give the lock back, even if a child has a copy of the descriptor; it never fails.

        A failure here must not hide that the work under the lock was done. Then the file is closed,
        which ends the lock too.

        Returns:
            Whether the file is still open here.
        """
        if self._fds and self._pid == getpid():
            try:
                fcntl.flock(self._fds[0], fcntl.LOCK_UN)
            except OSError:
                self.close()
        return bool(self._fds)

    def close(self) -> None:
        """Close the file; a second time, and in a forked child, this does nothing."""
        if self._fds and self._pid == getpid():
            _opened.files.pop(self._fds[0], None)
            closing, closed = map(os.close, map(self._fds.pop, (0,))), list[None]()
            try:
                closed += closing  # an operator again: a closed number may soon be another's
            except OSError:
                pass  # Linux closes it, whatever it reports


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
