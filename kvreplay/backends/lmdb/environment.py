"""One LMDB environment of this process, shared by every store on the same files.

It gives a write to the group commit, and puts a caller's transaction in the same queue. Reads go
straight to the :class:`~kvreplay.backends.lmdb.handle.Handle`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from os import getpid
from pathlib import Path
from typing import TypeVar

import lmdb

from kvreplay.backends._support import OwnTransaction, own_transaction_error
from kvreplay.backends.lmdb.errors import store_error
from kvreplay.backends.lmdb.files import identity_of
from kvreplay.backends.lmdb.group_commit import GroupCommit, PendingWrite
from kvreplay.backends.lmdb.handle import Handle, Transaction
from kvreplay.backends.lmdb.process_lock import ProcessLock
from kvreplay.errors import OutcomeUnknownError, StoreError
from kvreplay.store.locks import process_mark

__all__ = ["Block", "Environment"]

T = TypeVar("T")


class Environment:
    """A handle of this process, and the queue of the writes to it.

    :mod:`kvreplay.backends.lmdb.shared` makes it, and counts its users.
    """

    def __init__(self, handle: Handle) -> None:
        self.pid = getpid()  # a forked child makes its own
        self.mark = process_mark()
        self.handle = handle
        self._queue = GroupCommit(handle, ProcessLock(handle.path))
        try:
            self.identity = identity_of(handle.path)
        except BaseException:
            self.close()  # else LMDB would refuse every later opening in this process
            raise

    def write(self, operation: Callable[[Transaction], T], size: int = 0) -> T:
        """Run ``operation``, which writes ``size`` bytes, in a write transaction and commit it.

        It shares the commit with other writes that wait, and may be run again. It waits for the
        write lock of all processes, without a time limit.
        """
        self.refuse_own_transaction()
        write = PendingWrite(operation, size)
        self._queue.submit((write,))
        if write.error is not None:
            raise write.error
        result: T = write.result
        return result

    def write_each(
        self, operations: Sequence[tuple[Callable[[Transaction], T], int]]
    ) -> list[T | Exception]:
        """Do as :meth:`write` for each of several operations; return their results or errors."""
        self.refuse_own_transaction()
        writes = [PendingWrite(operation, size) for operation, size in operations]
        self._queue.submit(writes)
        return [write.error or write.result for write in writes]

    @contextlib.contextmanager
    def transaction(self, made_of: Callable[[Block], T]) -> Iterator[T]:
        """Hold a write transaction for the caller's block, which is never run again.

        ``made_of`` makes what the caller is given.
        """
        self.refuse_own_transaction()
        handle = self.handle
        with self._queue.alone():
            env, txn = handle.begin_write()
            block = Block(handle.path, txn)
            handle.block = block
            committed = False
            try:
                yield made_of(block)
                if block.is_inherited:
                    raise StoreError(
                        "a forked child cannot commit its parent's transaction: the child changed"
                        " nothing"
                    )
                if block.failure is None:
                    try:
                        handle.commit(env, txn)
                        committed = True
                    except (lmdb.Error, OutcomeUnknownError) as error:
                        block.failure = error
            finally:
                block.ended = True
                if not block.is_inherited:
                    handle.block = None
                    if not committed:
                        handle.gate.quietly(txn.abort)
                    handle.gate.leave()
                    if block.failure is not None:
                        handle.repair(env, block.failure)
            # Even if the caller's code has caught it.
            if (failure := block.failure) is not None:
                raise store_error(failure, handle.path) from failure.__cause__ or failure

    def refuse_own_transaction(self) -> None:
        """Raise for a thread that holds a transaction: it would wait for itself."""
        if (block := self.handle.block) is not None and block.is_mine:
            raise own_transaction_error()

    def close(self) -> None:
        """Close the files once no transaction is active; a new user's call opens them again."""
        self.handle.close()
        self._queue.close()


class Block(OwnTransaction):
    """What a caller may do inside a write transaction: run operations, on its thread only."""

    def __init__(self, path: Path, txn: Transaction) -> None:
        super().__init__()
        self._path = path
        self._txn = txn
        self.failure: Exception | None = None  # LMDB's, after which the transaction is lost

    def run(self, operation: Callable[[Transaction], T]) -> T:
        """Run ``operation`` as a part of the transaction."""
        self.check_usable()
        if self.failure is not None:
            raise store_error(self.failure, self._path) from self.failure
        try:
            return operation(self._txn)
        except lmdb.Error as error:
            self.failure = error
            raise store_error(error, self._path) from error
