"""Group commit: writes wait in a queue, and the thread at its head commits for those behind it.

The queue has no thread of its own. The thread whose write is at the head *leads*: it takes its
write and those behind it as a *batch*, commits them in one transaction, and hands over to the next
head. So a write waits for the batch that is being committed, and is in the next one unless that is
full. How an engine takes its turn among the processes and how it commits is its committer's.

What is always true:

* One thread leads at a time. It has the turn to write: the committer's ``lead``, and then the lock
  among processes. Then the committer looks whether the store is still the one that was opened.
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
from typing import Any, Final, Protocol, TypeVar

from kvreplay.backends._support import OwnTransaction, nested_call_error, own_transaction_error
from kvreplay.backends.file_lock import too_long
from kvreplay.backends.lazy_removals import LazyRemovals
from kvreplay.backends.pending import MAX_BYTES, Batch, PendingWrite
from kvreplay.errors import StoreError
from kvreplay.store import Bell

__all__ = ["Committer", "GroupCommit"]

T = TypeVar("T")

_MAX_WRITES: Final = 1000  # in a batch
_LOOK_AGAIN: Final = 1.0  # seconds, until a thread that waits looks: an interrupt may lose its ring
_BUSY: Final = "; other writes of this process came first"


class Committer(Protocol):
    """What an engine's queue commits by. All but the properties is for the thread that leads."""

    lead: Any
    """A re-entrant lock, which the leader holds."""
    busy: dict[int, bool]
    """The threads that are in a call of the queue, which notes them here."""
    removals: LazyRemovals
    """What the next transaction makes before its own writes."""

    @property
    def what(self) -> str:
        """What a write waits for, in words."""

    @property
    def block(self) -> OwnTransaction | None:
        """The caller's transaction that is open, if there is one."""

    def held_by_another(self) -> str:
        """Return which other process has the turn, for a message; nothing if that is not known."""

    def take_turn(self, until: float, bound: float, before_waiting: Callable[[], None]) -> None:
        """Take the turn among processes, and look whether the store is still there.

        Args:
            until: when to give up, by the monotonic clock.
            bound: the seconds from the beginning until then, for the message.
            before_waiting: is called if the turn cannot be had at once.

        Raises:
            StoreError: others have it for too long, or the store is another one; nothing was
                changed.
        """

    def give_back(self, *, brief: bool = False) -> None:
        """Give the turn back, if it was taken; it never fails.

        ``brief``: it was held for a moment only.
        """

    def commit(
        self, batch: Batch, run: Callable[[Any], None], until: float
    ) -> tuple[Exception | None, bool]:
        """Let ``run`` name and run the batch's writes in a transaction, and commit it.

        The batch's fate is set in one step. Only an interrupt is raised. Then the batch is
        committed, or nothing of it has happened.

        Args:
            until: when to give up waiting for other programs, by the monotonic clock.

        Returns:
            Why nothing happened, if so, and whether it may be tried again with another batch.
        """

    def explained(self, failure: Exception) -> Exception:
        """Say in kvreplay's terms why a write did not happen; other exceptions stay as they are."""

    @property
    def is_untidy(self) -> bool:
        """Whether :meth:`tidy` should be called."""

    def tidy(self) -> None:
        """Do what is due now and then, in this process's turn; it may take a while."""


# Loops of what is done under a lock are functions of their own: CPython 3.13 looks for signals in a
# jump back, and may count that jump as outside of the ``with`` that the loop is in.


def _first_to_land(waiting: deque[PendingWrite]) -> PendingWrite | None:
    """Return the first write that has not landed; those before it leave the queue."""
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
    """The pending writes of one store in this process, in the order of their arrival.

    A forked child makes a queue of its own.
    """

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._waiting: deque[PendingWrite] = deque()
        self._landed: deque[PendingWrite] = deque()  # whose threads are still to be woken
        self._changing = _thread.allocate_lock()  # guards the queue
        self._leading = committer.lead
        self._busy = committer.busy

    @property
    def is_busy(self) -> bool:
        """Whether this thread is in a call: it must not wait for itself."""
        return get_ident() in self._busy

    def refuse_nested(self) -> None:
        """Raise for a thread that is in a call."""
        if self.is_busy:
            raise self._nested_call()

    def _nested_call(self) -> StoreError:
        if (block := self._committer.block) is not None and block.is_mine:
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

    def alone(
        self, block: Generator[T, None, None], *, bound: float, in_turn: bool = True
    ) -> Generator[T, None, None]:
        """Wait in the same queue, then lead for a block that commits by itself, or not at all.

        It waits for ``bound`` seconds at most; the block then takes as long as it takes.

        Args:
            in_turn: take the turn among processes too.
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
                    if in_turn:
                        self._take_turn(place)
                    self._withdraw((place,))
                    yield from block
                finally:
                    try:
                        self._committer.give_back()
                    except BaseException:
                        self._committer.give_back()
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

    # Waiting for the lead, and handing it over.

    def _wait_for_lead(self, write: PendingWrite) -> bool:
        """Wait until the write is at the head of the queue; False if it has landed instead."""
        while not write.landed:
            if self._head() is write:
                return True
            write.bell = Bell()
            # A thread that rings has changed what is looked at here before it looks for the bell.
            if not write.landed and self._head() is not write:
                if not write.left:
                    self._give_up(write)
                    self._call_next()  # it may have become the head meanwhile
                if not write.landed:
                    write.bell.wait(min(write.left or _LOOK_AGAIN, _LOOK_AGAIN))
            write.bell = None
        return False

    def _give_up(self, write: PendingWrite) -> None:
        """Withdraw a write that has waited for too long, unless a transaction may have it."""
        held = self._committer.held_by_another() or _BUSY
        with self._changing:  # as is who puts it into a batch
            if write.is_untouched:
                write.error = too_long(self._committer.what, write.bound, held)
                _first_to_land(self._waiting)  # nobody else may come to take it out

    def _head(self) -> PendingWrite | None:
        """Return the first write that has not landed; those before it leave the queue."""
        with self._changing:
            return _first_to_land(self._waiting)

    def _lead(self, own: PendingWrite) -> None:
        """Commit for the head of the queue and those behind it, and hand over."""
        own.leads = True
        committer = self._committer
        try:
            # Only the head waits here, so that the lock passes straight to the next leader.
            if not (self._leading.acquire(blocking=False) or self._wait_behind_leader(own)):
                self._give_up(own)
            elif not own.landed:  # by a leader that took it just then
                try:
                    self._take_turn(own)
                    batch = self._commit(own)
                    if committer.is_untidy:
                        self._wake(batch)
                        committer.tidy()
                except StoreError as error:  # it has no turn, or must not use it
                    own.error = error.with_traceback(None)  # which would reach the write itself
                    batch = ()
                finally:
                    try:
                        committer.give_back(brief=True)
                    except BaseException:
                        committer.give_back()
                        raise
                self._wake_landed()  # of the batch before, if this one was not committed
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
        self._committer.take_turn(own.until, own.bound, self._wake_landed)

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

    def _wake(self, batch: Sequence[PendingWrite]) -> None:
        self._landed.extend(batch)
        self._wake_landed()

    def _withdraw(self, writes: Iterable[PendingWrite]) -> None:
        with self._changing:
            _remove(self._waiting, writes)
        self._call_next()

    # Committing a batch.

    def _commit(self, own: PendingWrite) -> Sequence[PendingWrite]:
        """Let the writes at the head of the queue land, and return them.

        Only an interrupt makes it raise; then some of them may not have landed.
        """
        batch, failure = self._try(self._fill, own)
        if failure is None:
            return batch.writes
        self._wake_landed()  # what follows may take many commits
        if not batch.writes:  # no transaction has even begun
            own.error = self._committer.explained(failure)  # those behind it have their own time
        elif batch.fate.unknown is None:
            for write in batch.writes:
                alone: Exception | None = failure
                if len(batch.writes) > 1:
                    _, alone = self._try(partial(Batch.add, write=write), own)
                if alone is not None and not write.landed:
                    write.error = self._committer.explained(alone)
        return batch.writes

    def _fill(self, batch: Batch) -> None:
        with self._changing:
            _fill(self._waiting, batch)

    def _try(
        self, fill: Callable[[Batch], None], own: PendingWrite
    ) -> tuple[Batch, Exception | None]:
        """Commit a batch, filled once a transaction has begun; return it, and why it failed."""
        removals = self._committer.removals
        again, own_only = True, False
        while again:
            batch = Batch()
            run = partial(self._run, removals, fill, batch, own_only)
            try:
                failure, again = self._committer.commit(batch, run, own.until)
            finally:
                removals.flying.pop(batch, None)
            if batch.boarded:
                if failure is None:
                    removals.forget(batch.boarded)
                elif not (again or own_only or batch.fate.unknown):
                    again = own_only = True  # no write fails because of a lazy removal
        return batch, failure

    def _run(
        self,
        removals: LazyRemovals,
        fill: Callable[[Batch], None],
        batch: Batch,
        own_only: bool,
        txn: Any,
    ) -> None:
        fill(batch)
        # Once it is filled: what is submitted after a lazy removal is in a later batch, or sees it.
        batch.boarded = removals.board(batch, batch.writes, own_only=own_only)
        if batch.boarded:
            removals.make(batch.boarded, txn)
        for write in batch.writes:
            assert write.operation is not None  # a place for a transaction is not taken
            write.result = write.operation(txn)
        if self._landed:
            self._wake_landed()
