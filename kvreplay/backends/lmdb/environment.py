"""One LMDB environment of this process, shared by every store on the same files.

It gives a write to the group commit, and puts a caller's transaction in the same queue. Reads go
straight to the :class:`~kvreplay.backends.lmdb.handle.Handle`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from os import getpid
from typing import Any, TypeVar

import lmdb

from kvreplay.backends._support import (
    LOCK_TIMEOUT,
    OwnTransaction,
)
from kvreplay.backends.group_commit import GroupCommit
from kvreplay.backends.lazy_removals import EVERYWHERE, LazyRemovals, not_removed
from kvreplay.backends.lmdb import entries
from kvreplay.backends.lmdb.committer import Committer
from kvreplay.backends.lmdb.errors import store_error
from kvreplay.backends.lmdb.handle import Handle, Transaction
from kvreplay.backends.pending import NOWHERE, PendingWrite
from kvreplay.errors import StoreError
from kvreplay.store.locks import process_mark

__all__ = ["Block", "Environment"]

T = TypeVar("T")


class Environment:
    """A handle of this process, and the queue of the writes to it.

    :mod:`kvreplay.backends.lmdb.shared` makes it, and counts its users.
    """

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.pid = getpid()  # a forked child makes its own
        self.mark = process_mark()
        self.identity = handle.files.identity, handle.files.id
        self._committer = Committer(handle)
        self.removals = self._committer.removals
        self._queue = GroupCommit(self._committer)

    @property
    def is_idle(self) -> bool:
        """Whether no call of this process is under way."""
        return self._queue.is_idle and self.handle.gate.is_idle

    def write(
        self,
        operation: Callable[[Transaction], T],
        size: int = 0,
        *,
        address: object = None,
        bound: float = LOCK_TIMEOUT,
    ) -> T:
        """Run ``operation``, which writes ``size`` bytes, in a write transaction and commit it.

        It shares the commit with other writes that wait, and may be run again.

        Args:
            address: of the only entry that it reads and changes; ``None``: it may be any.
            bound: how many seconds it waits for the turn to write, at most.

        Raises:
            StoreUnavailableError: the turn did not come; the change never happens.
        """
        write = PendingWrite(operation, size, bound=bound, address=address)
        self._queue.submit((write,))
        if (failure := write.failure) is not None:
            raise failure
        result: T = write.result
        return result

    def write_each(
        self, operations: Sequence[tuple[Callable[[Transaction], T], int, object]], *, bound: float
    ) -> list[T | Exception]:
        """Do as :meth:`write` for each of several operations; return their results or errors."""
        writes = [
            PendingWrite(operation, size, bound=bound, address=address)
            for operation, size, address in operations
        ]
        self._queue.submit(writes)
        return [write.failure or write.result for write in writes]

    def remove_lazily(self, entry: bytes, closing: Sequence[bool]) -> bool:
        """Remember to remove an entry; say whether that was possible."""
        return self.removals.remember(entry, partial(entries.identity_at, self.handle), closing)

    def settle(self, closing: list[bool], *, bound: float) -> StoreError | None:
        """Before a store is closed: make the lazy removals. Return why that failed, if it did.

        In the middle of a call, or of a transaction, of this thread it makes none.
        """
        self.removals.seal(closing)
        if not self._queue.is_busy:
            try:
                self.make_removals(bound=bound)
            except StoreError as error:
                return not_removed(self.removals, error)
        return None

    def in_turn(self, action: Callable[[], T], *, bound: float) -> T:
        """Return ``action()``, which is called while no thread and no other process writes."""
        results = list[T]()

        def act() -> Generator[None, None, None]:
            results.append(action())
            yield

        for _ in self._queue.alone(act(), bound=bound):
            pass
        return results[0]

    def make_removals(self, *, bound: float) -> None:
        """Make the lazy removals that wait."""
        if self.removals.pending:
            make = partial(self.removals.make, self.removals.pending.copy())
            self.write(make, address=NOWHERE, bound=bound)

    def transaction(
        self, made_of: Callable[[Block], T], *, bound: float
    ) -> Generator[T, None, None]:
        """Hold a write transaction for the caller's block, which is never run again.

        Args:
            made_of: makes what the caller is given.
            bound: how many seconds it waits for the turn to write, at most.
        """
        yield from self._queue.alone(self._block(made_of), bound=bound)

    def _block(self, made_of: Callable[[Block], T]) -> Generator[T, None, None]:
        handle, removals = self.handle, self.removals
        block, making = None, True
        while block is None or not block.begun:
            handle.make_room()
            env = handle.opened()
            block = Block(handle, env)
            try:
                with handle.gate.own():
                    if handle.gate.handle is not env:
                        continue
                    try:
                        if block.begin(removals, make_them=making):
                            handle.block = block
                            yield made_of(block)
                            block.commit()
                    finally:
                        handle.block = None
                        block.ended = True
                        try:
                            block.abort()
                        except BaseException:
                            if block.txn is not None and block.pid == getpid():
                                block.txn.abort()
                            raise
            finally:
                removals.flying.pop(block, None)
                failure = block.failure  # even if the caller's code has caught it
                repaired = failure is not None and handle.repair(env, failure)
            if failure is None:
                removals.forget(block.boarded)
            elif block.boarded and not (block.begun or repaired):
                making = False  # no transaction fails because of a lazy removal
            elif block.begun or not repaired:
                cause = failure if isinstance(failure, lmdb.Error) else failure.__cause__
                raise store_error(failure, handle.path) from cause

    def refuse_closing(self) -> None:
        """Raise for a thread that is in a call: closing waits for the end of that."""
        self._queue.refuse_nested()
        self.handle.refuse_to_wait()

    def close(self) -> None:
        """Close the files once no transaction is active; a new user's call opens them again."""
        self.handle.close()
        self._committer.close()


class Block(OwnTransaction):
    """What a caller may do inside a write transaction: run operations, on its thread only."""

    def __init__(self, handle: Handle, env: lmdb.Environment) -> None:
        super().__init__()
        self._handle = handle
        self._env = env
        self.txn: Transaction | None = None
        self.begun = False
        self.boarded: dict[Any, Any] = {}  # the lazy removals that it makes first
        self._committed = False
        self.failure: Exception | None = None  # LMDB's, after which the transaction is lost

    def begin(self, removals: LazyRemovals, *, make_them: bool) -> bool:
        """Begin the transaction, with the lazy removals if so; say whether that went well."""
        try:
            self.txn = self._env.begin(write=True)
            self._handle.check(self._env, self.txn)
            boarded = removals.board(self, EVERYWHERE)
            if make_them:
                self.boarded = boarded
                removals.make(boarded, self.txn)
            self.begun = True
        except (lmdb.Error, StoreError) as error:
            self.failure = error
        return self.begun

    def run(self, operation: Callable[[Transaction], T]) -> T:
        """Run ``operation`` as a part of the transaction."""
        self.check_usable()
        assert self.txn is not None  # else the caller was given nothing
        if self.failure is not None:
            raise store_error(self.failure, self._handle.path) from self.failure
        try:
            return operation(self.txn)
        except lmdb.Error as error:
            self.failure = error
            raise store_error(error, self._handle.path) from error

    def commit(self) -> None:
        """Commit, unless an operation has failed."""
        if self.is_inherited:
            raise StoreError(
                "a forked child cannot commit its parent's transaction: the child changed nothing"
            )
        assert self.txn is not None
        if self.failure is None:
            try:
                self._handle.commit(self.txn)
                self._committed = True
            except (lmdb.Error, StoreError) as error:
                self.failure = self._handle.failed_commit(self._env, error)

    def abort(self) -> None:
        """Undo what is not committed. A second time, and in a forked child, it does nothing."""
        if self.txn is not None and not self._committed and not self.is_inherited:
            self._handle.gate.quietly(self.txn.abort)
