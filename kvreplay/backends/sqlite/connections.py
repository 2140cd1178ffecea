"""The open connections of this process to one database: one that writes, and a pool that reads.

What is always true:

* A connection is used by one thread at a time. A connection that reads is in the pool, or in a list
  of the call that uses it. It goes from one to the other by operators, so no interrupt loses it.
* A read transaction ends with its call, so no reader keeps the write-ahead log from being reset.

A forked child may not use its parent's connections, and even a new one of its own would be harmed
by them: SQLite notes in the process's memory which locks it holds on a file, and the child inherits
the notes without the locks. Its new connection would hold no lock at all. So the child closes what
it has inherited before it opens anything. That ends no lock of the parent's: these locks belong to
the process. But SQLite must not take the child for the last user of the file, and remove the
write-ahead log, so the child blocks that by a lock of another kind until all are closed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from os import getpid
from typing import Any, Final
from urllib.parse import quote
from weakref import ref

from kvreplay.backends.sqlite.errors import code_of, no_access, store_error
from kvreplay.backends.sqlite.presence import Presence
from kvreplay.errors import StoreError, StoreUnavailableError
from kvreplay.store import Durability, ForkSafeLock, closed_error

__all__ = ["Connections", "close_all", "leave_parents", "opened"]

_MAX_READERS: Final = 64
_LAST: Final = (-1,)
_COPIED_AT_ONCE: Final = 8000  # pages
_LOOK_AGAIN: Final = 0.0005  # seconds
FORK_PATIENCE: Final = 10.0
"""How many seconds a fork waits, at most, until other threads have ended their calls."""

_FLOCK: Final = "hhqqi4x"  # struct flock of fcntl(2)
# Where SQLite locks a database file as long as it uses it; see its os_unix.c.
_IN_USE: Final = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0x4000_0002, 510, 0)


def opened(path: str, durability: Durability, timeout: float) -> list[sqlite3.Connection]:
    """Open an existing database; return the connection as the only item of a list.

    Args:
        timeout: seconds that each of its calls waits for a lock.
    """
    new: list[sqlite3.Connection] = []
    opening = partial(
        sqlite3.connect,
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        new += map(opening, (f"file:{quote(os.fsencode(path))}?mode=rw",))
        # A commit does not checkpoint: that is done in turn with the writers of all processes.
        new[0].execute("PRAGMA wal_autocheckpoint = 0")
        new[0].execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
        # What is not committed is never in the files, where an inherited copy could touch it.
        new[0].execute("PRAGMA cache_spill = OFF")
    except BaseException:
        close_all(new)
        raise
    return new


def _identity_of(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise no_access(error, path) from error
    return status.st_dev, status.st_ino


def close_all(connections: list[sqlite3.Connection]) -> None:
    """Close them; a second call goes on where an interrupt has ended the first one."""
    while connections:
        with contextlib.suppress(IndexError):  # another thread was faster
            connections[-1].close()
            del connections[-1]


class Connections:
    """The connections of one process. It opens none before :meth:`open`."""

    def __init__(self, path: str, durability: Durability, timeout: float) -> None:
        self.path = path
        self.pid = getpid()
        self.closed = False
        self.writing: Any = threading.RLock()  # held by the thread that uses the writer
        self.busy: dict[int, bool] = {}  # the threads that write, or wait for it
        self._durability: Durability = durability
        self._timeout = timeout
        self._writers: list[sqlite3.Connection] = []  # one, until it is closed
        self._readers: list[sqlite3.Connection] = []
        self._free: list[sqlite3.Cursor] = []  # of those that no thread uses
        self._opening: Any = threading.RLock()
        self._kept: list[sqlite3.Cursor] | None = None  # the free ones, during a fork
        self.file: tuple[int, int] | None = None  # device and inode of the database
        self._held = False  # during a fork: no other thread is in a call
        self.presence: Presence | None = None  # once all files are open

    def open(self) -> None:
        """Open the one that writes; its patience with locks is the caller's to set anew."""
        leave_parents()
        self.__class__ = _OpenConnections
        _process.open[id(self)] = ref(self)
        try:
            before = _identity_of(self.path)
            # Not by a partial: after that, an interrupt could lose what it returns.
            self._writers += opened(self.path, self._durability, self._timeout)
            self.file = _identity_of(self.path)
        except sqlite3.Error as error:
            raise store_error(error, self.path) from error
        if before != self.file:
            raise StoreUnavailableError(
                f"{self.path} was replaced while it was opened: nothing was changed; try again"
            )

    @property
    def writer(self) -> sqlite3.Connection:
        """The connection that writes, for the thread that holds ``writing``."""
        try:
            return self._writers[0]
        except IndexError:
            raise closed_error() from None

    def row(self, sql: str, args: tuple[Any, ...]) -> Any:
        """Return the first row of a query, or ``None``."""
        free = self._free
        mine: list[sqlite3.Cursor] = []  # quick way, for list[sqlite3.Cursor](): bench_hit
        try:
            mine += map(free.pop, _LAST)
            return mine[0].execute(sql, args).fetchone()
        except IndexError:
            pass  # none was free
        except sqlite3.Error as error:
            _end_query(mine)
            raise store_error(error, self.path) from error
        except BaseException:
            _end_query(mine)
            raise
        finally:
            free += mine
            if self.closed:
                self._close_free()
        self._make_one_free()
        return self.row(sql, args)

    def rows(self, sql: str, args: tuple[Any, ...]) -> list[Any]:
        """Return all rows of a query, as they are at one moment."""
        free, mine = self._free, list[sqlite3.Cursor]()
        try:
            mine += map(free.pop, _LAST)
            return mine[0].execute(sql, args).fetchall()
        except IndexError:
            pass  # none was free
        except sqlite3.Error as error:
            _end_query(mine)
            raise store_error(error, self.path) from error
        except BaseException:
            _end_query(mine)
            raise
        finally:
            free += mine
            if self.closed:
                self._close_free()
        self._make_one_free()
        return self.rows(sql, args)

    def some_rows(
        self,
        take: Callable[[sqlite3.Cursor], list[Any]],
        sql: str,
        args: tuple[Any, ...],
    ) -> list[Any]:
        """Return the rows that ``take`` takes of a query, as they are at one moment."""
        free, mine = self._free, list[sqlite3.Cursor]()
        try:
            mine += map(free.pop, _LAST)
            return take(mine[0].execute(sql, args))
        except IndexError:
            pass  # none was free
        except sqlite3.Error as error:
            raise store_error(error, self.path) from error
        finally:
            try:
                _end_query(mine)  # it may have more rows
            finally:
                free += mine
                if self.closed:
                    self._close_free()
        self._make_one_free()
        return self.some_rows(take, sql, args)

    def copy_to(self, target: sqlite3.Connection, flush: Callable[[], object]) -> None:
        """Copy the whole database, as it is at one moment, into an empty one.

        A fork waits for it, as for any call.

        Args:
            flush: is called now and then, to flush what was written of the copy: if all of it were
                flushed at once, those who write would wait for that.

        Raises:
            OSError: it cannot be flushed, or there is no room for it.
        """
        free, mine = self._free, list[sqlite3.Cursor]()
        self._make_one_free()
        try:
            mine += map(free.pop, _LAST)
            connection = mine[0].connection
            try:
                mine[0].execute("BEGIN")
                mine[0].execute("SELECT 1 FROM sqlite_master").fetchall()  # the moment
                connection.backup(target, pages=_COPIED_AT_ONCE, progress=lambda *_: flush())
            finally:
                if connection.in_transaction:
                    connection.rollback()
            return
        except IndexError:
            pass  # another thread was faster
        except sqlite3.Error as error:
            if code_of(error) == sqlite3.SQLITE_FULL:  # the copy's disk: this one is only read
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise store_error(error, self.path) from error
        finally:
            free += mine
            if self.closed:
                self._close_free()
        self.copy_to(target, flush)

    def _make_one_free(self) -> None:
        """Open one more, or wait a moment for one. During another thread's fork it waits here."""
        with self._opening:
            if self.closed:
                raise closed_error()
            if self._free:
                return
            if len(self._readers) < _MAX_READERS:
                try:
                    new = opened(self.path, self._durability, self._timeout)
                except sqlite3.Error as error:
                    raise store_error(error, self.path) from error
                cursors = [new[0].cursor()]
                self._readers += new
                self._free += cursors
                return
        time.sleep(_LOOK_AGAIN)

    def close(self) -> None:
        """Close all. One that another thread reads from is closed when that has ended.

        A second call goes on where an interrupt has ended the first one. The caller holds
        ``writing``, if there may be other threads.
        """
        if not self.closed and self.presence is not None and self.presence.others_have_begun_anew:
            # SQLite would take the old log into the database, and remove the new one.
            _seem_in_use(self.file, _never_closed)
        self.closed = True
        with self._opening:
            self._close_free()
        # Last: if it is the last one of all processes, it takes the log into the database.
        close_all(self._writers)
        self._forget_if_closed()

    def _close_free(self) -> None:
        while self._free:
            self._close_one()
        self._forget_if_closed()

    def _close_one(self) -> None:
        mine: list[sqlite3.Cursor] = []
        try:
            mine += map(self._free.pop, _LAST)
            connection = mine[0].connection
            # If an interrupt came after the last close, this is the second try.
            with contextlib.suppress(sqlite3.ProgrammingError):
                mine[0].close()  # likewise: see _end_query
            connection.close()
            if connection in self._readers:
                self._readers.remove(connection)
        except IndexError:
            pass  # another thread was faster
        except BaseException:
            self._free += mine
            raise

    def _forget_if_closed(self) -> None:
        """Leave the table of this process, if nothing is open that a child would inherit."""
        if not (self._readers or self._writers):
            _process.open.pop(id(self), None)
            self.__class__ = Connections

    # A fork.

    def hold_for_fork(self, patience: float) -> None:
        """Keep other threads out of SQLite; it gives up after so many seconds."""
        until = time.monotonic() + patience
        self._held = False
        if self.writing.acquire(timeout=patience):
            if self._opening.acquire(timeout=max(until - time.monotonic(), 0)):
                self._kept = []
                self._held = self._take_free(self._kept, until)
            else:
                self.writing.release()

    def _take_free(self, kept: list[sqlite3.Cursor], until: float) -> bool:
        while len(kept) < len(self._readers):
            try:
                kept += map(self._free.pop, _LAST)
            except IndexError:  # some are in use
                if time.monotonic() > until:
                    return False
                time.sleep(_LOOK_AGAIN)
        return True

    def go_on(self) -> None:
        """In the parent, after the fork: let the others in again."""
        if self._kept is not None:
            self._held = False
            self._free += self._kept
            self._kept = None
            self._opening.release()
            self.writing.release()

    def abandon(self) -> bool:
        """In a forked child: close what it has inherited; say whether it could.

        It could not if another thread of the parent may have been in a call: SQLite's own locks in
        memory may be held for ever then. A fork that ran no hook counts as made by the parent's
        main thread, which Python goes on to call the main thread.
        """
        if not (self._readers or self._writers):
            return True  # what is done below would end locks that the child has by now
        if not self._held:
            others = [each for each in self.busy if each != threading.main_thread().ident]
            if others or len(self._free) < len(self._readers):
                return False
        files: list[int] = []
        try:
            _seem_in_use(self.file, files)
            close_all(self._readers)
            close_all(self._writers)
        finally:
            closing, closed = map(os.close, files), list[None]()
            closed += closing
        return True


class _OpenConnections(Connections):
    """Connections until all are closed. Only so long do they have a finalizer.

    Python can only print an interrupt that comes in a finalizer: it would be lost at the end of a
    store's ``close()``.
    """

    def __del__(self) -> None:
        if self.pid == getpid():
            self.close()
        else:
            self.abandon()


def _end_query(mine: list[sqlite3.Cursor]) -> None:
    """After an error or an interrupt: end the query with its cursor, and go on with a new one.

    An error that somebody keeps leads to the old one. Open, it would keep its statement, and that
    the files: SQLite would close them late, and then remove the log at the path, whoever's it is.
    """
    if mine:
        old = mine[0]
        mine[0] = old.connection.cursor()
        with contextlib.suppress(sqlite3.Error):  # a store that is closed meanwhile
            old.close()


def _seem_in_use(file: tuple[int, int] | None, files: list[int]) -> None:
    """Keep SQLite from taking this process for the last user of a file, until ``files`` are closed.

    The lock belongs to an open file, so it stands against the process's own locks too. To close
    that file ends all of these; at that moment the process has none that counts.
    """
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"  # it leads to the file even if that was moved or removed
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path)
            if (status.st_dev, status.st_ino) == file:
                files += map(os.open, (path,), (os.O_RDONLY | os.O_CLOEXEC,))
                fcntl.fcntl(files[-1], fcntl.F_OFD_SETLK, _IN_USE)
                return


_never_closed: Final = list[int]()
"""Descriptors of databases whose lock files were removed. To close one would end others' locks."""


class _Process:
    """The connections of one process, and those that it has inherited and not closed yet."""

    def __init__(self, inherited: list[ref[Connections]]) -> None:
        self.pid = getpid()
        self.open: dict[int, ref[Connections]] = {}
        self.inherited = inherited
        self.harmed: list[Connections] = []  # inherited, and not to be closed: never deleted


_process = _Process([])
_leaving: Final = ForkSafeLock()


def leave_parents() -> None:
    """In a forked child: close all that is inherited, once. Before that it must open nothing.

    Raises:
        StoreError: it cannot be closed, so this process can use no SQLite store.
    """
    global _process
    if _process.pid == getpid() and not _process.inherited and not _process.harmed:
        return
    with _leaving:
        if _process.pid != getpid():
            _process = _Process([*_process.open.values(), *_process.inherited])
        _leave(_process)
    if _process.harmed:
        raise StoreError(
            "this process was forked while its parent was in a call of an SQLite store, and cannot"
            " use one: nothing was done; fork while no other thread uses the store"
        )


def _leave(process: _Process) -> None:
    while process.inherited:
        connections = process.inherited[-1]()
        if connections is not None and not connections.abandon():
            process.harmed += (connections,)
        del process.inherited[-1]


# If another thread is in a call of SQLite at a fork, the child could not use it. So a fork waits
# for such calls. A fork that runs no hooks does not wait.

_forking: Final = threading.local()


def _before_fork() -> None:
    _forking.held = []
    if _process.pid == getpid():
        found = [each() for each in list(_process.open.values())]
        _forking.held = [each for each in found if each is not None]
        for connections in _forking.held:
            connections.hold_for_fork(FORK_PATIENCE)


def _after_fork_in_parent() -> None:
    for connections in _forking.held:
        connections.go_on()
    _forking.held = []


def _after_fork_in_child() -> None:
    _forking.held = []
    with contextlib.suppress(StoreError):  # the next call of a store says so
        leave_parents()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
