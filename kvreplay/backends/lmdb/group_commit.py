"""Group commit: changes wait in a queue, and whoever is at its head commits for those behind.

There is no thread of the queue's own. The thread whose change is at the head *leads*: it commits
its change and those behind it in one transaction, and hands over to the next head. So a change
waits for the batch under way and is in the next one, as far as that is not too large.

Whose change has landed is woken when the next leader has made its batch and begins to commit: they
run while it waits for the disk. Woken earlier they would only contend with it for the interpreter's
lock, on which everybody in the queue waits. If nobody is about to lead, they are woken at once.
"""

from __future__ import annotations

import _thread
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import lmdb

from kvreplay.backends.lmdb.process_lock import ProcessTurn
from kvreplay.store import ForkSafeLock

__all__ = ["ALONE", "Batch", "Bell", "Change", "CommitQueue", "Transaction"]

Transaction: TypeAlias = "lmdb.Transaction[bytes]"

_MAX_CHANGES: Final = 1000  # a batch
_MAX_BYTES: Final = 16 * 1024 * 1024  # of values, unless a single one is larger
ALONE: Final = _MAX_BYTES + 1
"""The size of a change that takes long, and shares no commit: nobody waits for it in theirs."""

_LOOK_AGAIN: Final = 1.0  # seconds, until one who waits looks whether an interrupt lost its turn


class Bell:
    """Wakes the one thread that waits for it, also if it begins to wait later."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def wait(self) -> None:
        """Wait until it rings, or for a while."""
        self._lock.acquire(timeout=_LOOK_AGAIN)

    def ring(self) -> None:
        """Wake who waits, or the next one to wait."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it has been rung, and not been heard yet


class Change:
    """One change on its way: it has landed when it is committed, or has failed for itself.

    Args:
        operation: makes the change in a transaction; it may be run again in another one. ``None``
            keeps a place for a transaction of its thread's own.
        size: about how many bytes it writes.
    """

    __slots__ = ("bell", "error", "landed", "leads", "operation", "result", "size")

    def __init__(self, operation: Callable[[Transaction], Any] | None, size: int = 0) -> None:
        self.operation = operation
        self.size = size
        self.bell: Bell | None = None  # while a thread waits for it
        self.leads = False  # its thread waits for the turn
        self.landed = False
        self.result: Any = None  # the operation's
        self.error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """It did not happen, or nobody knows: what its thread is to raise."""
        self.error = error
        self.landed = True

    @property
    def is_brief(self) -> bool:
        """Whether it does not keep others waiting for its own sake."""
        return self.operation is not None and self.size < ALONE

    def wake(self) -> bool:
        """Wake the thread that waits for it; say whether there is one."""
        bell = self.bell
        if bell is None:
            return False
        bell.ring()
        return True


class Batch:
    """The changes that a leader commits together."""

    __slots__ = ("_queue", "changes")

    def __init__(self, queue: CommitQueue) -> None:
        self._queue = queue
        self.changes: list[Change] = []

    def fill(self) -> None:
        """Take from the queue what fits in, up to a thread that wants a transaction of its own."""
        self._queue.move(self.changes)

    def committing(self) -> None:
        """Let those of the batch before run: now comes what takes long."""
        self._queue.wake_landed()


class CommitQueue:
    """The changes of one environment that wait, in the order of their arrival.

    Args:
        commit: called by a leader with an empty batch. It lets everything that is put into it
            land; if it raises, which only an interrupt makes it do, the rest goes back to the
            head of the queue.
        turn: this process's turn among all, which a leader takes.
    """

    def __init__(self, commit: Callable[[Batch], None], turn: ProcessTurn) -> None:
        self._commit = commit
        self._process_turn = turn
        turn.before_waiting = self.wake_landed
        self._waiting: deque[Change] = deque()
        self._landed: Sequence[Change] = ()  # whose threads are still to be woken
        self._leaving = ForkSafeLock(brief=True)  # guards what leaves the queue
        self._turn = ForkSafeLock()  # held by the leader

    def submit(self, changes: Sequence[Change]) -> None:
        """Return when all of this thread's changes have landed, which it may have to lead to."""
        self._waiting.extend(changes)
        try:
            for change in changes:
                while self._await_turn(change):
                    self._lead(change)
        except BaseException:  # an interrupt; what a leader has taken may still be committed
            self._withdraw(changes)
            raise

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait in the same queue for a block that commits on its own, or not at all."""
        place: Change = Change(None)
        self._waiting.append(place)
        try:
            self._await_turn(place)
            with self._turn, self._process_turn:
                self._withdraw((place,))
                yield
        finally:
            if place in self._waiting:  # an interrupt
                self._withdraw((place,))
            self._call_next()

    def shut(self) -> None:
        """Give up what the turn among processes needs, until the next change needs it again."""
        if self._turn.acquire(blocking=False):  # else a change is on its way, and has the say
            try:
                self._process_turn.close()
            finally:
                self._turn.release()

    def move(self, batch: list[Change]) -> None:
        """Move what fits into the batch there; see :meth:`Batch.fill`."""
        size = sum([change.size for change in batch])
        waiting = self._waiting
        with self._leaving:
            while waiting and (head := waiting[0]).operation is not None:
                size += head.size
                if batch and (size > _MAX_BYTES or len(batch) >= _MAX_CHANGES):
                    break
                batch.append(head)
                waiting.popleft()

    def wake_landed(self) -> None:
        """Wake everybody whose change has landed and who still waits."""
        landed, self._landed = self._landed, ()
        for change in landed:
            change.wake()

    def _await_turn(self, change: Change) -> bool:
        """Wait until the change is at the head of the queue; False if it has landed instead."""
        while not change.landed:
            if self._head() is change:
                return True
            change.bell = Bell()
            # Who looks for the bell does so after what is looked for here.
            if not change.landed and self._head() is not change:
                change.bell.wait()
            change.bell = None
        return False

    def _head(self) -> Change | None:
        try:
            return self._waiting[0] if self._waiting else None
        except IndexError:  # it was taken just then
            return None

    def _lead(self, own: Change) -> None:
        """Commit for the head of the queue and those behind it, and hand over."""
        batch = Batch(self)
        try:
            own.leads = True
            # Only the head waits here, so that the lock passes straight to the next leader.
            with self._turn:
                if not own.landed:  # by a leader that was taking it just then
                    with self._process_turn:
                        self._commit(batch)
                    self.wake_landed()  # of the batch before, if this one came to no commit
                    self._landed = batch.changes
        except BaseException:  # an interrupt
            self._put_back(batch.changes)
            raise
        finally:
            self._call_next()

    def _call_next(self) -> None:
        """Wake the next leader, who wakes those that have landed; if there is none, do it now."""
        head = self._head()
        leads = head is not None and (head.leads or head.wake())
        if head is None or not leads or not head.is_brief:
            self.wake_landed()

    def _put_back(self, batch: Sequence[Change]) -> None:
        """Return to the head of the queue what an interrupted leader has taken."""
        with self._leaving:
            left = [each for each in batch if not each.landed and each not in self._waiting]
            self._waiting.extendleft(reversed(left))
        for each in batch:
            each.wake()

    def _withdraw(self, changes: Sequence[Change]) -> None:
        with self._leaving:
            for change in changes:
                try:
                    self._waiting.remove(change)
                except ValueError:
                    pass  # it is not waiting any more
        self._call_next()
