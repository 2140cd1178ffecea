"""An LMDB environment of this process, behind its gate: opened, read, committed to and repaired.

Faults that LMDB reports are repaired here where possible: a full map grows, a map that another
process has grown is taken over, reader slots of killed processes are freed, and an environment
that must not be used any more is opened anew.

So are faults that LMDB does not see, by whoever takes the turn to write (:meth:`Handle.confirm`)
and begins a transaction (:meth:`Handle.check`): files that were removed or replaced, descriptors
that were closed, and a file that was set back in its place. Only the same store, with all that was
in it, is opened anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from typing import Final, TypeAlias, TypeVar

import lmdb

from kvreplay.backends._support import OwnTransaction, caused, nested_call_error
from kvreplay.backends.lmdb.errors import (
    commit_error,
    gone,
    lost_descriptors,
    set_back,
    store_error,
)
from kvreplay.backends.lmdb.files import ID, Files, identity_of, open_files, prepare
from kvreplay.backends.lmdb.gate import Gate
from kvreplay.backends.lmdb.process_lock import ProcessLock
from kvreplay.backends.lmdb.readers import Readers
from kvreplay.errors import (
    CorruptStoreError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from kvreplay.store import Durability, closed_error

__all__ = ["Handle", "Transaction"]

T = TypeVar("T")
Transaction: TypeAlias = "lmdb.Transaction[bytes]"

_CROWDED: Final = 0.75  # of the map; if more is in use, a transaction grows it first
_REPAIRS: Final = 3  # in a row, until a read gives up
_CHANGING: Final = (  # what is repaired while nobody uses the handle
    lmdb.MapFullError,
    lmdb.MapResizedError,
    lmdb.PanicError,
    OutcomeUnknownError,
)


class Handle:
    """An open environment and its databases of entries and of their expiry.

    Args:
        lock_timeout: seconds; how long opening the files waits for the turn to write, at most.
        creating: make the store if there is none.
    """

    files: Files  # that were opened last

    def __init__(
        self,
        path: Path,
        *,
        map_size: int,
        durability: Durability,
        max_readers: int,
        lock_timeout: float,
        creating: bool,
    ) -> None:
        self.path = path
        self.durability = durability
        self.max_readers = max_readers
        self.map_size = map_size
        self.users = 0  # the stores on it; without any it is not opened again
        self.block: OwnTransaction | None = None  # a caller's transaction, if there is one
        self.turn = ProcessLock(path, lock_timeout)
        self._readers = Readers(path)
        self._id: bytes | None = None  # of the store that was opened first
        self._last = 0  # the id of the last transaction that was seen in it
        self._replaced = False  # its content was, below an open environment
        prepare(path, creating=creating)
        try:
            self.turn.while_held(lambda: self._open(creating=creating), making=creating)
            self.gate = Gate(self.files.env)
        except BaseException:
            if hasattr(self, "files"):
                self.files.shut()
            self.turn.close()
            raise

    # Reading.

    def get(self, key: bytes) -> bytes | None:
        """Return the stored value of one entry, in one short read transaction."""
        gate = self.gate
        reading, own = gate.reading, object()  # quick way, for read(): LMDB's rows of bench_hit
        reading[own] = get_ident()
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
            del reading[own]
        return self.read(lambda txn: txn.get(key, None, self.entries))

    def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run ``operation``, which must be short, on one snapshot."""
        repairs = 0
        while True:
            env = self.opened()
            try:
                with self.gate.own():
                    if self.gate.handle is not env:
                        continue
                    txn = env.begin()
                    try:
                        return operation(txn)
                    finally:
                        txn.abort()
                        # A failure holds this frame, and the frame the reader slot.
                        del txn
            except lmdb.Error as error:
                failure = error
            repairs += 1
            if repairs > _REPAIRS or not self.repair(env, failure):
                raise store_error(failure, self.path) from failure

    # Using the environment.

    def opened(self) -> lmdb.Environment:
        """Return the environment, opened anew if need be.

        To use it, a thread goes through the gate, and looks whether it is still the gate's.

        Raises:
            StoreUnavailableError: a call that this thread is in would have to end first.
        """
        while (env := self.gate.handle) is None:
            self.refuse_to_wait()
            # In this order: who has the turn may wait at the gate.
            self.turn.while_held(lambda: self.gate.reopen(self._reopen))
        return env

    def confirm(self) -> None:
        """Look whether what is open is the store at the path; if not, it must be opened anew.

        For a thread that has taken the turn to write, before it begins a transaction.

        Raises:
            StoreUnavailableError: the store is gone. Nothing was changed.
        """
        presence = self.files.presence
        if self.gate.handle is None:
            return
        if presence.is_ours and presence.is_in_place:
            self.turn.watch.settle()
            return
        if identity_of(self.path) is None:
            raise gone(self.path)
        self.refuse_to_wait()
        self._change(self._forget)

    def drop_lost(self) -> None:
        """Drop an environment whose descriptors somebody has closed; it must be opened anew."""
        if self.gate.handle is not None and not self.files.presence.is_ours:
            self.refuse_to_wait()
            self._change(self._forget)

    def _forget(self, env: lmdb.Environment | None) -> None:
        """Shut what is open, but remember how far the store had come."""
        if env is not None:
            with contextlib.suppress(lmdb.Error):
                self._last = max(self._last, env.info()["last_txnid"])
            self.files.shut()

    def check(self, env: lmdb.Environment, txn: Transaction) -> None:
        """Look whether a write transaction that has begun goes on from the last commit.

        LMDB keeps the id of that in its lock file. A copy that was written over ``data.mdb`` has
        another one.

        Raises:
            CorruptStoreError: it does not; nothing was changed.
        """
        info, last = env.info(), txn.id() - 1
        if info["last_txnid"] < last or txn.get(ID, None, self.files.meta) != self._id:
            self._last, self._replaced = last, True
            raise set_back(self.path)
        self._readers.look(env, info["last_pgno"])

    def make_room(self) -> None:
        """Let a crowded map grow, before a transaction begins that cannot be run again."""
        while True:
            env = self.opened()
            try:
                with self.gate.own():
                    if self.gate.handle is not env:
                        continue
                    info = env.info()
                if (info["last_pgno"] + 1) * self.files.page_size <= _CROWDED * info["map_size"]:
                    return
                self._change(lambda current: self._resize(current, grow=True))
            except lmdb.Error as error:
                self.repair_or_raise(env, error)

    def replace(self, change: Callable[[lmdb.Environment], None]) -> None:
        """Let ``change`` shut the files and replace them, while nobody uses the environment.

        If it is shut already, ``change`` is not called. It is opened anew by whoever uses it next.
        """

        def alone(env: lmdb.Environment | None) -> None:
            if env is not None:
                change(env)

        self._change(alone)

    def commit(self, txn: Transaction) -> None:
        """Commit. An ``lmdb.Error`` means that it failed, any other exception came afterwards."""
        txn.commit()

    def failed_commit(self, env: lmdb.Environment, error: Exception) -> Exception:
        """Say what became of a commit that raised: LMDB's own error if the map is full."""
        if isinstance(error, lmdb.Error) and not isinstance(error, lmdb.MapFullError):
            return caused(commit_error(env, error, self.path), error)
        return error  # LMDB has aborted it, if the map is full

    # Repairing.

    def repair_or_raise(self, env: lmdb.Environment, error: Exception) -> None:
        """Repair what can be repaired, or raise what the error means."""
        if not self.repair(env, error):
            raise store_error(error, self.path) from error

    def repair(self, env: lmdb.Environment, error: Exception) -> bool:
        """Repair what can be repaired; say whether the operation may be run again.

        Raises:
            StoreUnavailableError: a call that this thread is in would have to end first.
        """
        if isinstance(error, _CHANGING):
            self.refuse_to_wait()
        match error:
            case lmdb.MapFullError():
                if not self._free_reader_slots():  # which may have kept old pages
                    self._change(lambda current: self._resize(current, grow=True))
            case lmdb.MapResizedError():  # by another process
                self._change(lambda current: self._resize(current, grow=False))
            case lmdb.ReadersFullError():
                self._free_reader_slots()
            case lmdb.PanicError():
                self._change(lambda current: self._shut_if_same(current, env))
            case CorruptStoreError() if self._replaced:
                self._replaced = False
                self._change(lambda current: self._shut_if_same(current, env))
                return False
            case OutcomeUnknownError():
                self._change(lambda current: self._shut_if_same(current, env))
                return False
            case _:
                return False
        return True

    def _free_reader_slots(self) -> int:
        """Free the reader slots that killed processes have left; say how many there were."""
        with self.gate.own():
            # If this fails too, the caller reports that no slot was free.
            if (env := self.gate.handle) is not None:
                with contextlib.suppress(lmdb.Error):
                    return env.reader_check()
        return 0

    def _change(self, change: Callable[[lmdb.Environment | None], lmdb.Environment | None]) -> None:
        self.gate.alone(change, lambda env: self.files.shut())

    def _resize(self, env: lmdb.Environment | None, *, grow: bool) -> lmdb.Environment | None:
        if env is None:  # it was shut meanwhile: whoever opens it anew finds out again
            return None
        try:
            before = env.info()["map_size"]
            try:
                env.set_mapsize(0)  # take over what another process may have grown it to
                if grow and env.info()["map_size"] <= before:
                    env.set_mapsize(2 * before)
            except lmdb.Error as error:  # it has no map any more
                raise StoreFullError(
                    f"the map of the LMDB store {self.path} has {before} bytes, is full and cannot"
                    " grow: nothing was written; raise the limit of this process's address space"
                ) from error
            self.map_size = env.info()["map_size"]
        except BaseException:
            self.files.shut()
            raise
        return env

    # Opening and closing the files.

    def close(self) -> None:
        """Close the files once nobody uses them; a new user's call opens them again."""
        # Even if there is none: an error in the middle of a first call may have left them open.
        self._change(lambda env: self._forget(env or self.files.env))

    def hold_for_fork(self, patience: float) -> None:
        """Before a fork: let no use begin, and wait at most ``patience`` seconds for the others."""
        self.gate.hold_for_fork(patience)

    def abandon(self) -> None:
        """In a forked child: close what is the parent's, so that the files can be opened anew.

        Raises:
            StoreError: the parent was in a call of it, so it can never be closed here.
            StoreUnavailableError: the child has closed its descriptors, and others have their
                numbers.
        """
        env, can_be_closed = self.gate.inherited()
        if not can_be_closed:
            raise StoreError(
                f"this process was forked while its parent was in a transaction of {self.path}: it"
                " cannot use the store; fork when no other thread does, or spawn instead"
            )
        if env is not None and not self.files.shut():
            raise lost_descriptors(self.path)

    def _open(self, *, creating: bool) -> None:
        files = open_files(
            self.path,
            map_size=self.map_size,
            durability=self.durability,
            max_readers=self.max_readers,
            creating=creating,
            expected=self._id,
        )
        try:
            last = files.env.info()["last_txnid"]
            if last < self._last:
                raise set_back(self.path)
        except BaseException:
            files.shut()
            raise
        self.files, self.entries, self.expiry = files, files.entries, files.expiry
        self._id, self._last = files.id, last

    def _reopen(self) -> lmdb.Environment:
        if not self.users:
            raise closed_error()
        self._open(creating=False)
        return self.files.env

    def _shut_if_same(
        self, env: lmdb.Environment | None, failed: lmdb.Environment
    ) -> lmdb.Environment | None:
        """Shut the environment that failed, unless another thread has done so."""
        if env is failed:
            self.files.shut()
            return None
        return env

    def refuse_to_wait(self) -> None:
        """Raise for a thread that is in a call of this environment: it would wait for itself."""
        if self.gate.would_wait_for_itself:
            if self.block is not None and self.block.is_mine:
                raise StoreUnavailableError(
                    f"the LMDB store {self.path} is being closed or reopened, which waits for this"
                    " thread's transaction: nothing was done; end it first"
                )
            raise nested_call_error()
