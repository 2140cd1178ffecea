"""The locks of a file-system store: a file for each stripe of entries, and one for creations."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from os import getpid
from threading import get_ident
from typing import Final, TypeVar

from kvreplay.backends._support import LOCK_TIMEOUT, nested_call_error
from kvreplay.backends.durable_files import FILE_MODE
from kvreplay.backends.file_lock import FileLock, lock_within
from kvreplay.store import ThreadBound

__all__ = [
    "NEWEST",
    "STRIPES",
    "flocked",
    "lock_file",
    "make_lock_files",
    "missing_lock_files",
    "read_locked",
]

A = TypeVar("A")
T = TypeVar("T")

STRIPES: Final = 256
"""How many locks there are. It must never change: all processes must agree on an entry's lock."""
NEWEST: Final = "newest"
"""The lock file of those who create an entry; see :mod:`kvreplay.backends.filesystem.creation`."""

# A pipe in the place of a lock file must not make anybody wait.
_READ: Final = os.O_RDONLY | os.O_NONBLOCK
_WRITE: Final = os.O_RDWR | os.O_NONBLOCK

_held: Final[dict[tuple[int, int, str], bool]] = {}
"""The locks that each thread holds, by pid, thread and path; whether only to read."""


def flocked(
    path: str,
    *,
    wait: bool = True,
    limit: float = LOCK_TIMEOUT,
    folder: bool = False,
) -> ThreadBound[None]:
    """Hold a lock file against all other threads and processes; it ends with its holder.

    Args:
        wait: if it is false and the lock is taken, raise ``BlockingIOError``.
        limit: how long to wait, in seconds.
        folder: it is a folder that is locked.

    Raises:
        StoreUnavailableError: others held it all that time, or this thread itself holds it, so that
            it would wait for itself.
        FileNotFoundError: there is no such file, which is made with the store and never removed.
    """
    return ThreadBound(_flocked(path, wait, limit, folder))


def _flocked(path: str, wait: bool, limit: float, folder: bool) -> Generator[None, None, None]:
    own = getpid(), get_ident(), path
    if own in _held:
        if wait:
            raise nested_call_error()
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    # Opened anew each time, so that it excludes the other threads too.
    file = FileLock(path, _READ if folder else _WRITE)
    try:
        _held[own] = False
        try:
            if wait:
                lock_within(file, f"the lock {path}", limit, bound=limit)
            else:
                file.lock()
            yield
        finally:
            del _held[own]
    finally:
        try:
            _give_back(file)
        except BaseException:  # an interrupt
            _give_back(file)
            raise


def read_locked(path: str, read: Callable[[A], T], of: A) -> T:
    """Return ``read(of)``, called while a lock file is locked for reading, without waiting.

    Raises:
        BlockingIOError: somebody holds the lock to change something; nothing was read.
    """
    own = getpid(), get_ident(), path
    outer = _held.get(own)
    if outer is not None:  # a signal handler that reads, in a call of its own thread
        if not outer:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return read(of)
    file = FileLock(path, _READ)
    try:
        _held[own] = True  # first: a signal handler may come before the lock's call has returned
        try:
            file.lock(shared=True)
            return read(of)
        finally:
            del _held[own]
    finally:
        try:
            _give_back(file)
        except BaseException:  # an interrupt
            _give_back(file)
            raise


def _give_back(file: FileLock) -> None:
    if file.unlock():
        file.close(brief=True)


def lock_file(sidecar: str, stripe: int) -> str:
    """Return the path of a stripe's lock file."""
    return f"{sidecar}/locks/{stripe:02x}"


def make_lock_files(sidecar: str) -> None:
    """Make those that are missing, so that no later call needs room on the disk to take a lock."""
    for name in _names():
        _make(os.path.join(sidecar, "locks", name))


def missing_lock_files(sidecar: str) -> bool:
    """Whether a store's lock files are not all there."""
    return not _names().issubset(os.listdir(os.path.join(sidecar, "locks")))


def _names() -> set[str]:
    return {NEWEST, *(f"{stripe:02x}" for stripe in range(STRIPES))}


def _make(path: str) -> None:
    try:
        file = FileLock(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE)
    except FileExistsError:
        return
    try:
        os.chmod(path, FILE_MODE)  # the umask may have taken bits away
        file.close()
    except BaseException:  # an interrupt
        file.close()
        raise
