"""The turn to write: one thread of one process has it. Because of it, nobody sleeps in LMDB's lock.

LMDB's lock is a robust mutex in shared memory. Suppose that a process is killed after the mutex has
woken it, and before it has the mutex, because another process was faster. Then the wake-up is
lost: the mutex no longer says that others sleep, and they sleep until somebody else has to wait.
Nor does that mutex know a time limit. A ``flock`` is the kernel's. It forgets a dead waiter, and
who waits for it can give up.

It is held on a file of our own, ``kvreplay.lock``, which only the store's user may open: whoever
may open a directory may lock that too. If the file is removed, the next one is made anew, so after
locking it one looks whether it is still in its place. But who removes it may do so in the middle of
somebody's turn. So ``data.mdb`` is locked after it: whoever has that file has a lock on it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from kvreplay.backends.durable_files import FILE_MODE
from kvreplay.backends.file_lock import FileLock, lock_within, too_long
from kvreplay.backends.lmdb.errors import DATA, gone, no_lock
from kvreplay.backends.lmdb.presence import FolderWatch

__all__ = ["ProcessLock"]

_NAME: Final = "kvreplay.lock"


class ProcessLock:
    """The lock of a store among processes, and the lock among the threads of this one.

    A thread first takes ``lead``, which is re-entrant, and then :meth:`take`. It keeps the file
    open until :meth:`close`.

    Args:
        bound: seconds, for those who do not bring their own.
    """

    def __init__(self, path: Path, bound: float) -> None:
        self.bound = bound
        self.lead: Any = threading.RLock()
        self.watch = FolderWatch(str(path))
        self._path = path
        self._file: FileLock | None = None
        self._data_path = str(path / DATA)
        self._data: FileLock | None = None
        self.what = f"the turn to write to the LMDB store {path}"

    @property
    def is_mine(self) -> bool:
        """Whether this thread has ``lead``."""
        return bool(self.lead._is_owned())

    def take(
        self,
        until: float,
        bound: float,
        *,
        before_waiting: Callable[[], None] | None = None,
        when_lost: Callable[[], None] | None = None,
        making: bool = False,
    ) -> bool:
        """Take the lock among processes, for the thread that has ``lead``.

        Returns:
            Whether the folder is as quiet as when all in it was looked at, and the lock file open.

        Args:
            until: when to give up, by the monotonic clock.
            bound: the seconds from the beginning until then, for the message.
            before_waiting: is called if it cannot be taken at once.
            when_lost: is called if somebody has closed our descriptor, before a new one is opened.
            making: the store may still have to be made.

        Raises:
            StoreUnavailableError: others have it until then, or it cannot be locked; nothing was
                changed.
        """
        kept = True
        try:
            while True:
                file = self._file
                if file is None or not file.is_open:
                    if file is not None and when_lost is not None:
                        when_lost()
                    self.close()  # first: the new file may get the number of a lost one
                    kept, file = False, self._open(making)
                    self._file = file
                if not file.try_lock():
                    if before_waiting is not None:
                        before_waiting()
                    left = max(until - time.monotonic(), 0)
                    lock_within(file, self.what, left, bound=bound)
                quiet = self.watch.is_quiet()
                if quiet or file.is_in_place:
                    return self._take_data(until, bound, quiet) and kept and quiet
                self.close()
        except OSError as error:
            self.close()
            raise no_lock(error, self._path) from error

    def _take_data(self, until: float, bound: float, quiet: bool) -> bool:
        """Lock ``data.mdb``, if there is one; say whether it was open and free.

        It is free unless the other lock file was removed while somebody had the turn.
        """
        data = self._data
        kept = data is not None and (quiet or (data.is_open and data.is_in_place))
        if data is None or not kept:
            if data is not None:
                data.close()
            self._data = None
            try:
                data = self._data = FileLock(self._data_path, os.O_RDONLY | os.O_NONBLOCK)
            except FileNotFoundError:
                return False  # it is being made, or gone, which the caller finds out
        try:
            data.lock()
        except BlockingIOError:
            lock_within(data, self.what, max(until - time.monotonic(), 0), bound=bound)
            return False
        return kept

    def _open(self, making: bool) -> FileLock:
        path = str(self._path / _NAME)
        flags = os.O_RDWR | os.O_NOFOLLOW
        try:
            return FileLock(path, flags)
        except FileNotFoundError:
            # Never where the store is gone: that may be the directory below a lost mount.
            if not making and not (self._path / DATA).exists():
                raise gone(self._path) from None
            file = FileLock(path, flags | os.O_CREAT, FILE_MODE)
            try:
                os.chmod(path, FILE_MODE)  # the umask may have taken bits away
            except BaseException:
                file.close()
                raise
            return file

    def held_by_another(self) -> str:
        """Return which other process has the lock, for a message; nothing if that is not known."""
        file = self._file
        holder = None if file is None else file.holder()
        return "" if holder in (None, os.getpid()) else f"; the process {holder} has it"

    def give_back(self, *, brief: bool = False) -> None:
        """Give the lock back; this does nothing if it is not held, and never fails.

        ``brief`` is as in :meth:`FileLock.unlock`.
        """
        try:
            if self._data is not None and not self._data.unlock(brief=brief):
                self._data = None  # the next taker opens it anew
        finally:
            if self._file is not None and not self._file.unlock(brief=brief):
                self._file = None

    def while_held(self, action: Callable[[], None], *, making: bool = False) -> None:
        """Run ``action`` with the lock, which is taken unless this thread has it.

        Raises:
            StoreUnavailableError: it could not be taken within the bound; nothing was done.
        """
        if self.is_mine:
            action()
            return
        until = time.monotonic() + self.bound
        try:
            if not self.lead.acquire(timeout=self.bound):
                raise too_long(self.what, self.bound, "; another thread of this process has it")
            try:
                self.take(until, self.bound, making=making)
                action()
            finally:
                try:
                    self.give_back()
                except BaseException:
                    self.give_back()
                    raise
        finally:
            try:
                self.lead.release()
            except RuntimeError:
                pass  # it was not taken

    def close(self) -> None:
        """Close the files, which gives the locks back too."""
        try:
            if self._data is not None:
                self._data.close()
                self._data = None
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None
