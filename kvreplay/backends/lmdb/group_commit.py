"""Group commit: writes wait in a queue, and the thread at its head commits for those behind it.

The queue has no thread of its own. The thread whose write is at the head *leads*: it takes its
write and those behind it as a *batch*, commits them in one transaction, and hands over to the next
head. So a write waits for the batch that is being committed, and is in the next one unless that is
full.

What is always true:

* One thread leads at a time. It holds ``_leading``, and then the lock among processes.
* A write is in the queue, or in the batch of the leader, or it has landed. It lands when it is
  committed, or when it has failed for a reason of its own.
* A batch is in the order of arrival, so each write sees those before it.
* No write fails because another one does: if a batch fails before it is written, its writes are run
  again, each in a transaction of its own.
* A pending write without an operation keeps a place for a caller's transaction. It is never part
  of a batch.

Who wakes whom: a thread that waits has a bell. When a batch has landed, its threads are not woken
at once. They would only compete for the interpreter's lock with the threads in the queue. The next
leader wakes them when it begins to commit, and they run while it waits for the disk. If no thread
is about to lead, they are woken at once.
"""

from __future__ import annotations

import _thread
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import lmdb

from kvreplay.backends.lmdb.errors import store_error
from kvreplay.backends.lmdb.handle import Handle, Transaction
from kvreplay.backends.lmdb.process_lock import ProcessLock
from kvreplay.errors import OutcomeUnknownError, StoreError
from kvreplay.store import ForkSafeLock

__all__ = ["ALONE", "GroupCommit", "PendingWrite"]

_MAX_WRITES: Final = 1000  # in a batch
_MAX_BYTES: Final = 16 * 1024 * 1024  # of values, unless a single one is larger
ALONE: Final = _MAX_BYTES + 1
"""The size of a write that takes long. It shares no commit, so that no other write waits for it."""

_LOOK_AGAIN: Final = 1.0  # seconds, until a thread that waits looks: an interrupt may lose its ring


class Bell:
    """Wakes the one thread that waits for it, even if that begins to wait later."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def wait(self) -> None:
        """Wait until it rings, but not longer than ``_LOOK_AGAIN``."""
        self._lock.acquire(timeout=_LOOK_AGAIN)

    def ring(self) -> None:
        """Wake the thread that waits, or the next one to wait."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it was rung before, and nobody has waited since


class PendingWrite:
    """One write that waits for its commit.

    Args:
        operation: makes the write in a transaction; it may be run again in another one. ``None``
            keeps a place for a caller's transaction.
        size: about how many bytes it writes.
    """

    __slots__ = ("bell", "error", "landed", "leads", "operation", "result", "size")

    def __init__(self, operation: Callable[[Transaction], Any] | None, size: int = 0) -> None:
        self.operation = operation
        self.size = size
        self.bell: Bell | None = None  # while a thread waits for it
        self.leads = False  # its thread waits to lead
        self.landed = False
        self.result: Any = None  # the operation's
        self.error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Land with an error, which its thread raises: it did not happen, or nobody knows."""
        self.error = error
        self.landed = True

    @property
    def is_brief(self) -> bool:
        """Whether other writes need not wait long for it."""
        return self.operation is not None and self.size < ALONE

    def wake(self) -> bool:
        """Wake the thread that waits for it; say whether there is one."""
        bell = self.bell
        if bell is None:
            return False
        bell.ring()
        return True


class GroupCommit:
    """The pending writes of one environment, in the order of their arrival."""

    def __init__(self, handle: Handle, process_lock: ProcessLock) -> None:
        self._handle = handle
        self._process_lock = process_lock
        self._waiting: deque[PendingWrite] = deque()
        self._landed: Sequence[PendingWrite] = ()  # whose threads are still to be woken
        self._leaving = ForkSafeLock()  # guards what leaves the queue
        self._leading = ForkSafeLock()  # held by the leader

    def submit(self, writes: Sequence[PendingWrite]) -> None:
        """Return when all of this thread's writes have landed; the thread may lead meanwhile."""
        self._waiting.extend(writes)
        try:
            for write in writes:
                while self._wait_for_lead(write):
                    self._lead(write)
        except BaseException:  # an interrupt; what is in a batch may still be committed
            self._withdraw(writes)
            raise

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait in the same queue, then lead for a block that commits by itself, or not at all."""
        place = PendingWrite(None)
        self._waiting.append(place)
        try:
            self._wait_for_lead(place)
            with self._leading:
                try:
                    self._take_process_lock()
                    self._withdraw((place,))
                    yield
                finally:
                    self._process_lock.give_back()
        finally:
            if place in self._waiting:  # an interrupt
                self._withdraw((place,))
            self._call_next()

    def close(self) -> None:
        """Close the file of the lock among processes; the next write opens it again."""
        if self._leading.acquire(blocking=False):  # else a write is under way, which needs it
            try:
                self._process_lock.close()
            finally:
                self._leading.release()

    # Waiting for the lead, and handing it over.

    def _wait_for_lead(self, write: PendingWrite) -> bool:
        """Wait until the write is at the head of the queue; False if it has landed instead."""
        while not write.landed:
            if self._head() is write:
                return True
            write.bell = Bell()
            # A thread that rings has changed what is looked at here before it looks for the bell.
            if not write.landed and self._head() is not write:
                write.bell.wait()
            write.bell = None
        return False

    def _head(self) -> PendingWrite | None:
        try:
            return self._waiting[0] if self._waiting else None
        except IndexError:  # it was taken just then
            return None

    def _lead(self, own: PendingWrite) -> None:
        """Commit for the head of the queue and those behind it, and hand over."""
        batch: list[PendingWrite] = []
        try:
            own.leads = True
            # Only the head waits here, so that the lock passes straight to the next leader.
            with self._leading:
                if not own.landed:  # by a leader that took it just then
                    try:
                        self._take_process_lock()
                        self._commit(batch)
                    finally:
                        self._process_lock.give_back()
                    self._wake_landed()  # of the batch before, if this one was not committed
                    self._landed = batch
        except BaseException:  # an interrupt
            self._put_back(batch)
            raise
        finally:
            self._call_next()

    def _take_process_lock(self) -> None:
        if not self._process_lock.take(wait=False):
            self._wake_landed()  # they must not wait for another process's commit too
            self._process_lock.take(wait=True)

    def _call_next(self) -> None:
        """Wake the next leader, which wakes those that have landed; if there is none, wake them."""
        head = self._head()
        leads = head is not None and (head.leads or head.wake())
        if head is None or not leads or not head.is_brief:
            self._wake_landed()

    def _wake_landed(self) -> None:
        landed, self._landed = self._landed, ()
        for write in landed:
            write.wake()

    # What leaves the queue, and comes back to it.

    def _fill(self, batch: list[PendingWrite]) -> None:
        """Move writes into the batch while they fit, up to the place of a caller's transaction."""
        size = sum([write.size for write in batch])
        waiting = self._waiting
        with self._leaving:
            while waiting and (head := waiting[0]).operation is not None:
                size += head.size
                if batch and (size > _MAX_BYTES or len(batch) >= _MAX_WRITES):
                    break
                batch.append(head)
                waiting.popleft()

    def _put_back(self, batch: Sequence[PendingWrite]) -> None:
        """Return to the head of the queue what an interrupted leader had taken."""
        with self._leaving:
            left = [each for each in batch if not each.landed and each not in self._waiting]
            self._waiting.extendleft(reversed(left))
        for each in batch:
            each.wake()

    def _withdraw(self, writes: Sequence[PendingWrite]) -> None:
        with self._leaving:
            for write in writes:
                try:
                    self._waiting.remove(write)
                except ValueError:
                    pass  # it is not waiting any more
        self._call_next()

    # Committing a batch.

    def _commit(self, batch: list[PendingWrite]) -> None:
        """Take a batch from the queue, and let all of it land.

        Only an interrupt makes it raise; then some of the batch may not have landed.
        """
        failure = self._try(batch, filling=True)
        if failure is None:
            return
        self._wake_landed()  # what follows may take many commits
        if not batch:  # no transaction has even begun
            self._fill(batch)
        if isinstance(failure, OutcomeUnknownError):
            for write in batch:
                write.fail(_caused(OutcomeUnknownError(*failure.args), failure.__cause__))
            return
        for write in batch:
            alone = failure if len(batch) == 1 else self._try([write])
            if alone is not None:
                write.fail(self._explained(alone))

    def _try(self, batch: list[PendingWrite], *, filling: bool = False) -> Exception | None:
        """Commit the batch, ``filling`` it once a transaction has begun; return why it failed."""
        while True:
            try:
                env = self._handle.enter()
            except StoreError as error:
                return error
            try:
                self._run(env, env.begin(write=True), batch, filling)
                return None
            except Exception as error:  # of any class: the writes' own threads raise it
                failure = error
            finally:
                self._handle.gate.leave()
            try:
                if not self._handle.repair(env, failure):
                    return failure
            except StoreError as error:  # the map cannot grow
                return error

    def _run(
        self, env: lmdb.Environment, txn: Transaction, batch: list[PendingWrite], filling: bool
    ) -> None:
        """Run and commit the writes' operations: all have landed, or none has happened."""
        try:
            if filling:
                self._fill(batch)
            for write in batch:
                assert write.operation is not None  # a place for a transaction is not taken
                write.result = write.operation(txn)
            if filling:
                self._wake_landed()
            self._handle.commit(env, txn)
        except BaseException as error:
            if not _is_over(txn):
                self._handle.gate.quietly(txn.abort)
                raise
            if isinstance(error, Exception):
                raise  # the commit failed
            _land(batch)  # an interrupt came right after the commit
            raise
        _land(batch)

    def _explained(self, failure: Exception) -> Exception:
        """Say in kvreplay's terms why a write did not happen; other exceptions stay as they are."""
        if isinstance(failure, lmdb.Error):
            return _caused(store_error(failure, self._handle.path), failure)
        return failure


def _land(batch: Sequence[PendingWrite]) -> None:
    for write in batch:
        write.landed = True


def _is_over(txn: Transaction) -> bool:
    """Whether it was committed or aborted."""
    try:
        txn.id()
    except lmdb.Error:
        return True
    return False


def _caused(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error
