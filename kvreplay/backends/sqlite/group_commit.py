"""Group commit: writes wait in a queue, and the thread at its head commits for those behind it.

It has the rules of LMDB's queue (``lmdb/group_commit.py``), and no thread of its own. The thread
whose write is at the head *leads*: it commits its write and those behind it in one transaction, and
hands over to the next head.

What is always true:

* One thread leads at a time. It holds ``writing``, and then the turn among processes.
* A write stays in the queue until it has landed: it is committed, or has failed for a reason of its
  own. A batch only names the writes at the head of the queue, in the order of their arrival.
* All writes of a batch land in one step, by one assignment. An interrupt comes before it or after.
* No write fails because another one does: if a batch fails before it is written, its writes are run
  again, each in a transaction of its own.
* Nobody waits longer than until its deadline. What has waited in vain is taken out of the queue, so
  it never happens later. Once it is in a batch, its end is near, and it waits for that.
* A caller's transaction has a place in the queue, without an operation, until it is over.

Interrupts: what a thread began it withdraws, and it calls the next leader. A wake-up that is lost
costs a moment, since a thread that waits looks again by itself.
"""

from __future__ import annotations

import _thread
import sqlite3
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from itertools import filterfalse
from threading import get_ident
from typing import Any, Final, Protocol, TypeVar

from kvreplay.backends._support import caused, nested_call_error
from kvreplay.backends.file_lock import too_long
from kvreplay.backends.pending import (
    MAX_BYTES,
    UNKNOWN,
    Batch,
    PendingWrite,
    first_to_land,
)
from kvreplay.backends.sqlite.entries import Transaction
from kvreplay.backends.sqlite.errors import store_error
from kvreplay.errors import OutcomeUnknownError, StoreError
from kvreplay.store import Bell

__all__ = ["GroupCommit", "Writer"]

T = TypeVar("T")

_MAX_WRITES: Final = 1000  # in a batch
_LOOK_AGAIN: Final = 1.0  # seconds, until a thread that waits looks: an interrupt may lose its ring
_FAILURES: Final = (sqlite3.Error, StoreError)
"""What an operation raises. Anything else comes from outside: an interrupt of the leader."""


class Writer(Protocol):
    """What the queue commits by. Only its leader uses it."""

    path: str
    lock_timeout: float
    writing: Any
    busy: dict[int, bool]

    def take_turn(self, deadline: float) -> None:
        """Wait for the turn among processes; a StoreError says why it did not come."""

    def give_back(self) -> None:
        """Give the turn back, if it was taken."""

    def begin(self, deadline: float) -> Transaction:
        """Begin a transaction; an error says that none has begun."""

    def commit(self) -> None:
        """Commit it; ``sqlite3.Error`` says that it failed."""

    def failed_commit(self, error: sqlite3.Error) -> StoreError:
        """Say what became of a commit that raised."""

    @property
    def is_open(self) -> bool:
        """Whether a transaction has begun and is neither committed nor undone."""

    def undo(self) -> None:
        """Undo it, if it is open."""

    def committed(self, writes: int, size: int) -> bool:
        """Note a commit; say whether :meth:`tidy` should be called, which may take a while."""

    def tidy(self) -> None:
        """Do what is due now and then, in this process's turn."""


def _fill(waiting: deque[PendingWrite], batch: Batch) -> None:
    """Name the first writes while they fit, up to the place of a transaction."""
    size = 0
    for write in waiting:
        if write.operation is None:
            return
        if write.landed:
            continue
        size += write.size
        if batch.writes and (size > MAX_BYTES or len(batch.writes) >= _MAX_WRITES):
            return
        batch.add(write)


class GroupCommit:
    """The pending writes to one database, in the order of their arrival."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._waiting: deque[PendingWrite] = deque()
        self._landed: deque[PendingWrite] = deque()  # whose threads are still to be woken
        # Of this process only: a forked child makes a queue of its own.
        self._changing = _thread.allocate_lock()  # guards the queue

    @property
    def is_busy(self) -> bool:
        """Whether this thread is in a call: it must not wait for itself."""
        return get_ident() in self._writer.busy

    @property
    def is_idle(self) -> bool:
        """Whether nobody is in a call, and nothing waits."""
        return not self._writer.busy and self._head() is None

    def submit(self, writes: Sequence[PendingWrite]) -> None:
        """Return when all of this thread's writes have landed; the thread may lead meanwhile."""
        own, busy = get_ident(), self._writer.busy
        if own in busy:
            raise nested_call_error()
        busy[own] = True
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
            del busy[own]

    def _let_land(self, writes: Sequence[PendingWrite]) -> None:
        for write in writes:
            while self._wait_for_lead(write):
                self._lead(write)

    def alone(self, block: Generator[T, None, None], *, bound: float) -> Generator[T, None, None]:
        """Wait in the same queue, then lead for a block, which takes its turn itself.

        Its place stays at the head until the block is over, so that others wait with a limit.
        """
        own, busy, place = get_ident(), self._writer.busy, PendingWrite(None, bound=bound)
        if own in busy:
            raise nested_call_error()
        busy[own] = True
        try:
            with self._changing:
                self._waiting.append(place)
            if not self._wait_for_lead(place):
                raise place.error or nested_call_error()
            with self._writer.writing:
                yield from block
        finally:
            del busy[own]
            with self._changing:  # likewise
                if place in self._waiting:
                    self._waiting.remove(place)
            try:
                self._call_next()
            except BaseException:
                self._call_next()
                raise

    # Waiting for the lead, and handing it over.

    def _wait_for_lead(self, write: PendingWrite) -> bool:
        """Wait until the write is at the head of the queue; False if it has landed instead."""
        while not write.landed:
            if self._head() is write:
                return True
            left = write.left
            if not left and self._has_given_up(write):
                self._call_next()
                return False
            write.bell = Bell()
            # A thread that rings has changed what is looked at here before it looks for the bell.
            if not write.landed and self._head() is not write:
                write.bell.wait(min(max(left, 0.01), _LOOK_AGAIN))
            write.bell = None
        return False

    def _has_given_up(self, write: PendingWrite) -> bool:
        """Take a write out of the queue that has waited in vain, unless it is being committed."""
        writer = self._writer
        with self._changing:
            if not write.is_untouched or write.landed:
                return False
            write.error = too_long(f"the turn to write to {writer.path}", write.bound)
        return True

    def _head(self) -> PendingWrite | None:
        """Return the first write that has not landed; those before it leave the queue."""
        with self._changing:
            return first_to_land(self._waiting)

    def _lead(self, own: PendingWrite) -> None:
        """Commit for the head of the queue and those behind it, and hand over."""
        own.leads = True
        writer = self._writer
        try:
            # Only the head waits here, so that the lock passes straight to the next leader.
            with writer.writing:
                if not own.landed:  # by a leader that took it just then
                    try:
                        batch = self._commit(own)
                        self._wake_landed()  # of the batch before, if this one was not committed
                        self._landed.extend(batch.writes)
                        if batch.fate.committed:
                            self._note(batch)
                    finally:
                        try:
                            writer.give_back()
                        except BaseException:
                            writer.give_back()
                            raise
        finally:
            self._call_next()

    def _note(self, batch: Batch) -> None:
        size = sum(write.size for write in batch.writes)
        if self._writer.committed(len(batch.writes), size):
            self._wake_landed()
            self._writer.tidy()

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

    # Committing a batch.

    def _commit(self, own: PendingWrite) -> Batch:
        """Let the writes at the head of the queue land, and return them.

        Only an interrupt makes it raise; then some of them may not have landed.
        """
        try:
            self._writer.take_turn(own.until)
        except StoreError as error:
            own.error = error  # those behind it have their own time
            return Batch()
        batch, failure = self._try(self._fill, own.until)
        if failure is None:
            return batch
        self._wake_landed()  # what follows may take many commits
        if not batch.writes:  # no transaction has even begun
            own.error = self._explained(failure)
        elif batch.fate.unknown is None:
            for write in batch.writes:
                alone: Exception | None = failure
                if len(batch.writes) > 1:
                    _, alone = self._try(partial(Batch.add, write=write), own.until)
                if alone is not None and not write.landed:
                    write.error = self._explained(alone)
        return batch

    def _fill(self, batch: Batch) -> None:
        with self._changing:
            _fill(self._waiting, batch)

    def _try(
        self, fill: Callable[[Batch], None], deadline: float
    ) -> tuple[Batch, Exception | None]:
        """Commit a batch, filled once a transaction has begun; return it, and why it failed.

        Only an interrupt is raised. Then the batch is committed, or nothing of it has happened.
        """
        writer, batch = self._writer, Batch()
        failure: Exception | None = None
        committing = False
        try:
            txn = writer.begin(deadline)
            fill(batch)
            _run(batch, txn)
            self._wake_landed()
            committing = True
            try:
                writer.commit()
                batch.fate.committed = True
            except _FAILURES as error:
                failure = UNKNOWN  # until more is known
                failure = self._failed_commit(error)
        except _FAILURES as error:  # an operation's, or no transaction could begin
            failure = error
        except BaseException:
            if committing and failure is None:  # perhaps it came right after the commit
                batch.fate.committed = not writer.is_open
            raise
        finally:
            if isinstance(failure, OutcomeUnknownError):
                batch.fate.unknown = failure
            if not batch.fate.committed:
                try:
                    writer.undo()
                except BaseException:
                    writer.undo()
                    raise
        return batch, failure

    def _failed_commit(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.Error):
            return self._writer.failed_commit(error)
        return error

    def _explained(self, failure: Exception) -> Exception:
        """Say in kvreplay's terms why a write did not happen; other exceptions stay as they are."""
        if isinstance(failure, sqlite3.Error):
            return caused(store_error(failure, self._writer.path), failure)
        return failure


def _run(batch: Batch, txn: Transaction) -> None:
    for write in batch.writes:
        assert write.operation is not None  # a place for a transaction is not taken
        write.result = write.operation(txn)
    txn.finish()
