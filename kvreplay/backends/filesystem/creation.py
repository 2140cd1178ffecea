"""When the entries of a file-system store were created: the order of its pages.

An entry's creation time is the modification time of its file, as in LDK's ``FilesystemStore`` v2;
an update keeps it. Here no two are equal, and each is later than all before it: the clock's time,
or a little more than the last one that was given. That one is the modification time of the file
``locks/newest``, whose ``flock`` orders all who create. So the order is exact over threads,
processes and restarts, even if the clock is set back or the newest entry is removed.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Final

from kvreplay.backends.file_lock import too_long
from kvreplay.backends.filesystem.locks import NEWEST, flocked
from kvreplay.store import ForkSafeLock

__all__ = ["Creations", "creation_time"]

# In nanoseconds. A file system may round its times: then the first step that shows is taken.
_STEPS: Final = (1, 100, 1000, 1_000_000, 1_000_000_000, 2_000_000_000)


class Creations:
    """Gives creation times. Threads queue for one: only processes ask the kernel again and again.

    Args:
        sidecar: the folder beside the root.
        lock_timeout: how long to wait for others that create, in seconds.
    """

    def __init__(self, sidecar: str, lock_timeout: float) -> None:
        self._path = f"{sidecar}/locks/{NEWEST}"
        self._lock_timeout = lock_timeout
        self._queue = ForkSafeLock()

    def next(self) -> int:
        """Return a time for a new entry, in nanoseconds since the epoch: later than all before."""
        until = time.monotonic() + self._lock_timeout
        queue = self._queue.own()
        try:
            if not queue.acquire(timeout=self._lock_timeout):
                raise too_long(f"the turn of {self._path}", self._lock_timeout)
            with flocked(self._path, limit=max(until - time.monotonic(), 0.0)):
                return _advance(self._path)
        finally:
            try:
                queue.release()
            except RuntimeError:
                pass  # it was not taken

    def go_on_after(self, last: int) -> None:
        """Let each time that is given be later than this one, in a store that nobody uses yet."""
        os.utime(self._path, ns=(last, last))


def _advance(path: str) -> int:
    last = given = os.stat(path).st_mtime_ns
    now = time.time_ns()
    for step in _STEPS:
        wanted = max(now, last + step)
        os.utime(path, ns=(wanted, wanted))
        given = os.stat(path).st_mtime_ns
        if given > last:
            break
    return given  # else the file system knows no later time: only keys order what comes now


def creation_time(path: str) -> int | None:
    """Return the creation time of the entry with this file; ``None`` if there is no entry."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):  # a link that leads nowhere is no entry
            return None
        raise
