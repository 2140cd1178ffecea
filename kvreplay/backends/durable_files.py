"""The file steps that survive a power cut, written once: temporary file, fsync, rename, fsync.

Every function raises a plain ``OSError``; its caller knows what that means.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final

from kvreplay.store import ForkSafeLock

__all__ = [
    "FILE_MODE",
    "FOLDER_MODE",
    "Folders",
    "fsync_directory",
    "is_noted",
    "make_directories",
    "note",
    "read_regular_file",
    "replace_file",
    "unique",
    "write_temporary",
]

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700

_MAX_ATTEMPTS: Final = 64
_MAX_KNOWN: Final = 4096
_FLUSHES: Final = 64  # how many folders are flushed at once, at most
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# A pipe or a device must not make its reader wait, or become its terminal.
_OPEN_FILE: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_PART: Final = 1 << 20
_DURABLE_PLACE: Final = "user.kvreplay.durable"


def fsync_directory(path: str) -> None:
    """Make the names in a directory durable: those created, renamed and removed so far."""
    fds: list[int] = []
    opening = map(os.open, (path,), (_OPEN_FOLDER,))
    closing, closed = map(os.close, fds), list[None]()
    try:
        fds += opening  # opened and closed by operators: no interrupt comes just before or after
        os.fsync(fds[0])
    finally:
        closed += closing


def read_regular_file(path: str, look: Callable[[os.stat_result], None] | None = None) -> bytes:
    """Return what a file holds; a link is followed. It never waits for somebody who writes there.

    Args:
        look: called with the file's status while it is open, so that no other file can have its
            number.

    Raises:
        OSError: it cannot be read. If something else than a regular file is there (a FIFO, a
            socket, a device, a folder, a link to nothing), ``errno`` is ``EISDIR`` or ``ENXIO``.
    """
    fds: list[int] = []
    opening = map(os.open, (path,), (_OPEN_FILE,))
    closing, closed = map(os.close, fds), list[None]()
    try:
        fds += opening  # by operators, as in fsync_directory
        found = os.fstat(fds[0])
        if not stat.S_ISREG(found.st_mode):
            code = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.ENXIO
            raise OSError(code, os.strerror(code), path)
        if look is not None:
            look(found)
        data = os.read(fds[0], found.st_size + 1)
        return data if len(data) == found.st_size else data + _rest_of(fds[0])
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), path) from error
        raise
    finally:
        closed += closing


def _rest_of(fd: int) -> bytes:
    parts = list[bytes]()
    while part := os.read(fd, _PART):
        parts.append(part)
    return b"".join(parts)


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
    fds: list[int] = []
    opening = map(os.open, (path,), (_NEW_FILE,), (mode,))
    closing, closed = map(os.close, fds), list[None]()
    try:
        try:
            fds += opening  # by operators, as in fsync_directory
            os.fchmod(fds[0], mode)
            _write_all(fds[0], data)
            if mtime_ns is not None:
                os.utime(fds[0], ns=(mtime_ns, mtime_ns))
            os.fsync(fds[0])
        finally:
            closed += closing
    except FileExistsError:
        raise  # it is another's
    except BaseException:
        # The first failure is the one to report; a second one here would hide it.
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def unique() -> str:
    """Return a name that nobody else has: 32 hex digits."""
    return os.urandom(16).hex()


def replace_file(path: str, data: bytes, mode: int = FILE_MODE) -> None:
    """Create or replace a file durably; after a crash it is the old or the new one as a whole.

    A process killed inside leaves at most a sibling named ``<path>.<32 hex digits>.tmp``.
    """
    temporary = f"{path}.{unique()}.tmp"
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
    """The folders below a directory that must exist: made for a name, removed when they are empty.

    Others may remove a folder and make it again at any time. So a folder whose place below ``top``
    is durable says so itself, by an extended attribute; a new folder has none. Whoever has put a
    name into a folder looks at that very folder, and makes its place durable if need be. Where the
    file system has no such attributes that is done each time.

    Args:
        durable: what ``confirm`` has confirmed survives a power cut.
    """

    def __init__(self, top: str, *, durable: bool) -> None:
        self._top = top
        self._durable = durable
        self._known: set[tuple[str, ...]] = set()
        self._numbers = count(1)  # of flushes and of those who want one, in the order of time
        self._flushing = [ForkSafeLock() for _ in range(_FLUSHES)]
        self._flushed: dict[tuple[str, ...], tuple[int, int]] = {}

    def place(self, parts: tuple[str, ...], make_name: Callable[[str], None]) -> None:
        """Create the folder ``top/parts…``, and call ``make_name(folder)`` to make a name in it.

        ``make_name`` runs again if the folder was removed in between by somebody who found it
        empty, so it must raise ``FileNotFoundError`` before it has changed anything.
        """
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                if parts not in self._known:
                    self._make(parts)
                make_name(self._path(parts))
                return
            except FileNotFoundError:
                self._known.discard(parts)
                if attempt == _MAX_ATTEMPTS:
                    raise

    def confirm(self, parts: tuple[str, ...]) -> None:
        """Make durable which names are in the folder, and where the folder is.

        If the folder is gone by now, then so is every name in it: that is made durable instead.
        Threads share a flush: one that began after a change was made is enough for it.
        """
        if self._durable:
            changed = next(self._numbers)
            with self._flushing[hash(parts) % _FLUSHES]:
                began, failed = self._flushed.get(parts, (0, 0))
                if began < changed:
                    self._flush(parts)
                elif failed:
                    # The kernel tells of a failure once: a second flush might seem to go well.
                    raise OSError(failed, os.strerror(failed))

    def _flush(self, parts: tuple[str, ...]) -> None:
        if len(self._flushed) >= _MAX_KNOWN:
            self._flushed.clear()  # it only saves work
        began = next(self._numbers)
        try:
            self._fsync_names(parts)
        except OSError as error:
            self._flushed[parts] = began, error.errno or errno.EIO
            raise
        self._flushed[parts] = began, 0

    def _fsync_names(self, parts: tuple[str, ...]) -> None:
        try:
            self._fsync(parts, names=True)
        except FileNotFoundError:
            if not parts:
                raise
            self._fsync_above(parts)

    def remove_empty(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Remove the folder if it is empty; those above it stay.

        It reports no failure: an empty folder harms nobody.

        Returns:
            The innermost folder that is left. Confirm it to make the removal durable, and with it
            the removal of the names that were in the folder.
        """
        try:
            os.rmdir(self._path(parts))
        except FileNotFoundError:
            pass  # somebody else was faster
        except OSError:
            return parts
        self._known.discard(parts)
        return parts[:-1]

    def _path(self, parts: tuple[str, ...]) -> str:
        return "/".join((self._top, *parts))

    def _make(self, parts: tuple[str, ...]) -> None:
        _make_below(self._top, parts, FOLDER_MODE)
        if self._durable:
            self._fsync(parts, names=False)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()  # it only saves work
        self._known.add(parts)

    def _fsync(self, parts: tuple[str, ...], *, names: bool) -> None:
        fds: list[int] = []
        opening = map(os.open, (self._path(parts),), (_OPEN_FOLDER,))
        closing, closed = map(os.close, fds), list[None]()
        try:
            fds += opening  # by operators, as in fsync_directory
            if names:
                os.fsync(fds[0])
            if parts and not is_noted(fds[0], _DURABLE_PLACE):
                self._fsync_above(parts)
                note(fds[0], _DURABLE_PLACE)
        finally:
            closed += closing

    def _fsync_above(self, parts: tuple[str, ...]) -> None:
        for depth in reversed(range(len(parts))):
            try:
                fsync_directory(self._path(parts[:depth]))
            except FileNotFoundError:  # somebody has removed it: the one above knows
                if depth == 0:
                    raise


def is_noted(folder: str | int, what: str) -> bool:
    """Whether this very folder has a note, which is an extended attribute; a copy of it has none.

    Args:
        folder: its path, or an open descriptor.
    """
    try:
        return os.getxattr(folder, what) == _own_number(folder)
    except (OSError, AttributeError):
        return False  # the file system, or the whole system, has no such attributes


def note(folder: str | int, what: str) -> None:
    """Make a note on a folder, if its file system can; a power cut may take it away."""
    with contextlib.suppress(OSError, AttributeError):
        os.setxattr(folder, what, _own_number(folder))


def _own_number(folder: str | int) -> bytes:
    return str(os.stat(folder).st_ino).encode("ascii")


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
