"""One SQLite database as this process has it open: its connections and its queue of writes."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from os import getpid
from typing import Any, Final, TypeVar

from kvreplay.backends._support import OwnTransaction, is_there
from kvreplay.backends.group_commit import GroupCommit
from kvreplay.backends.lazy_removals import EVERYWHERE, not_removed
from kvreplay.backends.pending import NOWHERE, PendingWrite
from kvreplay.backends.sqlite import entries, removals, schema
from kvreplay.backends.sqlite.committer import Committer
from kvreplay.backends.sqlite.connections import Connections
from kvreplay.backends.sqlite.entries import Transaction
from kvreplay.backends.sqlite.errors import lost_row, no_access, store_error
from kvreplay.backends.sqlite.files import LOCK, allocate_shared_memory, make_if_missing
from kvreplay.backends.sqlite.joining import Joined, joined
from kvreplay.backends.sqlite.presence import Presence
from kvreplay.errors import StoreError, StoreNotFoundError
from kvreplay.store import Compacted, Durability
from kvreplay.store.locks import process_mark, require_room

__all__ = ["Block", "Database"]

T = TypeVar("T")

_SOUND: Final = (3, 51, 3)

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
        self.id = ""
        self._member = object()  # which shares the lazy removals of this process
        self._committer = Committer(path, self.connections)
        self._queue = GroupCommit(self._committer)
        self.removals = self._committer.removals

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
            self._committer.set_patience(deadline)
            if schema.is_empty(writer) and not is_there(self.path + LOCK):
                if not creating:
                    raise StoreNotFoundError(
                        f"{self.path} is an SQLite database without any table: nothing was made,"
                        " since create is false"
                    )
            else:
                schema.check(writer, self.path)
            schema.make_wal(writer, self.path)
            self._committer.open_turn()
            self._prepare(writer, deadline)
            self._committer.removals = removals.enter(self._shared, self._member)
            self.removals = self._committer.removals
            allocate_shared_memory(self.path)
            self.connections.presence = Presence(self.path)
        except sqlite3.Error as error:
            raise store_error(error, self.path) from error
        except OSError as error:
            raise no_access(error, self.path) from error

    def _prepare(self, writer: sqlite3.Connection, deadline: float) -> None:
        """In this process's turn: make the tables that are missing, and shorten a large log."""
        committer = self._committer
        try:
            committer.take_turn(deadline, self.lock_timeout)
            try:
                writer.execute("BEGIN IMMEDIATE")
                if schema.is_empty(writer):
                    schema.make(writer)
                schema.check(writer, self.path)
                schema.add_own_tables(writer, self.path)
                select = "SELECT value FROM kvreplay_meta WHERE name = 'id'"
                if (own := writer.execute(select).fetchone()) is None:
                    raise lost_row(self.path)
                self.id = str(own[0])
                writer.execute("COMMIT")
            finally:
                committer.undo()
            writer.execute("PRAGMA busy_timeout = 0")
            committer.shorten()
        finally:
            committer.give_back()

    @property
    def _shared(self) -> object:
        return self.connections.file, self.id

    # Writing.

    def write(
        self, operation: Callable[[Transaction], T], size: int = 0, *, address: object = None
    ) -> T:
        """Run ``operation``, which writes ``size`` bytes, in a transaction and commit it.

        It shares the commit with other writes that wait, and may be run again.

        Args:
            address: of the only entry that it reads and changes; ``None``: it may be any.
        """
        write = PendingWrite(operation, size, bound=self.lock_timeout, address=address)
        self._queue.submit((write,))
        if (failure := write.failure) is not None:
            raise failure
        result: T = write.result
        return result

    def write_each(
        self, operations: Sequence[tuple[Callable[[Transaction], T], int, object]]
    ) -> list[T | Exception]:
        """Do as :meth:`write` for each of several operations; return their results or errors."""
        bound = self.lock_timeout
        writes = [
            PendingWrite(operation, size, bound=bound, address=address)
            for operation, size, address in operations
        ]
        self._queue.submit(writes)
        return [write.failure or write.result for write in writes]

    def remove_lazily(self, address: entries.Address, closing: Sequence[bool]) -> bool:
        """Remember to remove an entry; say whether that was possible."""
        if not removals.are_announced(self.path):
            try:
                if self.connections.presence is not None:
                    self.connections.presence.check()  # nothing is made where the store is gone
                removals.announce(self.path)
            except (OSError, StoreError):
                return False  # whoever removes it at once finds out what is wrong
        return self.removals.remember(address, self._identity_at, closing)

    def _identity_at(self, address: entries.Address) -> entries.Identity | None:
        row = self.connections.row(entries.IDENTIFIED, address)
        return None if row is None else row[2:]

    def settle(self, closing: list[bool]) -> StoreError | None:
        """Before a store is closed: make the lazy removals. Return why that failed, if it did.

        In the middle of a call, or of a transaction, of this thread it makes none.
        """
        self.removals.seal(closing)
        if not self._queue.is_busy:
            try:
                self.make_removals()
            except StoreError as error:
                return not_removed(self.removals, error)
        return None

    def make_removals(self) -> None:
        """Make the lazy removals that wait."""
        if self.removals.pending:
            make = partial(self.removals.make, self.removals.pending.copy())
            self.write(make, address=NOWHERE)

    def compact(self) -> Compacted:
        """Give the room of what was removed back, in this process's turn."""
        self.make_removals()
        done = list[Compacted]()

        def compacting() -> Generator[None, None, None]:
            done.append(self._committer.compact(time.monotonic() + self.lock_timeout))
            yield

        for _ in self._queue.alone(compacting(), bound=self.lock_timeout):
            pass
        return done[0]

    def transaction(self, made_of: Callable[[Block], T]) -> Generator[T, None, None]:
        """Hold a write transaction for the caller's block; ``made_of`` makes what it is given."""
        yield from self._queue.alone(self._block(made_of), bound=self.lock_timeout)

    def join(
        self, connection: object, lock_timeout: float | None, made_of: Callable[[Joined], T]
    ) -> Generator[T, None, None]:
        """Join the caller's own transaction for a block; ``made_of`` makes what that is given."""
        self._queue.refuse_nested()  # it would wait for its own thread
        yield from joined(
            connection, self.connections, self.id, self.removals, lock_timeout, made_of
        )

    def _block(self, made_of: Callable[[Block], T]) -> Generator[T, None, None]:
        committer = self._committer
        block = Block(self.path, committer)
        lazy = self.removals
        try:
            block.begin(time.monotonic() + self.lock_timeout)
            committer.block = block
            yield made_of(block)
            block.commit()
        finally:
            committer.block = None
            block.ended = True
            try:
                block.undo()
            except BaseException:
                block.undo()
                raise
            finally:
                lazy.flying.pop(block, None)
        lazy.forget(block.boarded)
        committer.count(1, block.size)
        if committer.is_untidy:
            committer.tidy()

    def close(self) -> None:
        """Close the files once no transaction is active.

        A second call goes on where an interrupt has ended the first one.
        """
        if self.connections.closed or self.connections.presence is None:
            with self.connections.writing:  # another thread may be about to close it
                self._close()
            return
        # Without a turn: another process may have it for long, and SQLite checkpoints at the end
        # only if nobody else has the file open.
        for _ in self._queue.alone(self._closing(), bound=self.lock_timeout, in_turn=False):
            pass

    def _closing(self) -> Generator[None, None, None]:
        self._close()
        yield

    def _close(self) -> None:
        self.connections.close()
        self._committer.close()
        removals.leave(self._shared, self._member)


class Block(OwnTransaction):
    """What a caller may do inside a write transaction: run operations, on its thread only."""

    def __init__(self, path: str, committer: Committer) -> None:
        super().__init__()
        self._path = path
        self._committer = committer
        self._txn: Transaction | None = None
        self.boarded: dict[Any, Any] = {}  # the lazy removals that it makes first
        self._failure: Exception | None = None  # SQLite's, after which the transaction is lost
        self.size = 0  # bytes that it has written

    def begin(self, deadline: float) -> None:
        """Begin the transaction, with the lazy removals."""
        try:
            self._txn = self._committer.begin(deadline)
            boarded = self._committer.removals.board(self, EVERYWHERE)
            try:
                self._committer.removals.make(boarded, self._txn)
                self.boarded = boarded
            except sqlite3.Error:  # no transaction fails because of a lazy removal
                self._committer.undo()
                self._txn = self._committer.begin(deadline)
        except sqlite3.Error as error:
            raise store_error(error, self._path) from error

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
            raise store_error(error, self._path) from error

    def commit(self) -> None:
        """Commit, unless an operation has failed, even if the caller's code has caught that."""
        if self.is_inherited:
            raise StoreError(
                "a forked child cannot commit its parent's transaction: the child changed nothing"
            )
        assert self._txn is not None
        self._check_sound()
        try:
            self._txn.finish()
        except sqlite3.Error as error:
            raise store_error(error, self._path) from error
        try:
            self._committer.commit_begun()
        except sqlite3.Error as error:
            raise self._committer.failed_commit(error) from error

    def undo(self) -> None:
        """Undo what is not committed. A second time, and in a forked child, it does nothing."""
        if not self.is_inherited:
            self._committer.undo()

    def _check_sound(self) -> None:
        if self._failure is not None:
            raise store_error(self._failure, self._path) from self._failure


def _warn_of_old_version() -> None:
    if sqlite3.sqlite_version_info < _SOUND and not _warned:
        _warned.append(True)
        logging.getLogger("kvreplay").warning(
            "SQLite %s has the WAL-reset bug (fixed in 3.51.3): if two programs checkpoint and"
            " commit at the same moment, the database may be damaged. kvreplay's own processes take"
            " turns; let no other program write to the database meanwhile",
            sqlite3.sqlite_version,
        )
