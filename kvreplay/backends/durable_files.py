"""The file steps that survive a power cut, written once: temporary file, fsync, rename, fsync.

Every function raises a plain ``OSError``; its caller knows what that means.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from io import FileIO
from typing import Final

__all__ = [
    "FILE_MODE",
    "FOLDER_MODE",
    "Folders",
    "fsync_directory",
    "make_directories",
    "replace_file",
    "write_temporary",
]

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700

_MAX_ATTEMPTS: Final = 64
_MAX_KNOWN: Final = 4096


def fsync_directory(path: str) -> None:
    """Make the names in a directory durable: those created, renamed and removed so far."""
    fds: list[int] = []
    opening = map(os.open, (path,), (os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC,))
    closing, closed = map(os.close, fds), list[None]()
    try:
        fds += opening  # opened and closed by operators: no interrupt comes just before or after
        os.fsync(fds[0])
    finally:
        closed += closing


def make_directories(path: str, mode: int = FOLDER_MODE) -> None:
    """Create a directory and its missing parents; fsync each created one and its parent.

    It may be there already. Raises ``NotADirectoryError`` if something else has its name.
    """
    path = os.path.abspath(path)
    top, parts = path, list[str]()
    while not os.path.isdir(top) and os.path.dirname(top) != top:
        top, part = os.path.split(top)
        parts.insert(0, part)
    for created in _make_below(top, parts, mode):
        fsync_directory(created)
        fsync_directory(os.path.dirname(created))


def write_temporary(
    path: str, data: bytes, mode: int = FILE_MODE, *, mtime_ns: int | None = None
) -> None:
    """Write a new file and fsync it; whatever fails, no such file remains.

    Args:
        mode: its permissions, whatever the umask is.
        mtime_ns: its modification time, nanoseconds since the epoch; ``None``: now.
    """
    try:
        with open(path, "xb", buffering=0, opener=partial(os.open, mode=mode)) as file:
            os.fchmod(file.fileno(), mode)
            _write_all(file, data)
            if mtime_ns is not None:
                os.utime(file.fileno(), ns=(mtime_ns, mtime_ns))
            os.fsync(file.fileno())
    except FileExistsError:
        raise  # it is another's
    except BaseException:
        # The first failure is the one to report; a second one here would hide it.
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def replace_file(path: str, data: bytes, mode: int = FILE_MODE) -> None:
    """Create or replace a file durably; after a crash it is the old or the new one as a whole.

    A process killed inside leaves at most a sibling named ``<path>.<32 hex digits>.tmp``.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    write_temporary(temporary, data, mode)
    try:
        os.rename(temporary, path)
    except BaseException:
        # As above; and a rename that did happen has left nothing to unlink.
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_directory(os.path.dirname(path) or ".")


class Folders:
    """Creates folders below a directory that must exist, and never that directory itself.

    Args:
        durable: fsync the parents of a folder before the first name is placed in it, even if
            another process created it: that process may not have reached its fsync yet.
    """

    def __init__(self, top: str, *, durable: bool) -> None:
        self._top = top
        self._durable = durable
        self._known: set[tuple[str, ...]] = set()

    def place(self, parts: tuple[str, ...], make_name: Callable[[str], None]) -> None:
        """Create the folder ``top/parts…``, and call ``make_name(folder)`` to make a name in it.

        ``make_name`` runs again if the folder was removed in between by a process that found
        it empty, so it must raise ``FileNotFoundError`` before it has changed anything.
        """
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                if parts not in self._known:
                    self._make(parts)
                make_name(os.path.join(self._top, *parts))
                return
            except FileNotFoundError:
                self._known.discard(parts)
                if attempt == _MAX_ATTEMPTS:
                    raise

    def _make(self, parts: tuple[str, ...]) -> None:
        _make_below(self._top, parts, FOLDER_MODE)
        if self._durable:
            for depth in reversed(range(len(parts))):
                fsync_directory(os.path.join(self._top, *parts[:depth]))
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()  # it only saves work
        self._known.add(parts)


def _make_below(top: str, parts: Sequence[str], mode: int) -> list[str]:
    created, path = [], top
    for part in parts:
        path = os.path.join(path, part)
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        else:
            os.chmod(path, mode)  # the umask may have taken bits away
            created.append(path)
    return created
