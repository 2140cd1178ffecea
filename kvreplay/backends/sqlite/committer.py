"""How SQLite's writes are committed, in this process's turn: what the queue commits by.

The processes take turns by a ``flock`` on a file beside the database, so that a commit never polls
for SQLite's own lock, and that a checkpoint and a commit never happen at the same time.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final

from kvreplay.backends._support import OwnTransaction, caused
from kvreplay.backends.file_lock import FileLock, lock_within
from kvreplay.backends.pending import UNKNOWN, Batch
from kvreplay.backends.sqlite.connections import Connections
from kvreplay.backends.sqlite.entries import Transaction
from kvreplay.backends.sqlite.errors import (
    code_of,
    commit_error,
    leaves_doubt,
    set_back,
    store_error,
)
from kvreplay.backends.sqlite.files import LOCK
from kvreplay.backends.sqlite.removals import are_announced, unshared
from kvreplay.errors import OutcomeUnknownError, StoreError, StoreUnavailableError
from kvreplay.store import Compacted

__all__ = ["Committer"]

_CHECKPOINT_PAGES: Final = 1000  # about 4 MiB of log
_PAGE: Final = 4096
_PAGES_A_COMMIT: Final = 3
_PAGES_A_WRITE: Final = 3
_LARGE_LOG: Final = 2 * _CHECKPOINT_PAGES * _PAGE  # bytes
_BRIEF: Final = 5  # milliseconds that a checkpoint waits for those who read
_FAILURES: Final = (sqlite3.Error, StoreError)
"""What an operation raises. Anything else comes from outside: an interrupt of the leader."""


class Committer:
    """Commits to one database; see :class:`kvreplay.backends.group_commit.Committer`."""

    def __init__(self, path: str, connections: Connections) -> None:
        self.lead = connections.writing
        self.busy = connections.busy
        self.block: OwnTransaction | None = None  # a caller's transaction, if there is one
        self.what = f"the turn to write to the SQLite store {path}"
        self.removals = unshared()
        self._path = path
        self._connections = connections
        self._turns: list[FileLock] = []  # one
        self._txn: Transaction | None = None  # the latest
        self._last_order = 0  # the greatest creation number that this process has seen
        self._pages = 0  # in the log since this process has checkpointed, about

    # The turn among processes.

    def open_turn(self) -> None:
        """Open the file of the turn, made if it is missing."""
        self._turns += map(FileLock, (self._path + LOCK,), (os.O_RDWR | os.O_CREAT,))

    def held_by_another(self) -> str:
        """Return which other process has the turn, for a message."""
        for turn in self._turns:
            holder = turn.holder()
            if holder not in (None, os.getpid()):
                return f"; the process {holder} has it"
        return ""

    def take_turn(
        self, until: float, bound: float, before_waiting: Callable[[], None] | None = None
    ) -> None:
        """Take the turn, and look whether the files are still in place."""
        if self._connections.closed:
            self._connections.writer  # noqa: B018  # it says so
        try:
            self._lock(until, bound, before_waiting)
        except OSError as error:
            raise StoreUnavailableError(
                f"{self._path}{LOCK} cannot be locked: nothing was changed"
                f" ({os.strerror(error.errno or 0)})"
            ) from error
        self._check_presence()

    def _check_presence(self) -> None:
        if self._connections.presence is not None:  # else it is being opened
            self._connections.presence.check()

    def _lock(self, until: float, bound: float, before_waiting: Callable[[], None] | None) -> None:
        while True:
            if not self._turns:
                self._check_presence()  # nothing is made where the store is gone
                self.open_turn()
            turn = self._turns[0]
            if not turn.try_lock():
                if before_waiting is not None:
                    before_waiting()
                lock_within(turn, self.what, max(until - time.monotonic(), 0.0), bound=bound)
            if turn.is_in_place:
                return
            turn.close()  # somebody has removed the file: others take their turn by a new one
            del self._turns[:1]

    def give_back(self, *, brief: bool = False) -> None:
        """Give the turn back, if it was taken."""
        if self._turns and not self._turns[0].unlock(brief=brief):
            del self._turns[:1]  # the next taker opens it anew

    def close(self) -> None:
        """Close the file of the turn."""
        while self._turns:
            self._turns[-1].close()
            del self._turns[-1:]

    # Committing.

    def commit(
        self, batch: Batch, run: Callable[[Any], None], until: float
    ) -> tuple[Exception | None, bool]:
        """Commit what ``run`` does; it is never to be tried again with other writes."""
        failure: Exception | None = None
        committing = False
        try:
            txn = self.begin(until)
            run(txn)
            txn.finish()
            committing = True
            try:
                self.commit_begun()
                batch.fate.committed = True
            except _FAILURES as error:
                failure = UNKNOWN  # until more is known
                failure = self.failed_commit(error)
        except _FAILURES as error:  # an operation's, or no transaction could begin
            failure = error
        except BaseException:
            if committing and failure is None:  # perhaps it came right after the commit
                batch.fate.committed = not self._connections.writer.in_transaction
            raise
        finally:
            if isinstance(failure, OutcomeUnknownError):
                batch.fate.unknown = failure
            if not batch.fate.committed:
                try:
                    self.undo()
                except BaseException:
                    self.undo()
                    raise
        if failure is None:
            self.count(len(batch.writes), sum(write.size for write in batch.writes))
        return failure, False

    def begin(self, until: float) -> Transaction:
        """Begin a transaction. Only another program can make it wait, since it has the turn.

        Raises:
            CorruptStoreError: an older copy of the store was written over it.
        """
        writer = self._connections.writer
        try:
            writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if code_of(error) != sqlite3.SQLITE_BUSY:
                raise
            try:
                self.set_patience(until)
                writer.execute("BEGIN IMMEDIATE")
            finally:
                writer.execute("PRAGMA busy_timeout = 0")
        self._txn = txn = Transaction(writer, self._path, anew=are_announced(self._path))
        if txn.last < self._last_order:
            raise set_back(self._path)
        self._last_order = txn.last
        return txn

    def commit_begun(self) -> None:
        """Commit, if the files are in place even now: who opens new ones knows no lock of ours.

        ``sqlite3.Error`` means that it failed, a ``StoreError`` that it has not begun; any other
        exception came afterwards.
        """
        self._check_presence()
        self._connections.writer.execute("COMMIT")
        if self._txn is not None:
            self._last_order = self._txn.last

    def failed_commit(self, error: Exception) -> Exception:
        """Say what became of a commit that raised; write over what it has left in the log."""
        if not isinstance(error, sqlite3.Error):
            return error
        settled = False
        if leaves_doubt(error):
            writer = self._connections.writer
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
        return caused(commit_error(error, self._path, settled=settled), error)

    def undo(self) -> None:
        """Undo the transaction, if one is open."""
        writer = self._connections.writer
        if writer.in_transaction:
            writer.execute("ROLLBACK")

    def explained(self, failure: Exception) -> Exception:
        """Say in kvreplay's terms why a write did not happen."""
        if isinstance(failure, sqlite3.Error):
            return caused(store_error(failure, self._path), failure)
        return failure

    def set_patience(self, until: float) -> None:
        """Let SQLite wait for its own lock until then, by the monotonic clock."""
        left = max(int((until - time.monotonic()) * 1000), 0)
        self._connections.writer.execute(f"PRAGMA busy_timeout = {left}")

    # The log.

    def count(self, writes: int, size: int) -> None:
        """Note a commit, by which the log has grown."""
        self._pages += _PAGES_A_COMMIT + writes * _PAGES_A_WRITE + size // _PAGE

    @property
    def is_untidy(self) -> bool:
        """Whether the log has become so long that it should be shortened."""
        return self._pages >= _CHECKPOINT_PAGES

    def shorten(self) -> None:
        """At an opening: take a log into the database that others have left large."""
        # A log that a long reader has kept gives its room back when it begins anew.
        self._connections.writer.execute(f"PRAGMA journal_size_limit = {_LARGE_LOG}")
        if os.stat(f"{self._path}-wal").st_size > _LARGE_LOG:
            self.tidy()

    def compact(self, until: float) -> Compacted:
        """Write the database anew without its free pages, and cut its file.

        Who reads an older state meanwhile keeps the file from being cut, which a later checkpoint
        does then.

        Args:
            until: when to give up waiting for other programs, by the monotonic clock.
        """
        writer = self._connections.writer
        before = self._size()
        try:
            try:
                self.set_patience(until)
                # Else all would be in memory. A child that is forked meanwhile touches nothing.
                writer.execute("PRAGMA cache_spill = ON")
                writer.execute("VACUUM")
                self.set_patience(until)
                writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                writer.execute("PRAGMA cache_spill = OFF")
                writer.execute("PRAGMA busy_timeout = 0")
        except sqlite3.Error as error:
            raise store_error(error, self._path) from error
        self._pages = 0
        return Compacted(before, self._size())

    def _size(self) -> int:
        return os.stat(self._path).st_size + os.stat(f"{self._path}-wal").st_size

    def tidy(self) -> None:
        """Take the log into the database: for all that nobody reads an older state of.

        It asks for SQLite's own write lock, and waits only a moment for it and for readers. What it
        could not do is done next time.
        """
        self._pages = 0
        writer = self._connections.writer
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
                self._path,
                error,
            )
