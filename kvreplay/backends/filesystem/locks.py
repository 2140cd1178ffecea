"""The locks of a file-system store: one file for each stripe of entries."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from kvreplay.backends.durable_files import FILE_MODE
from kvreplay.backends.file_lock import FileLock

__all__ = ["STRIPES", "flocked", "lock_file", "make_lock_files"]

STRIPES: Final = 256
"""How many locks there are. It must never change: all processes must agree on an entry's lock."""


@contextlib.contextmanager
def flocked(path: str, *, wait: bool = True, shared: bool = False) -> Iterator[None]:
    """Hold a lock file against all other threads and processes; it ends with its holder.

    With ``wait=False`` it raises ``BlockingIOError`` if the lock is taken. A ``shared`` lock
    excludes only locks that are not shared.
    """
    # Opened anew each time, so that it excludes the other threads too.
    file = _open(path, os.O_RDONLY if shared else os.O_RDWR)
    try:
        file.lock(shared=shared, wait=wait)
        try:
            yield
        finally:
            file.unlock()
    finally:
        file.close()


def lock_file(sidecar: str, stripe: int) -> str:
    """Return the path of a stripe's lock file."""
    return os.path.join(sidecar, "locks", f"{stripe:02x}")


def make_lock_files(sidecar: str) -> None:
    """Make them all, so that no later call needs room on the disk to take a lock."""
    for stripe in range(STRIPES):
        _open(lock_file(sidecar, stripe), os.O_RDWR).close()


def _open(path: str, flags: int) -> FileLock:
    try:
        return FileLock(path, flags)
    except FileNotFoundError:
        file = FileLock(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        os.chmod(path, FILE_MODE)  # the umask may have taken bits away
        return file
