"""Group commit: changes wait in a queue, and whoever is at its head commits for those behind.

There is no thread of the queue's own. The thread whose change is at the head *leads*: it commits
its change and those behind it in one transaction, and hands over to the next head. So a change
waits for the batch under way and is in the next one, as far as that is not too large.
"""

from __future__ import annotations

import _thread
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeAlias, TypeVar

import lmdb

from kvreplay.backends.lmdb_turn import ProcessTurn
from kvreplay.store import ForkSafeLock

__all__ = ["ALONE", "Bell", "Change", "CommitQueue", "Take", "Transaction"]

Transaction: TypeAlias = "lmdb.Transaction[bytes]"
T = TypeVar("T")
Take = Callable[["list[Change[Any]]"], None]

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


class Change(Generic[T]):
    """One change on its way: it has landed when it is committed, or has failed for itself.

    Args:
        operation: makes the change in a transaction; it may be run again in another one. ``None``
            keeps a place for a transaction of its thread's own.
        size: about how many bytes it writes.
        bell: that of the thread that waits for it.
    """

    __slots__ = ("bell", "error", "landed", "operation", "result", "size")

    def __init__(
        self, operation: Callable[[Transaction], T] | None, size: int = 0, bell: Bell | None = None
    ) -> None:
        self.operation = operation
        self.size = size
        self.bell = bell or Bell()
        self.landed = False
        self.result: T | None = None
        self.error: Exception | None = None

    def land(self, result: T) -> None:
        """It is committed."""
        self.result = result
        self.landed = True

    def fail(self, error: Exception) -> None:
        """It is not, or nobody knows: what its thread is to raise."""
        self.error = error
        self.landed = True


class CommitQueue:
    """The changes of one environment that wait, in the order of their arrival.

    Args:
        commit: called by a leader with an empty batch, and with what adds to it from the queue.
            It lets everything that it took land; if it raises, which only an interrupt makes it
            do, the rest goes back to the head of the queue.
        turn: this process's turn among all, which a leader takes.
    """

    def __init__(
        self, commit: Callable[[list[Change[Any]], Take], None], turn: ProcessTurn
    ) -> None:
        self._commit = commit
        self._process_turn = turn
        self._waiting: deque[Change[Any]] = deque()
        self._leaving = ForkSafeLock(brief=True)  # guards what leaves the queue
        self._turn = ForkSafeLock()  # held by the leader

    def submit(self, changes: Sequence[Change[Any]]) -> None:
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
        place: Change[None] = Change(None)
        self._waiting.append(place)
        try:
            self._await_turn(place)
            with self._turn, self._process_turn:
                self._withdraw((place,))
                yield
        finally:
            self._withdraw((place,))
            self._call_next()

    def _await_turn(self, change: Change[Any]) -> bool:
        """Wait until the change is at the head of the queue; False if it has landed instead."""
        while not change.landed:
            if self._head() is change:
                return True
            change.bell.wait()
        return False

    def _head(self) -> Change[Any] | None:
        try:
            return self._waiting[0]
        except IndexError:
            return None

    def _lead(self, own: Change[Any]) -> None:
        """Commit for the head of the queue and those behind it, and hand over."""
        batch: list[Change[Any]] = []
        try:
            # Only the head waits here, so that the lock passes straight to the next leader.
            with self._turn:
                if not own.landed:  # by a leader that was taking it just then
                    with self._process_turn:
                        self._commit(batch, self._take)
        finally:
            self._put_back([change for change in batch if not change.landed])
            self._call_next()
            if len(batch) > 1:
                for bell in {change.bell for change in batch} - {own.bell}:
                    bell.ring()

    def _take(self, batch: list[Change[Any]]) -> None:
        """Add what fits into the batch, up to a thread that wants a transaction of its own."""
        size = sum([change.size for change in batch])
        with self._leaving:
            while (head := self._head()) is not None and head.operation is not None:
                size += head.size
                if batch and (size > _MAX_BYTES or len(batch) >= _MAX_CHANGES):
                    break
                batch.append(self._waiting.popleft())

    def _put_back(self, changes: list[Change[Any]]) -> None:
        if changes:
            with self._leaving:
                self._waiting.extendleft(reversed(changes))

    def _withdraw(self, changes: Sequence[Change[Any]]) -> None:
        with self._leaving:
            for change in changes:
                try:
                    self._waiting.remove(change)
                except ValueError:
                    pass  # it is not waiting any more
        self._call_next()

    def _call_next(self) -> None:
        head = self._head()
        if head is not None:
            head.bell.ring()
