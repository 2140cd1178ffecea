"""One LMDB environment of this process: its transactions, and its repairs after a fault.

It knows bytes and transactions. The entries and the expiry index are
:mod:`kvreplay.backends.lmdb.entries`'s, the files :mod:`kvreplay.backends.lmdb.files`'s.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import lmdb

from kvreplay.backends.lmdb.commit import Committer
from kvreplay.backends.lmdb.files import (
    commit_error,
    identity_of,
    open_files,
    store_error,
)
from kvreplay.backends.lmdb.gate import Gate
from kvreplay.backends.lmdb.group_commit import Change, CommitQueue, Transaction
from kvreplay.backends.lmdb.process_lock import ProcessTurn
from kvreplay.errors import (
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from kvreplay.store import Durability

__all__ = ["Block", "Environment", "Transaction"]

T = TypeVar("T")

_CROWDED: Final = 0.75  # of the map, from which a transaction grows it beforehand
_REPAIRS: Final = 3  # in a row, before a read gives up


class Environment:
    """An open environment with its databases, shared by every store on the same files.

    :mod:`kvreplay.backends.lmdb.shared` makes it, counts its users and tells it of forks.
    """

    def __init__(
        self, path: Path, *, map_size: int, durability: Durability, max_readers: int
    ) -> None:
        self.path = path
        self.durability = durability
        self._map_size = map_size
        self._max_readers = max_readers
        self.users = 0
        self._turn = ProcessTurn(path)
        self._queue = CommitQueue(Committer(self), self._turn)
        self._block: Block | None = None  # a caller's transaction, if there is one
        self._inherited: lmdb.Environment | None = None  # by a forked child, to be closed
        self._stranded = False  # a forked child that cannot even close it
        self.gate = Gate(self._open(creating=True), self._reopen, self._check_wait)
        try:
            self.identity = identity_of(path)
        except BaseException:
            self.close()  # LMDB would refuse every later opening in this process
            raise

    def close(self) -> None:
        """Close the files once no transaction is active; a new user's call opens them again."""
        self.gate.alone(self._shut)
        self._queue.shut()

    # Forking: a call that another thread is in would never return in the child.

    def before_fork(self) -> None:
        """Let other threads' transactions end, within reason, and begin no more."""
        self.gate.before_fork(own=self._block is not None and self._block.is_mine)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self.gate.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        """Start without transactions; the parent's handle is closed before the files reopen."""
        inherited, can_close = self.gate.after_fork_in_child()
        self._inherited = inherited or self._inherited
        self._stranded = self._stranded or not can_close
        if self._block is not None:
            self._block.inherited = True
            self._block = None
        # New ones: the end of this thread's block, which leaves the old ones, is then no matter.
        self._turn.close()
        self._turn = ProcessTurn(self.path)
        self._queue = CommitQueue(Committer(self), self._turn)

    # Reading and writing.

    def get(self, key: bytes) -> bytes | None:
        """Return the stored value of one entry, in one short read transaction."""
        gate = self.gate
        gate.inside.append(None)  # as Gate.enter(), without the calls
        try:
            if (env := gate.handle) is not None:
                txn = env.begin()
                try:
                    return txn.get(key, None, self.entries)
                finally:
                    txn.abort()
        except lmdb.Error:
            pass  # repaired and tried again, or explained, by read()
        finally:
            gate.inside.pop()
            if gate.handle is None:
                gate.left.set()
        return self.read(lambda txn: txn.get(key, None, self.entries))

    def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run ``operation``, which must be short, on one snapshot."""
        repairs = 0
        while True:
            env = self.gate.enter()
            try:
                txn = env.begin()
                try:
                    return operation(txn)
                finally:
                    txn.abort()
                    # The failure of an earlier attempt holds this frame, and it the reader slot.
                    del txn
            except lmdb.Error as error:
                failure = error
            finally:
                self.gate.leave()
            repairs += 1
            if repairs > _REPAIRS or not self.repair(env, failure):
                raise store_error(failure, self.path) from failure

    def write(self, operation: Callable[[Transaction], T], size: int = 0) -> T:
        """Run ``operation``, which writes so many bytes, in a write transaction and commit it.

        It shares the commit with others that wait, and may be run again. It waits for the write
        lock of all processes, without a time limit.
        """
        self._refuse_to_wait()
        change = Change(operation, size)
        self._queue.submit((change,))
        if change.error is not None:
            raise change.error
        result: T = change.result
        return result

    def write_each(
        self, operations: Sequence[tuple[Callable[[Transaction], T], int]]
    ) -> list[T | Exception]:
        """Do as :meth:`write` for each of several operations; return their results or errors."""
        self._refuse_to_wait()
        changes = [Change(operation, size) for operation, size in operations]
        self._queue.submit(changes)
        return [change.error or change.result for change in changes]

    @contextlib.contextmanager
    def transaction(self, made_of: Callable[[Block], T]) -> Iterator[T]:
        """A write transaction around a block of the caller's, which is never run again.

        The caller is given what is ``made_of`` it.
        """
        self._refuse_to_wait()
        with self._queue.turn():
            env, txn = self._begin_write()
            block = self._block = Block(self.path, txn)
            committed = False
            try:
                yield made_of(block)
                if block.inherited:
                    raise StoreError(
                        "a forked child cannot commit its parent's transaction: the child changed"
                        " nothing"
                    )
                if block.failure is None:
                    try:
                        self.commit(env, txn)
                        committed = True
                    except (lmdb.Error, OutcomeUnknownError) as error:
                        block.failure = error
            finally:
                block.ended = True
                if not block.inherited:
                    self._block = None
                    if not committed:
                        self.gate.quietly(txn.abort)
                    self.gate.leave()
                    if block.failure is not None:
                        self.repair(env, block.failure)
            # Also if the block itself has hidden it.
            if (failure := block.failure) is not None:
                raise store_error(failure, self.path) from failure.__cause__ or failure

    def _refuse_to_wait(self) -> None:
        """Refuse who would wait for ever, or for nothing."""
        if self._block is not None:
            self.refuse_own_transaction()
        if self._stranded:
            self._refuse_stranded()

    def refuse_own_transaction(self) -> None:
        """A thread that holds a transaction would wait for itself."""
        if (block := self._block) is not None and block.is_mine:
            raise StoreError(
                "this thread holds a transaction of this store: change it through the"
                " transaction; nothing was changed"
            )

    def _begin_write(self) -> tuple[lmdb.Environment, Transaction]:
        """Begin what the caller ends, and then leaves the gate.

        It cannot be run again in a larger map, so a crowded one grows beforehand.
        """
        while True:
            env = self.gate.enter()
            try:
                info = env.info()
                if (info["last_pgno"] + 1) * self._page_size <= _CROWDED * info["map_size"]:
                    return env, env.begin(write=True)
            except lmdb.Error as error:
                self.gate.leave()
                if not self.repair(env, error):
                    raise store_error(error, self.path) from error
            except BaseException:  # an interrupt
                self.gate.leave()
                raise
            else:
                self.gate.leave()
                self.gate.alone(lambda current: self._resize(current, grow=True))

    def commit(self, env: lmdb.Environment, txn: Transaction) -> None:
        """Commit, or raise what became of it: LMDB's own error if the map is full."""
        try:
            txn.commit()
        except lmdb.MapFullError:
            raise  # LMDB has aborted it
        except lmdb.Error as error:
            raise commit_error(env, error, self.path) from error

    # Repairing: growth, another process's growth, a panic, a fork.

    def repair(self, env: lmdb.Environment, error: Exception) -> bool:
        """Mend what can be mended; say whether the operation may be run again."""
        match error:
            case lmdb.MapFullError():
                self.gate.alone(lambda current: self._resize(current, grow=True))
            case lmdb.MapResizedError():  # by another process
                self.gate.alone(lambda current: self._resize(current, grow=False))
            case lmdb.ReadersFullError():
                self._free_reader_slots()
            case lmdb.PanicError():
                self.gate.alone(lambda current: self._shut_if_same(current, env))
            case OutcomeUnknownError():
                self.gate.alone(lambda current: self._shut_if_same(current, env))
                return False
            case _:
                return False
        return True

    def _free_reader_slots(self) -> None:
        """Free what killed processes have left."""
        env = self.gate.enter()
        try:
            # If this fails too, the caller tells that no slot was free.
            with contextlib.suppress(lmdb.Error):
                env.reader_check()
        finally:
            self.gate.leave()

    def _resize(self, env: lmdb.Environment | None, *, grow: bool) -> lmdb.Environment:
        env = env or self._reopen()
        before = env.info()["map_size"]
        try:
            env.set_mapsize(0)  # take over what another process may have grown it to
            if grow and env.info()["map_size"] <= before:
                env.set_mapsize(2 * before)
        except lmdb.Error as error:
            env.close()  # it has no map any more
            raise StoreFullError(
                f"the map of the LMDB store {self.path} has {before} bytes, is full and cannot"
                " grow: nothing was written; raise the limit of this process's address space"
            ) from error
        self._map_size = env.info()["map_size"]
        return env

    # Opening and closing the files: the gate calls these.

    def _open(self, *, creating: bool) -> lmdb.Environment:
        env, self.entries, self.expiry = open_files(
            self.path,
            map_size=self._map_size,
            durability=self.durability,
            max_readers=self._max_readers,
            creating=creating,
        )
        self._page_size = env.stat()["psize"]
        return env

    def _reopen(self) -> lmdb.Environment:
        """Open the files again: after a fault, or a fork, which leaves the parent's handle."""
        if not self.users:
            raise StoreError("this store is closed; nothing was done")
        self._refuse_stranded()
        self._shut_inherited()
        return self._open(creating=False)

    def _refuse_stranded(self) -> None:
        if self._stranded:
            raise StoreError(
                f"this process was forked while its parent was in a transaction of {self.path}: it"
                " cannot use the store; fork when no other thread does, or spawn instead"
            )

    def _check_wait(self) -> None:
        if self._block is not None and self._block.is_mine:
            raise StoreUnavailableError(
                f"the LMDB store {self.path} is being closed or reopened, which waits for this"
                " thread's transaction: nothing was done; end it first"
            )

    def _shut_if_same(
        self, env: lmdb.Environment | None, failed: lmdb.Environment
    ) -> lmdb.Environment | None:
        """Shut the handle that failed, unless another thread has done so."""
        if env is failed:
            failed.close()
            return None
        return env

    def _shut(self, env: lmdb.Environment | None) -> None:
        if env is not None:
            env.close()
        self._shut_inherited()

    def _shut_inherited(self) -> None:
        if self._inherited is not None and not self._stranded:
            self._inherited.close()
            self._inherited = None


class Block:
    """What a caller may do inside a write transaction: run operations, on its thread only."""

    def __init__(self, path: Path, txn: Transaction) -> None:
        self._path = path
        self._txn = txn
        self._thread = threading.get_ident()
        self.failure: Exception | None = None  # LMDB's, that spoiled the transaction
        self.inherited = False  # by a forked child, from the parent whose transaction it is
        self.ended = False

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread began it."""
        return self._thread == threading.get_ident()

    def run(self, operation: Callable[[Transaction], T]) -> T:
        """Run ``operation`` as a part of the transaction."""
        if self.ended:
            raise StoreError("this transaction has ended; nothing was done")
        if self.inherited or not self.is_mine:
            raise StoreError(
                "a transaction belongs to the thread that began it, and not to a forked child;"
                " nothing was done"
            )
        if self.failure is not None:
            raise store_error(self.failure, self._path) from self.failure
        try:
            return operation(self._txn)
        except lmdb.Error as error:
            self.failure = error
            raise store_error(error, self._path) from error
