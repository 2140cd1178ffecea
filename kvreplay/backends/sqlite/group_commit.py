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
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from threading import get_ident
from typing import Any, Final, Protocol, TypeVar

from kvreplay.backends._support import nested_call_error
from kvreplay.backends.file_lock import too_long
from kvreplay.backends.sqlite.entries import Transaction
from kvreplay.backends.sqlite.errors import caused, store_error
from kvreplay.errors import OutcomeUnknownError, StoreError
from kvreplay.store import Bell

__all__ = ["ALONE", "GroupCommit", "PendingWrite", "Writer"]

T = TypeVar("T")

MAX_BYTES: Final = 16 * 1024 * 1024  # of values in a batch, unless a single one is larger
ALONE: Final = MAX_BYTES + 1
"""The size of a write that takes long. It shares no commit, so that no other write waits for it."""
_MAX_WRITES: Final = 1000  # in a batch
_LOOK_AGAIN: Final = 1.0  # seconds, until a thread that waits looks: an interrupt may lose its ring
_FAILURES: Final = (sqlite3.Error, StoreError)
"""What an operation raises. Anything else comes from outside: an interrupt of the leader."""
_UNKNOWN: Final = OutcomeUnknownError(
    "a commit failed, and its thread was interrupted before it knew whether it had happened: read"
    " again before deciding; what was stored before is intact"
)


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


class Fate:
    """What became of a transaction, for all the writes in it. It does not know them."""

    __slots__ = ("committed", "unknown")

    def __init__(self) -> None:
        self.committed = False
        self.unknown: OutcomeUnknownError | None = None


_NONE_YET: Final = Fate()


class PendingWrite:
    """One write that waits for its commit.

    Args:
        operation: makes the write in a transaction; it may be run again in another one. ``None``
            keeps a place for a caller's transaction.
        deadline: until when it waits, on the monotonic clock.
        size: about how many bytes it writes.
    """

    __slots__ = ("bell", "deadline", "error", "fate", "leads", "operation", "result", "size")

    def __init__(
        self, operation: Callable[[Transaction], Any] | None, deadline: float, size: int = 0
    ) -> None:
        self.operation = operation
        self.deadline = deadline
        self.size = size
        self.bell: Bell | None = None  # while a thread waits for it
        self.leads = False  # its thread waits to lead
        self.fate = _NONE_YET  # of the latest transaction that it was in
        self.result: Any = None  # the operation's
        self.error: Exception | None = None  # its own: it did not happen

    @property
    def landed(self) -> bool:
        """Whether it is known what became of it, as far as it ever will be."""
        fate = self.fate
        return fate.committed or self.error is not None or fate.unknown is not None

    @property
    def failure(self) -> Exception | None:
        """Why it did not happen, or that nobody knows; for its own thread to raise."""
        if (unknown := self.fate.unknown) is not None:
            return caused(OutcomeUnknownError(*unknown.args), unknown.__cause__)
        return self.error

    def wake(self) -> bool:
        """Wake the thread that waits for it; say whether there is one."""
        bell = self.bell
        if bell is None:
            return False
        bell.ring()
        return True


class Batch:
    """Writes that share a transaction."""

    __slots__ = ("fate", "writes")

    def __init__(self) -> None:
        self.fate = Fate()
        self.writes: list[PendingWrite] = []

    def add(self, write: PendingWrite) -> None:
        """Name one more, in the order of arrival."""
        write.fate = self.fate
        self.writes.append(write)


# Loops of what is done under a lock are functions of their own: CPython 3.13 looks for signals in a
# jump back, and may count that jump as outside of the ``with`` that the loop is in.


def _first_to_land(waiting: deque[PendingWrite]) -> PendingWrite | None:
    while waiting and waiting[0].landed:
        waiting.popleft()
    return waiting[0] if waiting else None


def _remove(waiting: deque[PendingWrite], writes: Iterable[PendingWrite]) -> None:
    for write in writes:
        if write in waiting:
            waiting.remove(write)


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
            self._withdraw(writes)
            raise
        finally:
            del busy[own]

    def _let_land(self, writes: Sequence[PendingWrite]) -> None:
        for write in writes:
            while self._wait_for_lead(write):
                self._lead(write)

    def alone(self, deadline: float, block: Generator[T, None, None]) -> Generator[T, None, None]:
        """Wait in the same queue, then lead for a block, which takes its turn itself.

        Its place stays at the head until the block is over, so that others wait with a limit.
        """
        own, busy, place = get_ident(), self._writer.busy, PendingWrite(None, deadline)
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
            try:
                self._withdraw((place,))
            except BaseException:
                self._withdraw((place,))
                raise

    # Waiting for the lead, and handing it over.

    def _wait_for_lead(self, write: PendingWrite) -> bool:
        """Wait until the write is at the head of the queue; False if it has landed instead."""
        while not write.landed:
            if self._head() is write:
                return True
            left = write.deadline - time.monotonic()
            if left <= 0 and self._has_given_up(write):
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
            if write.fate is not _NONE_YET or write.landed:
                return False
            write.error = too_long(f"the turn to write to {writer.path}", writer.lock_timeout)
        return True

    def _head(self) -> PendingWrite | None:
        """Return the first write that has not landed; those before it leave the queue."""
        with self._changing:
            return _first_to_land(self._waiting)

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
        if head is None or not leads or head.operation is None or head.size >= ALONE:
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
            _remove(self._waiting, writes)
        self._call_next()

    # Committing a batch.

    def _commit(self, own: PendingWrite) -> Batch:
        """Let the writes at the head of the queue land, and return them.

        Only an interrupt makes it raise; then some of them may not have landed.
        """
        try:
            self._writer.take_turn(own.deadline)
        except StoreError as error:
            own.error = error  # those behind it have their own time
            return Batch()
        batch, failure = self._try(self._fill, own.deadline)
        if failure is None:
            return batch
        self._wake_landed()  # what follows may take many commits
        if not batch.writes:  # no transaction has even begun
            own.error = self._explained(failure)
        elif batch.fate.unknown is None:
            for write in batch.writes:
                alone: Exception | None = failure
                if len(batch.writes) > 1:
                    _, alone = self._try(partial(Batch.add, write=write), own.deadline)
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
                failure = _UNKNOWN  # until more is known
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
