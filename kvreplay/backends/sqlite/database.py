"""One SQLite database as this process has it open: its connections, its turn, its queue of writes.

The processes take turns by a ``flock`` on a file beside the database, so that a commit never polls
for SQLite's own lock, and that a checkpoint and a commit never happen at the same time.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from os import getpid
from typing import Final, TypeVar

from kvreplay.backends._support import (
    OwnTransaction,
    caused,
    nested_call_error,
    own_transaction_error,
)
from kvreplay.backends.file_lock import FileLock, lock_within
from kvreplay.backends.pending import PendingWrite
from kvreplay.backends.sqlite import schema
from kvreplay.backends.sqlite.connections import Connections
from kvreplay.backends.sqlite.entries import Transaction
from kvreplay.backends.sqlite.errors import (
    code_of,
    commit_error,
    leaves_doubt,
    no_access,
    set_back,
    store_error,
)
from kvreplay.backends.sqlite.files import LOCK, allocate_shared_memory, make_if_missing
from kvreplay.backends.sqlite.group_commit import GroupCommit
from kvreplay.backends.sqlite.presence import Presence
from kvreplay.errors import StoreError, StoreNotFoundError, StoreUnavailableError
from kvreplay.store import Durability
from kvreplay.store.locks import process_mark, require_room

__all__ = ["Block", "Database"]

T = TypeVar("T")

_SOUND: Final = (3, 51, 3)
_CHECKPOINT_PAGES: Final = 1000  # about 4 MiB of log
_PAGE: Final = 4096
_PAGES_A_COMMIT: Final = 3
_PAGES_A_WRITE: Final = 3
_LARGE_LOG: Final = 2 * _CHECKPOINT_PAGES * _PAGE  # bytes
_BRIEF: Final = 5  # milliseconds that a checkpoint waits for those who read

_warned: Final = list[bool]()


class Database:
    """A database that this process has open.

    Args:
        path: a real path, without symbolic links.
        lock_timeout: seconds that a write waits, at most, for other writers.
    """

    def __init__(self, path: str, durability: Durability, lock_timeout: float) -> None:
        self.path = path
        self.durability = durability
        self.lock_timeout = lock_timeout
        self.pid = getpid()
        self.mark = process_mark()
        self.connections = Connections(path, durability, lock_timeout)
        self.writing = self.connections.writing
        self.busy = self.connections.busy
        self.block: Block | None = None  # a caller's transaction, if there is one
        self.id = ""
        self._queue = GroupCommit(self)
        self._turns: list[FileLock] = []  # one
        self._txn: Transaction | None = None  # the last one
        self._last_order = 0  # the greatest creation number that this process has seen
        self._pages = 0  # in the log since this process has checkpointed, about

    @property
    def is_idle(self) -> bool:
        """Whether no call of this process is under way."""
        return self._queue.is_idle

    def open(self, *, creating: bool) -> None:
        """Open the files, made if there are none and ``creating``; wait for a turn if need be."""
        require_room(16)  # to close what was opened
        _warn_of_old_version()
        make_if_missing(self.path, creating=creating)
        self.connections.open()
        writer = self.connections.writer
        deadline = time.monotonic() + self.lock_timeout
        try:
            self._set_patience(deadline)
            if schema.is_empty(writer) and not os.path.lexists(self.path + LOCK):
                if not creating:
                    raise StoreNotFoundError(
                        f"{self.path} is an SQLite database without any table: nothing was made,"
                        " since create is false"
                    )
            else:
                schema.check(writer, self.path)
            schema.make_wal(writer, self.path)
            self._turns += map(FileLock, (self.path + LOCK,), (os.O_RDWR | os.O_CREAT,))
            self._prepare(writer, deadline)
            allocate_shared_memory(self.path)
            self.connections.presence = Presence(self.path)
        except sqlite3.Error as error:
            raise store_error(error, self.path) from error
        except OSError as error:
            raise no_access(error, self.path) from error

    def _prepare(self, writer: sqlite3.Connection, deadline: float) -> None:
        """In this process's turn: make the tables that are missing, and shorten a large log."""
        try:
            self._lock(deadline)
            try:
                writer.execute("BEGIN IMMEDIATE")
                if schema.is_empty(writer):
                    schema.make(writer)
                schema.check(writer, self.path)
                schema.add_own_tables(writer)
                select = "SELECT value FROM kvreplay_meta WHERE name = 'id'"
                self.id = str(writer.execute(select).fetchone()[0])
                writer.execute("COMMIT")
            finally:
                self.undo()
            writer.execute("PRAGMA busy_timeout = 0")
            # A log that a long reader has kept gives its room back when it begins anew.
            writer.execute(f"PRAGMA journal_size_limit = {_LARGE_LOG}")
            if os.stat(f"{self.path}-wal").st_size > _LARGE_LOG:
                self.tidy()
        finally:
            self.give_back()

    def _set_patience(self, deadline: float) -> None:
        left = max(int((deadline - time.monotonic()) * 1000), 0)
        self.connections.writer.execute(f"PRAGMA busy_timeout = {left}")

    # Writing.

    def write(self, operation: Callable[[Transaction], T], size: int = 0) -> T:
        """Run ``operation``, which writes ``size`` bytes, in a transaction and commit it.

        It shares the commit with other writes that wait, and may be run again.
        """
        self.refuse_nested()
        write = PendingWrite(operation, size, bound=self.lock_timeout)
        self._queue.submit((write,))
        if (failure := write.failure) is not None:
            raise failure
        result: T = write.result
        return result

    def write_each(
        self, operations: Sequence[tuple[Callable[[Transaction], T], int]]
    ) -> list[T | Exception]:
        """Do as :meth:`write` for each of several operations; return their results or errors."""
        self.refuse_nested()
        bound = self.lock_timeout
        writes = [PendingWrite(operation, size, bound=bound) for operation, size in operations]
        self._queue.submit(writes)
        return [write.failure or write.result for write in writes]

    def transaction(self, made_of: Callable[[Block], T]) -> Generator[T, None, None]:
        """Hold a write transaction for the caller's block; ``made_of`` makes what it is given."""
        self.refuse_nested()
        deadline = time.monotonic() + self.lock_timeout
        yield from self._queue.alone(self._block(made_of, deadline), bound=self.lock_timeout)

    def _block(self, made_of: Callable[[Block], T], deadline: float) -> Generator[T, None, None]:
        block = Block(self)
        try:
            self.take_turn(deadline)
            try:
                block.begin(deadline)
                self.block = block
                yield made_of(block)
                block.commit()
            finally:
                self.block = None
                block.ended = True
                try:
                    block.undo()
                except BaseException:
                    block.undo()
                    raise
            if self.committed(1, block.size):
                self.tidy()
        finally:
            try:
                self.give_back()
            except BaseException:
                self.give_back()
                raise

    def refuse_nested(self) -> None:
        """Raise for a thread that is in another call: it would wait for itself."""
        if self._queue.is_busy:
            if (block := self.block) is not None and block.is_mine:
                raise own_transaction_error()
            raise nested_call_error()

    def close(self) -> None:
        """Close the files once no transaction is active.

        A second call goes on where an interrupt has ended the first one.
        """
        if self.connections.closed or self.connections.presence is None:
            with self.writing:  # another thread may be about to close it
                self._close()
            return
        self.refuse_nested()
        for _ in self._queue.alone(self._closing(), bound=self.lock_timeout):
            pass

    def _closing(self) -> Generator[None, None, None]:
        # Without a turn: another process may have it for long, and SQLite checkpoints at the end
        # only if nobody else has the file open.
        self._close()
        yield

    def _close(self) -> None:
        self.connections.close()
        while self._turns:
            self._turns[-1].close()
            del self._turns[-1:]

    # What the queue commits by.

    def take_turn(self, deadline: float) -> None:
        """Wait for the turn among processes, and look whether the files are still in place."""
        if self.connections.closed:
            self.connections.writer  # noqa: B018  # it says so
        try:
            self._lock(deadline)
        except OSError as error:
            raise StoreUnavailableError(
                f"{self.path}{LOCK} cannot be locked: nothing was changed"
                f" ({os.strerror(error.errno or 0)})"
            ) from error
        self._check_presence()

    def _check_presence(self) -> None:
        if self.connections.presence is not None:  # else it is being opened
            self.connections.presence.check()

    def _lock(self, deadline: float) -> None:
        while True:
            if not self._turns:
                self._check_presence()  # nothing is made where the store is gone
                self._turns += map(FileLock, (self.path + LOCK,), (os.O_RDWR | os.O_CREAT,))
            turn = self._turns[0]
            lock_within(
                turn,
                f"the turn to write to {self.path}",
                max(deadline - time.monotonic(), 0.0),
                bound=self.lock_timeout,
            )
            if turn.is_in_place:
                return
            turn.close()  # somebody has removed the file: others take their turn by a new one
            del self._turns[:1]

    def give_back(self) -> None:
        """Give the turn back, if it was taken."""
        if self._turns and not self._turns[0].unlock():
            del self._turns[:1]  # the next taker opens it anew

    def begin(self, deadline: float) -> Transaction:
        """Begin a transaction. Only another program can make it wait, since it has the turn.

        Raises:
            CorruptStoreError: an older copy of the store was written over it.
        """
        writer = self.connections.writer
        try:
            writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if code_of(error) != sqlite3.SQLITE_BUSY:
                raise
            try:
                self._set_patience(deadline)
                writer.execute("BEGIN IMMEDIATE")
            finally:
                writer.execute("PRAGMA busy_timeout = 0")
        self._txn = txn = Transaction(writer)
        if txn.last < self._last_order:
            raise set_back(self.path)
        self._last_order = txn.last
        return txn

    def commit(self) -> None:
        """Commit, if the files are in place even now: who opens new ones knows no lock of ours.

        ``sqlite3.Error`` means that it failed, a ``StoreError`` that it has not begun; any other
        exception came afterwards.
        """
        self._check_presence()
        self.connections.writer.execute("COMMIT")
        if self._txn is not None:
            self._last_order = self._txn.last

    def failed_commit(self, error: sqlite3.Error) -> StoreError:
        """Say what became of a commit that raised; write over what it has left in the log."""
        settled = False
        if leaves_doubt(error):
            writer = self.connections.writer
            try:
                try:
                    self.undo()
                    writer.execute("BEGIN IMMEDIATE")
                    writer.execute(
                        "UPDATE kvreplay_meta SET value = value + 1 WHERE name = 'settled'"
                    )
                    writer.execute("COMMIT")
                    settled = True
                finally:
                    self.undo()
            except sqlite3.Error:
                pass  # as the first: the error tells of both
        return caused(commit_error(error, self.path, settled=settled), error)

    @property
    def is_open(self) -> bool:
        """Whether a transaction has begun and is neither committed nor undone."""
        return self.connections.writer.in_transaction

    def undo(self) -> None:
        """Undo the transaction, if one is open."""
        writer = self.connections.writer
        if writer.in_transaction:
            writer.execute("ROLLBACK")

    def committed(self, writes: int, size: int) -> bool:
        """Note a commit; say whether the log has become so long that it should be shortened."""
        self._pages += _PAGES_A_COMMIT + writes * _PAGES_A_WRITE + size // _PAGE
        return self._pages >= _CHECKPOINT_PAGES

    def tidy(self) -> None:
        """Take the log into the database: for all that nobody reads an older state of.

        It asks for SQLite's own write lock, and waits only a moment for it and for readers. What it
        could not do is done next time.
        """
        self._pages = 0
        writer = self.connections.writer
        try:
            writer.execute(f"PRAGMA busy_timeout = {_BRIEF}")
            try:
                writer.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
            finally:
                writer.execute("PRAGMA busy_timeout = 0")
        except sqlite3.Error as error:
            # Everything is in the log, so nobody's write has failed.
            logging.getLogger("kvreplay").warning(
                "a checkpoint of the SQLite store %s failed, and is tried again later: %s",
                self.path,
                error,
            )


class Block(OwnTransaction):
    """What a caller may do inside a write transaction: run operations, on its thread only."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._txn: Transaction | None = None
        self._failure: Exception | None = None  # SQLite's, after which the transaction is lost
        self.size = 0  # bytes that it has written

    def begin(self, deadline: float) -> None:
        """Begin the transaction."""
        try:
            self._txn = self._database.begin(deadline)
        except sqlite3.Error as error:
            raise store_error(error, self._database.path) from error

    def run(self, operation: Callable[[Transaction], T], size: int = 0) -> T:
        """Run ``operation`` as a part of the transaction."""
        self.check_usable()
        assert self._txn is not None  # else the caller was given nothing
        self._check_sound()
        self.size += size
        try:
            return operation(self._txn)
        except sqlite3.Error as error:
            self._failure = error
            raise store_error(error, self._database.path) from error

    def commit(self) -> None:
        """Commit, unless an operation has failed, even if the caller's code has caught that."""
        if self.is_inherited:
            raise StoreError(
                "a forked child cannot commit its parent's transaction: the child changed nothing"
            )
        assert self._txn is not None
        self._check_sound()
        path = self._database.path
        try:
            self._txn.finish()
        except sqlite3.Error as error:
            raise store_error(error, path) from error
        try:
            self._database.commit()
        except sqlite3.Error as error:
            raise self._database.failed_commit(error) from error

    def undo(self) -> None:
        """Undo what is not committed. A second time, and in a forked child, it does nothing."""
        if not self.is_inherited:
            self._database.undo()

    def _check_sound(self) -> None:
        if self._failure is not None:
            raise store_error(self._failure, self._database.path) from self._failure


def _warn_of_old_version() -> None:
    if sqlite3.sqlite_version_info < _SOUND and not _warned:
        _warned.append(True)
        logging.getLogger("kvreplay").warning(
            "SQLite %s has the WAL-reset bug (fixed in 3.51.3): if two programs checkpoint and"
            " commit at the same moment, the database may be damaged. kvreplay's own processes take"
            " turns; let no other program write to the database meanwhile",
            sqlite3.sqlite_version,
        )
