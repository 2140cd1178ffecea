"""The locks of a file-system store: one file for each stripe of entries."""

from __future__ import annotations

import os
from collections.abc import Generator
from os import getpid
from threading import get_ident
from typing import Final

from kvreplay.backends._support import nested_call_error
from kvreplay.backends.durable_files import FILE_MODE
from kvreplay.backends.file_lock import FileLock
from kvreplay.store import ThreadBound

__all__ = ["STRIPES", "flocked", "lock_file", "make_lock_files"]

STRIPES: Final = 256
"""How many locks there are. It must never change: all processes must agree on an entry's lock."""

_held: Final[dict[tuple[int, int, str], bool]] = {}
"""The locks that each thread holds, by pid, thread and path; whether it shares them."""


def flocked(path: str, *, wait: bool = True, shared: bool = False) -> ThreadBound[None]:
    """Hold a lock file against all other threads and processes; it ends with its holder.

    With ``wait=False`` it raises ``BlockingIOError`` if the lock is taken. A ``shared`` lock
    excludes only locks that are not shared.

    Raises:
        StoreUnavailableError: this thread holds it, so that it would wait for itself.
    """
    return ThreadBound(_flocked(path, wait, shared))


def _flocked(path: str, wait: bool, shared: bool) -> Generator[None, None, None]:
    own = getpid(), get_ident(), path
    outer = _held.get(own)
    if outer is not None and wait and not (outer and shared):
        raise nested_call_error()
    # Opened anew each time, so that it excludes the other threads too.
    file = _open(path, os.O_RDONLY if shared else os.O_RDWR)
    try:
        file.lock(shared=shared, wait=wait)
        if outer is not None:
            yield
            return
        _held[own] = shared
        try:
            yield
        finally:
            del _held[own]
    finally:
        try:
            file.unlock()
            file.close()
        except BaseException:  # an interrupt
            file.unlock()
            file.close()
            raise


def lock_file(sidecar: str, stripe: int) -> str:
    """Return the path of a stripe's lock file."""
    return os.path.join(sidecar, "locks", f"{stripe:02x}")


def make_lock_files(sidecar: str) -> None:
    """Make them all, so that no later call needs room on the disk to take a lock."""
    for stripe in range(STRIPES):
        _make_lock_file(lock_file(sidecar, stripe))


def _make_lock_file(path: str) -> None:
    file = _open(path, os.O_RDWR)
    try:
        file.close()
    except BaseException:  # an interrupt
        file.close()
        raise


def _open(path: str, flags: int) -> FileLock:
    try:
        return FileLock(path, flags)
    except FileNotFoundError:
        file = FileLock(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            os.chmod(path, FILE_MODE)  # the umask may have taken bits away
        except BaseException:
            file.close()
            raise
        return file
