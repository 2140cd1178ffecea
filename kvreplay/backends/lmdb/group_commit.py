"""Group commit: writes wait in a queue, and the thread at its head commits for those behind it.

The queue has no thread of its own. The thread whose write is at the head *leads*: it takes its
write and those behind it as a *batch*, commits them in one transaction, and hands over to the next
head. So a write waits for the batch that is being committed, and is in the next one unless that is
full.

What is always true:

* One thread leads at a time. It has the turn to write: the process lock's ``lead``, and then the
  lock among processes. Then it looks whether the store is still the one that was opened.
* A write stays in the queue until it has landed: it is committed, or has failed for a reason of its
  own. A batch only names the writes at the head of the queue, in the order of their arrival; each
  sees those before it.
* All writes of a batch land in one step, by one assignment. An interrupt comes before it or after.
* No write fails because another one does: if a batch fails before it is written, its writes are run
  again, each in a transaction of its own.
* A write that has waited for too long is withdrawn, and never happens later. Once it is in a batch
  it waits for that: its leader has the turn.
* A pending write without an operation keeps a place for a caller's transaction. It is never part
  of a batch.
* A thread has one call here at a time. A signal handler's or a finalizer's is refused, if its
  thread is in one already.

Who wakes whom: a thread that waits has a bell. When a batch has landed, its threads are not woken
at once. They would only compete for the interpreter's lock with the threads in the queue. The next
leader wakes them when it begins to commit, and they run while it waits for the disk. If no thread
is about to lead, they are woken at once.

Interrupts: what a thread began it withdraws, and it calls the next leader. A wake-up that is lost
costs a moment, since a thread that waits looks again by itself. An interrupt of the leader is its
own: the other writes of its batch are led by the next, unless the batch was committed.
"""

from __future__ import annotations

import _thread
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from itertools import filterfalse
from threading import get_ident
from typing import Final, TypeVar

import lmdb

from kvreplay.backends._support import caused, nested_call_error, own_transaction_error
from kvreplay.backends.file_lock import too_long
from kvreplay.backends.lmdb.errors import store_error
from kvreplay.backends.lmdb.handle import Handle, Transaction
from kvreplay.backends.pending import (
    MAX_BYTES,
    UNKNOWN,
    Batch,
    PendingWrite,
    first_to_land,
    remove,
)
from kvreplay.errors import OutcomeUnknownError, StoreError
from kvreplay.store import Bell

__all__ = ["GroupCommit"]

T = TypeVar("T")

_MAX_WRITES: Final = 1000  # in a batch
_LOOK_AGAIN: Final = 1.0  # seconds, until a thread that waits looks: an interrupt may lose its ring
_BUSY: Final = "; other writes of this process came first"
_FAILURES: Final = (lmdb.Error, StoreError)
"""What an operation raises. Anything else comes from outside: an interrupt of the leader."""


class GroupCommit:
    """The pending writes of one environment, in the order of their arrival."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._process_lock = handle.turn
        self._waiting: deque[PendingWrite] = deque()
        self._landed: deque[PendingWrite] = deque()  # whose threads are still to be woken
        # Of this process only: a forked child makes a queue of its own.
        self._changing = _thread.allocate_lock()  # guards the queue
        self._leading = handle.turn.lead  # held by the leader
        self._busy: dict[int, bool] = {}  # the threads that are in a call

    @property
    def is_busy(self) -> bool:
        """Whether this thread is in a call: it must not wait for itself."""
        return get_ident() in self._busy

    def refuse_nested(self) -> None:
        """Raise for a thread that is in a call."""
        if self.is_busy:
            raise self._nested_call()

    def _nested_call(self) -> StoreError:
        if (block := self._handle.block) is not None and block.is_mine:
            return own_transaction_error()
        return nested_call_error()

    @property
    def is_idle(self) -> bool:
        """Whether nobody is in a call, and nothing waits."""
        return not self._busy and self._head() is None

    def submit(self, writes: Sequence[PendingWrite]) -> None:
        """Return when all of this thread's writes have landed; the thread may lead meanwhile."""
        own = get_ident()
        if own in self._busy:
            raise self._nested_call()
        self._busy[own] = True
        try:
            with self._changing:
                self._waiting.extend(writes)
            self._let_land(writes)
        except BaseException:  # an interrupt; what is in a batch may still be committed
            with self._changing:  # by C calls only: there may be no room for another frame
                self._waiting = deque(filterfalse(set(writes).__contains__, self._waiting))
            self._call_next()
            raise
        finally:
            del self._busy[own]

    def _let_land(self, writes: Sequence[PendingWrite]) -> None:
        for write in writes:
            while self._wait_for_lead(write):
                self._lead(write)

    def alone(self, block: Generator[T, None, None], *, bound: float) -> Generator[T, None, None]:
        """Wait in the same queue, then lead for a block that commits by itself, or not at all.

        It waits for ``bound`` seconds at most; the block then takes as long as it takes.
        """
        own, place = get_ident(), PendingWrite(None, bound=bound)
        if own in self._busy:
            raise self._nested_call()
        self._busy[own] = True
        try:
            with self._changing:
                self._waiting.append(place)
            self._wait_for_lead(place)
            try:
                if not place.landed and not self._leading.acquire(timeout=place.left):
                    self._give_up(place)
                if place.landed:
                    raise place.refusal()
                try:
                    self._take_turn(place)
                    self._withdraw((place,))
                    yield from block
                finally:
                    try:
                        self._process_lock.give_back()
                    except BaseException:
                        self._process_lock.give_back()
                        raise
            finally:
                try:
                    self._leading.release()
                except RuntimeError:
                    pass  # it was not taken
        finally:
            del self._busy[own]
            with self._changing:  # likewise
                if place in self._waiting:
                    self._waiting.remove(place)
            try:
                self._call_next()
            except BaseException:
                self._call_next()
                raise

    def close(self) -> None:
        """Close the file of the lock among processes; the next write opens it again."""
        try:
            if self._leading.acquire(blocking=False):  # else a write is under way, which needs it
                self._process_lock.close()
        finally:
            try:
                self._leading.release()
            except RuntimeError:
                pass  # it was not taken

    # Waiting for the lead, and handing it over.

    def _wait_for_lead(self, write: PendingWrite) -> bool:
        """Wait until the write is at the head of the queue; False if it has landed instead."""
        while not write.landed:
            write.bell = bell = Bell()
            # A thread that rings has changed what is looked at here before it looks for the bell.
            if self._head() is write:
                write.bell = None
                return True
            left = write.left
            if not left:
                self._give_up(write)
            if not write.landed:
                bell.wait(min(left or _LOOK_AGAIN, _LOOK_AGAIN))
            write.bell = None
        return False

    def _give_up(self, write: PendingWrite) -> None:
        """Withdraw a write that has waited for too long, unless a transaction may have it."""
        held = self._process_lock.held_by_another() or _BUSY
        with self._changing:  # as is who puts it into a batch
            if write.is_untouched:
                write.error = too_long(self._process_lock.what, write.bound, held)
                first_to_land(self._waiting)  # nobody else may come to take it out

    def _head(self) -> PendingWrite | None:
        """Return the first write that has not landed; those before it leave the queue."""
        with self._changing:
            return first_to_land(self._waiting)

    def _lead(self, own: PendingWrite) -> None:
        """Commit for the head of the queue and those behind it, and hand over."""
        own.leads = True
        try:
            # Only the head waits here, so that the lock passes straight to the next leader.
            if not (self._leading.acquire(blocking=False) or self._wait_behind_leader(own)):
                self._give_up(own)
            elif not own.landed:  # by a leader that took it just then
                try:
                    self._take_turn(own)
                    batch = self._commit()
                except StoreError as error:  # it has no turn, or must not use it
                    own.error = error.with_traceback(None)  # which would reach the write itself
                    batch = ()
                finally:
                    try:
                        self._process_lock.give_back(brief=True)
                    except BaseException:
                        self._process_lock.give_back()
                        raise
                if self._landed:  # of the batch before, if this one was not committed
                    self._wake_landed()
                self._landed.extend(batch)
        finally:
            try:
                self._leading.release()
            except RuntimeError:
                pass  # it was not taken
            finally:
                self._call_next()

    def _wait_behind_leader(self, own: PendingWrite) -> bool:
        patience = own.left if own.is_untouched else _LOOK_AGAIN
        return bool(self._leading.acquire(timeout=patience))

    def _take_turn(self, own: PendingWrite) -> None:
        """Take the lock among processes, and look whether the store is still there.

        Raises:
            StoreError: others have the lock for too long, or the store is another one; nothing was
                changed.
        """
        if not self._process_lock.take(
            own.until,
            own.bound,
            before_waiting=self._wake_landed,
            when_lost=self._handle.drop_lost,
        ):
            self._handle.confirm()

    def _call_next(self) -> None:
        """Wake the next leader, which wakes those that have landed; if there is none, wake them."""
        head = self._head()
        leads = head is not None and (head.leads or head.wake())
        if head is None or not leads or not head.is_brief:
            self._wake_landed()

    def _wake_landed(self) -> None:
        landed = self._landed
        while landed:
            try:
                landed.popleft().wake()
            except IndexError:  # another thread was faster
                return

    def _withdraw(self, writes: Iterable[PendingWrite]) -> None:
        with self._changing:
            remove(self._waiting, writes)
        self._call_next()

    # Committing a batch.

    def _commit(self) -> Sequence[PendingWrite]:
        """Let the writes at the head of the queue land, and return them.

        Only an interrupt makes it raise; then some of them may not have landed.
        """
        batch, failure = self._try(self._fill)
        if failure is None:
            return batch.writes
        self._wake_landed()  # what follows may take many commits
        if not batch.writes:  # no transaction has even begun
            self._fill(batch)
        if batch.fate.unknown is None:
            for write in batch.writes:
                alone: Exception | None = failure
                if len(batch.writes) > 1:
                    _, alone = self._try(partial(Batch.add, write=write))
                if alone is not None and not write.landed:
                    write.error = self._explained(alone)
        return batch.writes

    def _fill(self, batch: Batch) -> None:
        """Name the first writes of the queue while they fit, up to the place of a transaction."""
        size = 0
        with self._changing:
            for write in self._waiting:
                if write.operation is None:
                    break
                if write.landed:
                    continue
                size += write.size
                if batch.writes and (size > MAX_BYTES or len(batch.writes) >= _MAX_WRITES):
                    break
                batch.add(write)

    def _try(self, fill: Callable[[Batch], None]) -> tuple[Batch, Exception | None]:
        """Commit a batch, filled once a transaction has begun; return it, and why it failed."""
        handle = self._handle
        while True:
            batch = Batch()
            try:
                env = handle.opened()
                with handle.gate.own():
                    if handle.gate.handle is not env:
                        continue
                    failure = self._run(env, batch, fill)
                if failure is None or not handle.repair(env, failure):
                    return batch, failure
            except StoreError as error:  # it cannot be opened, or its map cannot grow
                return batch, error

    def _run(
        self, env: lmdb.Environment, batch: Batch, fill: Callable[[Batch], None]
    ) -> Exception | None:
        """Run and commit the writes' operations; return why none of them happened, if so.

        Only an interrupt is raised. Then the batch is committed, or nothing of it has happened.
        """
        try:
            txn = env.begin(write=True)
        except lmdb.Error as error:
            return error
        failure: Exception | None = None
        try:
            self._handle.check(env, txn)
            fill(batch)
            for write in batch.writes:
                assert write.operation is not None  # a place for a transaction is not taken
                write.result = write.operation(txn)
            if self._landed:
                self._wake_landed()
            try:
                self._handle.commit(txn)
                batch.fate.committed = True
            except _FAILURES as error:
                failure = UNKNOWN  # until more is known
                failure = self._handle.failed_commit(env, error)
        except _FAILURES as error:  # an operation's
            failure = error
        except BaseException:
            if failure is None:  # perhaps it came right after the commit
                batch.fate.committed = _is_over(txn)
            raise
        finally:
            if isinstance(failure, OutcomeUnknownError):
                batch.fate.unknown = failure
            if not batch.fate.committed:
                try:
                    self._handle.gate.quietly(txn.abort)
                except BaseException:
                    txn.abort()
                    raise
        return failure

    def _explained(self, failure: Exception) -> Exception:
        """Say in kvreplay's terms why a write did not happen; other exceptions stay as they are."""
        if isinstance(failure, lmdb.Error):
            return caused(store_error(failure, self._handle.path), failure)
        return failure


def _is_over(txn: Transaction) -> bool:
    """Whether it was committed or aborted."""
    try:
        txn.id()
    except lmdb.Error:
        return True
    return False
