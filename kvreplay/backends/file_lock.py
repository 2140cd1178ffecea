"""Files that are kept open to be locked with ``flock``. A forked child must not keep them.

A child has a copy of each of its parent's descriptors, and a copy keeps a lock alive even if the
parent is dead. So a child closes them at once. After a fork that runs no hook of Python's, it
closes them before it opens a lock file of its own.

Nobody waits without a bound: the holder may be stopped. ``flock`` knows no time limit, so who waits
asks again and again, with pauses that grow. Alone that would be unfair: a holder that takes the
lock again at once is always faster. So the first that waits holds a record lock on a byte of the
file, the *line*. Who comes to a free lock while another one stands in the line lets it go first.
The line is a courtesy: whoever has waited for a moment behind it takes the lock, since a process
can be stopped in the line too.

A descriptor can be closed by somebody else, as daemons close all that they have, and its number may
be another file's by now. So a file is looked at before it is unlocked or closed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from os import getpid
from typing import Final

from kvreplay.errors import StoreUnavailableError
from kvreplay.store import ForkSafeLock
from kvreplay.store.locks import require_room, this_process

__all__ = ["FileLock", "identity_of_descriptor", "lock_within", "too_long"]

_SHARE: Final = 1 / 16  # of the time waited so far: the next pause
_SHORTEST: Final = 0.00005  # seconds
_LONGEST: Final = 0.01
_COURTESY: Final = 0.05  # seconds that one waits behind the line, at most
_PATIENCE: Final = 3  # times that the line did not move
_IMPATIENCE: Final = 0.5  # seconds without courtesy after that
_WARN_AFTER: Final = 0.25  # of the bound

_FLOCK: Final = "hhqqi4x"  # struct flock of fcntl(2)
_KIND: Final = struct.calcsize("h")  # its first field
_LINE: Final = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_LEFT: Final = struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)


class FileLock:
    """An open file that can be locked against all threads and processes that open it anew.

    It owns its descriptor: when the object is deleted, the file is closed and the lock ends. It
    cannot be interrupted between the two, nor closed twice.

    Args:
        path: a file or a directory.
        flags: as for ``os.open``; close-on-exec is added.
        mode: the permissions of a file that is created.
    """

    __slots__ = ("_fds", "_identity", "_overtaken", "_owner", "_rude_until", "path")

    def __init__(self, path: str, flags: int, mode: int = 0o600) -> None:
        self.path = path
        self._fds: list[int] = []  # at most one
        self._identity: tuple[int, int] | None = None  # unknown until it was looked at
        self._rude_until = 0.0  # monotonic: until then it does not stand behind the line
        self._overtaken = 0  # how often, one after the other, it did so in vain
        self._owner = this_process()
        require_room()  # to unlock and to close it
        if _opened.pid != getpid():
            _close_inherited()
        self.__class__ = _OpenFileLock
        opening = map(os.open, (path,), (flags | os.O_CLOEXEC,), (mode,))
        try:
            # By an operator: no interrupt comes between the call and the note of its descriptor.
            self._fds += opening
            self._identity = identity_of_descriptor(self._fds[0])
            if self._identity is not None:
                _opened.files[self._fds[0]] = self._identity
        except BaseException:  # there is no file, or an interrupt's traceback would keep it open
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether its descriptor still stands for the file that was opened."""
        try:
            seen = identity_of_descriptor(self._fds[0], self._identity)
        except IndexError:
            return False
        return seen is not None and self._identity in (seen, None)

    @property
    def is_in_place(self) -> bool:
        """Whether its path still leads to the file that was opened."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def lock(self, *, shared: bool = False) -> None:
        """Take the lock if it is free, else raise ``BlockingIOError``.

        A ``shared`` lock excludes only locks that are not shared.
        """
        fcntl.flock(self._fds[0], (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    def try_lock(self) -> bool:
        """Take the lock if it is free and nobody stands in the line; say whether it was taken."""
        return not self._others_wait() and self._try(False)

    def lock_within(self, seconds: float, *, shared: bool = False) -> bool:
        """Wait for the lock, at most so long; say whether it was taken.

        Raises:
            OSError: the file cannot be locked.
        """
        if (shared or not self._others_wait()) and self._try(shared):
            return True
        began = time.monotonic()
        try:
            return self._wait(began, seconds, shared)
        finally:
            try:
                fcntl.fcntl(self._fds[0], fcntl.F_OFD_SETLK, _LEFT)  # it leaves the line
            except (OSError, AttributeError, IndexError):
                pass  # there is no line

    def _wait(self, began: float, seconds: float, shared: bool) -> bool:
        first = shared
        while True:
            waited = time.monotonic() - began
            first = first or self._enter_line()
            polite = _COURTESY if began >= self._rude_until else 0.0
            if (first or waited >= min(polite, seconds)) and self._try(shared):
                if first:
                    self._overtaken = 0
                else:
                    self._overtaken += 1
                    if self._overtaken >= _PATIENCE:
                        self._rude_until = time.monotonic() + _IMPATIENCE
                return True
            if waited >= seconds:
                return False
            pause = min(max(waited * _SHARE, _SHORTEST), _LONGEST, seconds - waited)
            time.sleep(pause)

    def _try(self, shared: bool) -> bool:
        try:
            self.lock(shared=shared)
        except BlockingIOError:
            return False
        return True

    # The line. A file system that knows no such locks, and a file that is open for reading only,
    # have none: then chance decides.

    def _others_wait(self) -> bool:
        try:
            found = fcntl.fcntl(self._fds[0], fcntl.F_OFD_GETLK, _LINE)
        except (OSError, AttributeError):
            return False
        if found[:_KIND] == _LEFT[:_KIND]:
            return False
        return time.monotonic() >= self._rude_until

    def _enter_line(self) -> bool:
        try:
            fcntl.fcntl(self._fds[0], fcntl.F_OFD_SETLK, _LINE)
        except BlockingIOError:
            return False
        except (OSError, AttributeError):
            pass
        return True

    def holder(self) -> int | None:
        """Return the pid of the process that has taken the lock, if ``/proc/locks`` tells it.

        It is for messages: another one may have it a moment later.
        """
        if self._identity is None:
            return None
        device, inode = self._identity
        place = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
        try:
            with open("/proc/locks", encoding="ascii") as locks:
                fields = [line.split() for line in locks]
        except (OSError, UnicodeDecodeError):
            return None
        for _, kind, *rest in fields:
            if kind == "FLOCK" and len(rest) >= 4 and rest[3] == place:
                pid = int(rest[2])
                if pid > 0 and os.path.exists(f"/proc/{pid}"):  # else it is another namespace's
                    return pid
        return None

    def unlock(self, *, brief: bool = False) -> bool:
        """Give the lock back, even if a child has a copy of the descriptor; it never fails.

        A failure here must not hide that the work under the lock was done. Then the file is closed,
        which ends the lock too.

        Args:
            brief: it was held for so short a time that nobody can have closed the file meanwhile.

        Returns:
            Whether the file is still open here.
        """
        if self._fds and self._owner[0]:
            try:
                if brief or self.is_open:
                    fcntl.flock(self._fds[0], fcntl.LOCK_UN)
                else:
                    self.close()
            except OSError:
                self.close()
        return bool(self._fds)

    def close(self, *, brief: bool = False) -> None:
        """Close the file; a second time, and in a forked child, this does nothing.

        Args:
            brief: it was seen to be open so short a time ago that nobody can have closed it since.
        """
        if self._fds and self._owner[0]:
            if brief or self.is_open:
                _opened.files.pop(self._fds[0], None)
                closing, closed = map(os.close, map(self._fds.pop, (0,))), list[None]()
                try:
                    closed += closing  # an operator again: a closed number may soon be another's
                except OSError:
                    pass  # Linux closes it, whatever it reports
            else:  # somebody else has closed it
                # It is not noted if it could not even be looked at when it was opened.
                if _opened.files.get(self._fds[0], 0) == self._identity:
                    del _opened.files[self._fds[0]]
                self._fds.clear()
        self.__class__ = FileLock


class _OpenFileLock(FileLock):
    """A file lock until it is closed. Only so long does it have a finalizer.

    Python can only print an interrupt that comes in a finalizer: it is lost. So none may run at the
    end of every call that has locked a file.
    """

    __slots__ = ()

    def __del__(self) -> None:
        self.close()


def lock_within(
    file: FileLock, what: str, seconds: float, *, bound: float, shared: bool = False
) -> None:
    """Lock a file, or refuse after so many seconds; before that, a warning goes to the log.

    Args:
        what: what is waited for: "the turn to write to …".
        bound: the option ``lock_timeout``, of which ``seconds`` are left; for the message.

    Raises:
        StoreUnavailableError: others have held it all the time; nothing was changed.
        OSError: the file cannot be locked.
    """
    early = min(seconds, bound * _WARN_AFTER)
    if file.lock_within(early, shared=shared):
        return
    if seconds > early:
        _warn(f"{what} has not come for {early:.1f} s{_named(file)}")
        if file.lock_within(seconds - early, shared=shared):
            return
    raise too_long(what, bound, _named(file))


def too_long(what: str, bound: float, held: str = "") -> StoreUnavailableError:
    """Return the error for a wait that has reached its bound; ``held`` says who holds it."""
    return StoreUnavailableError(
        f"{what} did not come within {bound:g} s (lock_timeout){held}: nothing was changed, and"
        " nothing will be; try again, and see whether a process is stopped"
    )


def _warn(text: str) -> None:
    import logging  # only when there is something to log

    logging.getLogger("kvreplay").warning(text)


def _named(file: FileLock) -> str:
    holder = file.holder()
    return "" if holder is None else f"; the process {holder} has it"


def identity_of_descriptor(
    number: int, unknown: tuple[int, int] | None = None
) -> tuple[int, int] | None:
    """Return what a descriptor stands for, as device and inode.

    ``None``: it is closed; ``unknown``: nobody can tell.
    """
    try:
        status = os.fstat(number)
    except OSError as error:
        return None if error.errno == errno.EBADF else unknown
    return status.st_dev, status.st_ino


class _Opened:
    """The open lock files of one process: what each descriptor stood for when it was opened."""

    def __init__(self) -> None:
        self.pid = getpid()
        self.files: dict[int, tuple[int, int]] = {}


_opened = _Opened()
_changing: Final = ForkSafeLock()


def _close_inherited() -> None:
    global _opened
    with _changing:
        if _opened.pid == getpid():
            return
        inherited, _opened = _opened, _Opened()
    for fd, identity in inherited.files.items():
        # Not if it has been closed, and its number stands for another file by now.
        if identity_of_descriptor(fd) == identity:
            with contextlib.suppress(OSError):
                os.close(fd)


os.register_at_fork(after_in_child=_close_inherited)
