"""The files of one database: finding, making and checking them.

Beside ``PATH`` lie SQLite's own ``PATH-wal`` and ``PATH-shm``, and ``PATH-kvreplay-lock``, on which
the processes take turns. The lock file is made last: with it, a missing database is a loss and not
a new store. Nothing here opens ``PATH`` itself, except by SQLite: to close it would end the locks
that SQLite has on it in this process.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Final

from kvreplay.backends._support import SQLITE_LOCK, is_there
from kvreplay.backends.durable_files import FILE_MODE, fsync_directory, make_directories
from kvreplay.backends.new_place import sibling_of
from kvreplay.backends.sqlite import schema
from kvreplay.backends.sqlite.connections import Connections, close_all, opened
from kvreplay.backends.sqlite.errors import no_access, store_error
from kvreplay.errors import CorruptStoreError, StoreNotFoundError

__all__ = ["LOCK", "OWNERS", "allocate_shared_memory", "make_copy", "make_if_missing"]

LOCK: Final = SQLITE_LOCK
OWNERS: Final = "-kvreplay-owners"
_SHARED_MEMORY: Final = 64 * 1024  # bytes, for a log of 8,000 pages


def make_if_missing(path: str, *, creating: bool) -> None:
    """Refuse what is no SQLite file; make the store if there is none, as a whole.

    A crash meanwhile leaves nothing, or a whole store.

    Raises:
        CorruptStoreError: another engine's store is there, or the database is gone or emptied.
        StoreNotFoundError: there is none, and ``creating`` is false.
    """
    try:
        _make_if_missing(path, creating)
    except OSError as error:
        raise no_access(error, path) from error
    except sqlite3.Error as error:
        raise store_error(error, path) from error


def _make_if_missing(path: str, creating: bool) -> None:
    if os.path.isdir(path):
        raise CorruptStoreError(f"{path} is a directory{_engine_of(path)}: {_ANOTHER}")
    marked = is_there(path + LOCK)
    try:
        if os.stat(path).st_size:
            return
        was = "is empty"
    except FileNotFoundError:
        was = "is missing"
    if marked:
        raise CorruptStoreError(
            f"the SQLite store {path} {was}: nothing was changed; restore it from a backup, with"
            f" its -wal file; to accept that its content is lost, remove it and {path}{LOCK}"
        )
    if os.path.isdir(f"{path}.kvreplay"):
        raise CorruptStoreError(f"{path} belongs to a filesystem store of kvreplay: {_ANOTHER}")
    if not creating:
        raise StoreNotFoundError(
            f"there is no SQLite store at {path}: nothing was made, since create is false; check"
            " the path and its mount, or make the store with create=true"
        )
    make_directories(os.path.dirname(path))
    _make(path, empty=was == "is empty")


_ANOTHER: Final = "nothing was changed; give the sqlite backend the path of a file of its own"


def _engine_of(path: str) -> str:
    if os.path.exists(os.path.join(path, "data.mdb")):
        return " with an LMDB store"
    if os.path.isdir(f"{path}.kvreplay"):
        return " with a filesystem store of kvreplay"
    if os.path.exists(os.path.join(path, f"{schema.NODE_TABLE}.sqlite")):
        return f" with ldk-node's {schema.NODE_TABLE}.sqlite, which is the file to name"
    return ""


def _make(path: str, *, empty: bool) -> None:
    """Make an empty store as a whole, unless another process is faster."""

    def fill(temporary: str, made: list[sqlite3.Connection]) -> None:
        made += opened(temporary, "full", 0.0)
        schema.make_wal(made[0], temporary)
        made[0].execute("BEGIN IMMEDIATE")
        schema.make(made[0])
        schema.add_own_tables(made[0], temporary)
        made[0].execute("COMMIT")

    with contextlib.suppress(FileExistsError):
        _make_whole(path, fill, os.rename if empty else os.link)


def make_copy(place: str, source: Connections) -> None:
    """Make another store, with all that is in a database at one moment.

    Raises:
        FileExistsError: something is at the place by now.
    """

    def fill(temporary: str, made: list[sqlite3.Connection]) -> None:
        # By an operator: no interrupt comes between the call and the note of its connection.
        made += map(partial(sqlite3.connect, isolation_level=None), (temporary,))
        # Nothing of it counts before it is in place.
        made[0].execute("PRAGMA journal_mode = OFF")
        made[0].execute("PRAGMA synchronous = OFF")
        with open(temporary, "rb", buffering=0) as file:
            source.copy_to(made[0], partial(os.fdatasync, file.fileno()))
            close_all(made)
        made += opened(temporary, "full", 0.0)
        schema.renew_id(made[0])

    _make_whole(place, fill, os.link)


def _make_whole(
    path: str,
    fill: Callable[[str, list[sqlite3.Connection]], None],
    put: Callable[[str, str], None],
) -> None:
    """Make a store under another name, and put it in place as a whole, durably.

    Args:
        fill: fills the file; the connections that it opens are closed then.
        put: ``os.rename``, or ``os.link`` if nothing may be there.
    """
    temporary = sibling_of(path)
    made: list[sqlite3.Connection] = []
    # Opened and closed by one operator: no interrupt comes between.
    making = map(os.open, (temporary,), (os.O_CREAT | os.O_EXCL | os.O_WRONLY,), (FILE_MODE,))
    done = list[None]()
    try:
        done += map(os.close, making)
        fill(temporary, made)
        close_all(made)  # it takes the log into the database, flushed, and removes it
        put(temporary, path)
        fsync_directory(os.path.dirname(path))
    finally:
        try:
            _discard(temporary, made)
        except BaseException:
            _discard(temporary, made)
            raise


def _discard(temporary: str, made: list[sqlite3.Connection]) -> None:
    close_all(made)
    for each in (temporary, f"{temporary}-wal", f"{temporary}-shm"):
        if os.path.lexists(each):
            os.unlink(each)


def allocate_shared_memory(path: str) -> None:
    """Give SQLite's ``-shm`` file all its blocks, by the descriptor that SQLite has of it.

    SQLite writes to a map of it. If a full disk has no block for that, the process is killed.
    """
    wanted = os.stat(f"{path}-shm")
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(f"/proc/self/fd/{name}")
            if os.path.samestat(status, wanted):
                os.posix_fallocate(int(name), 0, _SHARED_MEMORY)
                return
