"""A transaction that the caller has begun on a connection of its own, joined for a block.

What is always true:

* The block is a savepoint. If it raises, all that was changed since it began is undone, and the
  caller's transaction goes on. Only the caller commits or rolls back.
* It holds SQLite's write lock before anything is read. So what it reads is the latest, and nobody
  commits meanwhile.
* Before each call it makes sure that the savepoint is still there: by a second one inside, which it
  ends and begins again. If the caller's code has ended the transaction, the call is refused.
* The connection is left as it was: with its row and text factory, and its patience with locks.

The caller's commit is nobody's turn: see :mod:`kvreplay.backends.sqlite.committer`. Our own writers
wait for it by SQLite's lock, as for another program.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sqlite3
import time
from collections.abc import Callable, Generator
from typing import Final, TypeVar

from kvreplay.backends._support import OwnTransaction
from kvreplay.backends.lazy_removals import LazyRemovals
from kvreplay.backends.sqlite.connections import Connections
from kvreplay.backends.sqlite.entries import Transaction
from kvreplay.backends.sqlite.errors import code_of, store_error
from kvreplay.errors import (
    ClaimLostError,
    ConfigError,
    InFlightError,
    StoreError,
    StoreUnavailableError,
)

__all__ = ["Joined", "joined"]

T = TypeVar("T")

_ID: Final = "SELECT CAST(value AS BLOB) FROM kvreplay_meta WHERE name = 'id'"
_LOCK: Final = "DELETE FROM kvreplay_meta WHERE name = 'nothing'"  # it waits for the write lock
_SLICE: Final = 0.05  # seconds, after which a wait sees interrupts
_NOTHING_RAN: Final = "nothing ran"

_numbers: Final = itertools.count()  # each block's savepoints have names of their own


class Joined(OwnTransaction):
    """The caller's transaction during a block: for the thread that joined it.

    Args:
        connection: the caller's.
        connections: the store's own.
        own_id: the store's random id.
    """

    def __init__(
        self, connection: object, connections: Connections, own_id: str, removals: LazyRemovals
    ) -> None:
        super().__init__()
        self._cursor = _cursor_of(connection)
        self._connection = self._cursor.connection
        self._path = connections.path
        self._connections = connections
        self._own_id = own_id
        self._removals = removals
        number = next(_numbers)
        self._savepoint, self._inner = f"kvreplay_{number}", f"kvreplay_{number}_inside"
        self._is_set = False  # the savepoint, or it may be
        self._has_begun = False
        self._may_be_gone = False  # the savepoint, since this block ends it
        self._failure: Exception | None = None  # after which a call may be half done

    # The block.

    def begin(self, lock_timeout: float | None) -> None:
        """Set the savepoint, take the write lock, and make sure that it is the store's database."""
        self._check_file()
        self._is_set = True
        try:
            self._cursor.execute(f"SAVEPOINT {self._savepoint}")
            self._take_lock(math.inf if lock_timeout is None else time.monotonic() + lock_timeout)
            found = self._cursor.execute(_ID).fetchall()
            if found != [(self._own_id.encode(),)]:
                raise self._another_database()
            self._go_on()
        except sqlite3.Error as error:
            raise store_error(error, self._path) from error
        self._has_begun = True

    def release(self) -> None:
        """Keep what was changed in the caller's transaction."""
        self._check_inside()
        if self._failure is not None:
            raise store_error(self._failure, self._path) from self._failure
        self._may_be_gone = True
        try:
            self._cursor.execute(f"RELEASE {self._savepoint}")
        except sqlite3.Error as error:
            self._may_be_gone = False
            raise store_error(error, self._path) from error

    def abandon(self) -> bool:
        """Undo all since the block began; say whether the savepoint was still there."""
        if not self._is_set:
            return True
        try:
            self._cursor.execute(f"ROLLBACK TO {self._savepoint}")
            self._may_be_gone = True
            self._cursor.execute(f"RELEASE {self._savepoint}")
        except sqlite3.Error as error:
            if not _is_gone(error):
                raise StoreError(
                    f"what was changed in the SQLite store {self._path} could not be undone: it is"
                    " still in your transaction; roll that back"
                ) from error
            return self._may_be_gone or not self._has_begun
        return True

    def close(self) -> None:
        """End the use of the connection."""
        self.ended = True
        with contextlib.suppress(sqlite3.ProgrammingError):  # the connection is closed
            self._cursor.close()

    # What is done in it.

    def run(self, operation: Callable[[Transaction], T], size: int = 0) -> T:
        """Run ``operation`` as a part of the transaction; ``size`` does not matter here."""
        self.check_usable()
        self._check_inside()
        try:
            return self._run(operation)
        except sqlite3.Error as error:
            self._failure = error
            raise store_error(error, self._path) from error

    def undo(self) -> None:
        """Undo all since the block began, and go on."""
        self.check_usable()
        self._check_inside()
        try:
            self._cursor.execute(f"ROLLBACK TO {self._savepoint}")
            self._failure = None
            self._go_on()
        except sqlite3.Error as error:
            self._failure = error
            raise store_error(error, self._path) from error

    def _run(self, operation: Callable[[Transaction], T]) -> T:
        # An update gives each row another identity, since who removes lazily meanwhile looks at
        # what is committed, and notes that. The last creation number is read and stored each time,
        # since there may be a block inside this one.
        own = self._connection.text_factory
        try:
            self._connection.text_factory = str
            txn = Transaction(self._cursor, self._path, anew=True)
            result = operation(txn)
            txn.finish()
            return result
        finally:
            self._connection.text_factory = own

    def _go_on(self) -> None:
        """Make the lazy removals that were promised before, as each of our transactions does."""
        self._cursor.execute(f"SAVEPOINT {self._inner}")
        if pending := self._removals.pending.copy():
            self._run(lambda txn: self._removals.make(pending, txn))

    def _check_inside(self) -> None:
        try:
            self._cursor.execute(f"RELEASE {self._inner}")
            self._cursor.execute(f"SAVEPOINT {self._inner}")
        except sqlite3.Error as error:
            if _is_gone(error):
                raise _ended() from error
            raise store_error(error, self._path) from error

    # Before it begins.

    def _check_file(self) -> None:
        if not self._connection.in_transaction:
            raise ConfigError(
                "the connection has no transaction open, so nothing could be committed together:"
                ' begin one by connection.execute("BEGIN IMMEDIATE"), and commit it afterwards;'
                f" {_NOTHING_RAN}"
            )
        if self._connections.presence is not None:
            self._connections.presence.check()
        try:
            name = self._file()
        except sqlite3.Error as error:
            raise store_error(error, self._path) from error
        try:
            status = os.stat(name)
        except OSError:
            raise self._another_database() from None
        if (status.st_dev, status.st_ino) != self._connections.file:
            raise self._another_database()

    def _file(self) -> bytes:
        """Return the path of the connection's database; empty if it has no file.

        It is asked for by a PRAGMA, and not by a SELECT, which would keep the state of now for the
        whole transaction, so that it could not wait for another one's end.
        """
        own = self._connection.text_factory
        try:
            self._connection.text_factory = bytes
            rows = self._cursor.execute("PRAGMA database_list").fetchall()
            return next((file for _, name, file in rows if name == b"main"), b"") or b""
        finally:
            self._connection.text_factory = own

    def _another_database(self) -> ConfigError:
        return ConfigError(
            f"the connection is of another database than the SQLite store {self._path}, so nothing"
            f" could be committed together: connect to that very file; {_NOTHING_RAN}"
        )

    def _take_lock(self, until: float) -> None:
        ((own,),) = self._cursor.execute("PRAGMA busy_timeout").fetchall()
        try:
            self._wait_for_lock(until)
        finally:
            try:
                self._cursor.execute(f"PRAGMA busy_timeout = {own}")
            except BaseException:  # an interrupt
                self._cursor.execute(f"PRAGMA busy_timeout = {own}")
                raise

    def _wait_for_lock(self, until: float) -> None:
        # Of its own: CPython 3.13 may jump back outside of the handlers that a loop is in.
        while not self._is_locked(until):
            pass

    def _is_locked(self, until: float) -> bool:
        """Take the write lock; ``False``: another has it, and there is time to wait."""
        left = max(until - time.monotonic(), 0.0)
        try:
            self._cursor.execute(f"PRAGMA busy_timeout = {int(min(left, _SLICE) * 1000)}")
            self._cursor.execute(_LOCK)
        except sqlite3.Error as error:
            if code_of(error) == sqlite3.SQLITE_READONLY:
                raise ConfigError(
                    "the connection can only read, so nothing could be committed by it: connect"
                    f" without mode=ro, and let PRAGMA query_only be off; {_NOTHING_RAN}"
                ) from error
            if code_of(error) != sqlite3.SQLITE_BUSY:
                raise
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY_SNAPSHOT:
                raise StoreUnavailableError(
                    "the connection's transaction has read an older state of the database, so it"
                    f" can write no more: {_NOTHING_RAN}; roll it back, and begin it by BEGIN"
                    " IMMEDIATE, which reads the latest"
                ) from error
            if left <= 0:
                raise InFlightError(
                    "another transaction holds the write lock of this SQLite database, and may be"
                    f" running this very key: {_NOTHING_RAN} here; roll back, and ask again",
                    1.0,
                ) from error
            return False
        return True


def joined(
    connection: object,
    connections: Connections,
    own_id: str,
    removals: LazyRemovals,
    lock_timeout: float | None,
    made_of: Callable[[Joined], T],
) -> Generator[T, None, None]:
    """Join the caller's transaction for a block; ``made_of`` makes what that is given."""
    block = Joined(connection, connections, own_id, removals)
    try:
        block.begin(lock_timeout)
        yield made_of(block)
        block.release()
    except BaseException as error:
        if block.is_inherited:
            raise  # in a forked child it is the parent's
        try:
            was_there = block.abandon()
        except BaseException:
            block.abandon()
            raise
        if was_there or isinstance(error, ClaimLostError):
            raise
        if isinstance(error, Exception):
            raise _ended() from error
        error.add_note(str(_ended()))
        raise
    finally:
        block.close()


def _cursor_of(connection: object) -> sqlite3.Cursor:
    """Return a new cursor of the caller's connection, without its row factory."""
    if not isinstance(connection, sqlite3.Connection):
        raise ConfigError(
            f"connection= is a {type(connection).__name__}, and this store joins transactions of"
            f" an sqlite3.Connection: give one to the store's own file; {_NOTHING_RAN}"
        )
    try:
        connection.in_transaction  # noqa: B018  # it says if it is closed
        return sqlite3.Cursor(connection)
    except sqlite3.ProgrammingError as error:  # it is closed, or of another thread
        raise ConfigError(
            f"the connection cannot be used here: {_NOTHING_RAN} ({error})"
        ) from error


def _is_gone(error: sqlite3.Error) -> bool:
    """Whether a savepoint is not there any more, or its connection is closed."""
    if isinstance(error, sqlite3.ProgrammingError):
        return "closed" in str(error)
    return code_of(error) == sqlite3.SQLITE_ERROR and "no such savepoint" in str(error)


def _ended() -> ClaimLostError:
    return ClaimLostError(
        "the transaction that was joined has been ended or undone inside the block, or its"
        " connection closed: what was committed there stands, and no answer is stored with it; let"
        " only the caller commit, roll back and close"
    )
