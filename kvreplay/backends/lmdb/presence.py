"""Whether the files at a store's path are those that are open, and their descriptors still ours.

A directory can be deleted, replaced or mounted over while its files are open; whoever goes on with
them writes where nobody will look. And a process can close descriptors that it does not know: a
daemon closes all of them. Their numbers then become those of other files, to which LMDB would
write. So whoever takes the turn to write looks here first.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterable
from typing import Final

import lmdb

from kvreplay.backends.file_lock import identity_of_descriptor

__all__ = ["FolderWatch", "Identity", "Presence", "identity_of_file", "open_descriptors"]

Identity = tuple[int, int]
"""A file's device and inode."""

_FLOCK: Final = "hhqqi4x"  # struct flock of fcntl(2)
_SECOND: Final = 1_000_000_000  # nanoseconds
_SETTLED: Final = _SECOND  # after which a change moves a directory's time, ...
_SOON_SETTLED: Final = _SECOND // 10  # ... where that has fractions of a second
_leaked: Final[list[lmdb.Environment]] = []  # never closed: their numbers are other files' now


def identity_of_file(path: str) -> Identity | None:
    """Return the identity of a file; ``None``: there is none."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def open_descriptors(identities: Iterable[Identity | None]) -> dict[int, Identity]:
    """Return which descriptors of this process stand for these files; none without ``/proc``."""
    wanted, found = set(identities), dict[int, Identity]()
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return found
    for number in map(int, numbers):
        identity = identity_of_descriptor(number)
        if identity is not None and identity in wanted:
            found[number] = identity
    return found


class FolderWatch:
    """Says by one look whether anything in a folder was made, renamed or removed.

    Such a change moves the folder's time of change, which nobody can set: whoever restores a backup
    often sets the other times back. A change soon after another one may not move it: so what was
    seen counts only once that time is some way past.
    """

    __slots__ = ("_folder", "_seen", "_settled")

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._seen: tuple[int, int, int] | None = None
        self._settled: tuple[int, int, int] | None = None

    def is_quiet(self) -> bool:
        """Whether nothing has changed since :meth:`settle`."""
        try:
            status = os.stat(self._folder)
        except OSError:
            self._seen = None
            return False
        self._seen = status.st_dev, status.st_ino, status.st_ctime_ns
        return self._seen == self._settled

    def settle(self) -> None:
        """Note that after the last look all was found in its place."""
        if self._seen is not None:
            changed = self._seen[2]
            if time.time_ns() - changed > (_SOON_SETTLED if changed % _SECOND else _SETTLED):
                self._settled = self._seen


class Presence:
    """An environment's files as they were when it was opened.

    Args:
        places: the path of each file, and its identity; the data file's first.
        descriptors: which of them LMDB has opened.
    """

    __slots__ = ("_descriptors", "_places", "identity")

    def __init__(self, places: dict[str, Identity], descriptors: dict[int, Identity]) -> None:
        self.identity = next(iter(places.values()))
        self._places = tuple(places.items())
        self._descriptors = tuple(descriptors.items())

    @property
    def is_in_place(self) -> bool:
        """Whether the paths lead to these files."""
        try:
            return all(identity_of_file(path) == seen for path, seen in self._places)
        except OSError:
            return False

    @property
    def is_ours(self) -> bool:
        """Whether the descriptors stand for these files."""
        return all(identity_of_descriptor(each, seen) == seen for each, seen in self._descriptors)

    def other_process(self) -> int | None:
        """Return another process that has the environment open; 0: its pid is not to be had.

        Each has a lock on the first byte of LMDB's lock file as long as it has it open. One's own
        descriptors must be asked: to close another one would end one's own lock.
        """
        lock = self._places[-1][1]
        number = next((each for each, seen in self._descriptors if seen == lock), None)
        if number is None:  # without /proc nobody knows
            return 0
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(number, fcntl.F_GETLK, asked))
        return None if kind == fcntl.F_UNLCK else max(pid, 0)

    def shut(self, env: lmdb.Environment) -> bool:
        """Close the environment, or never, if that would close other people's descriptors.

        Returns:
            Whether it is closed, as it may have been before.
        """
        pins: list[int] = []
        for number, seen in self._descriptors:
            identity = identity_of_descriptor(number, seen)
            if identity is None and _pinned(number):
                pins.append(number)
            elif identity != seen:
                _leaked.append(env)
                return False
        env.close()
        for number in pins:
            if _is_null(number):  # the environment was closed before
                os.close(number)
        return True


def _pinned(number: int) -> bool:
    """Give a free number a file, so that nobody else gets it before LMDB closes it."""
    with open(os.devnull, "rb") as null:
        pin = fcntl.fcntl(null.fileno(), fcntl.F_DUPFD_CLOEXEC, number)
    if pin == number:
        return True
    os.close(pin)
    return False


def _is_null(number: int) -> bool:
    return identity_of_descriptor(number) == identity_of_file(os.devnull)
