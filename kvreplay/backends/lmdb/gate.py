"""The gate before an LMDB handle: many threads use the handle, and it changes while nobody does.

``set_mapsize`` and ``close`` take the map away from open transactions. So a thread that uses the
handle goes through the gate, and a thread that changes the handle closes the gate first.

What is always true:

* The gate is closed exactly while ``handle`` is ``None``. Only the thread that holds ``_lock``
  closes and opens it.
* Each thread has a lock of its own, which it holds while it is inside. To enter, a thread takes its
  lock and only then looks at ``handle``. To close, a thread takes ``handle`` away and only then
  waits for the locks of the others, one after the other. So nobody is overlooked.
* A read that takes moments is noted in ``reading`` instead, by operators, which is cheaper. Who
  closes looks there in the same order, again and again until it has ended.
* A thread that is inside never waits at the gate. It may enter again, as a signal handler does.
* The locks are C's in ``with`` statements, which an interrupt leaves free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from threading import get_ident
from typing import Any, Final

import lmdb

from kvreplay.store.locks import require_room

__all__ = ["Gate"]

_LOOK_AGAIN: Final = 0.0002  # seconds: about as long as a short read takes


class Gate:
    """Guards a handle; it is closed, and the handle ``None``, while the handle changes."""

    def __init__(self, handle: lmdb.Environment) -> None:
        self.handle: lmdb.Environment | None = handle
        self.locks: dict[int, Any] = {}  # of each thread that was ever inside
        self.reading: dict[object, int] = {}  # the thread of each short read
        self._lock: Any = threading.RLock()  # held by the thread that has closed the gate
        self._held_for_fork = False
        self._kept: lmdb.Environment | None = None  # the handle, while it is held for a fork

    def own(self) -> Any:
        """Return this thread's lock: ``with gate.own():`` it is inside, and looks at ``handle``."""
        own = get_ident()
        lock = self.locks.get(own)
        # setdefault is one step: a signal handler of this thread gets the same lock.
        return self.locks.setdefault(own, threading.RLock()) if lock is None else lock

    @property
    def would_wait_for_itself(self) -> bool:
        """Whether this thread is inside, or has closed the gate: it must not wait there."""
        reads = get_ident() in self.reading.values()
        return bool(reads or self.own()._is_owned() or self._lock._is_owned())

    @property
    def is_idle(self) -> bool:
        """Whether the gate is open and no other thread is inside."""
        return self.handle is not None and self._wait_for_others(0)

    def reopen(self, make: Callable[[], lmdb.Environment]) -> None:
        """Wait until the gate is open; if there is no handle then, ``make`` a new one."""
        with self._lock:
            if self.handle is None:
                self.handle = make()

    def alone(
        self,
        change: Callable[[lmdb.Environment | None], lmdb.Environment | None],
        shut: Callable[[lmdb.Environment], object] = lmdb.Environment.close,
    ) -> None:
        """Replace the handle by ``change(handle)`` while nobody uses it.

        If ``change`` raises, the handle is closed by ``shut``, and :meth:`reopen` makes a new one.
        The calling thread must not be inside.
        """
        require_room()  # to shut it
        with self._lock:
            handle, self.handle = self.handle, None
            try:
                self._wait_for_others()
            except BaseException:  # an interrupt
                self.handle = handle
                raise
            try:
                self.handle = change(handle)
            except BaseException:
                if handle is not None:
                    shut(handle)
                raise

    def quietly(self, action: Callable[[], None]) -> None:
        """Run ``action``, for a thread that is inside, while no other thread is.

        LMDB's Python driver ends ``abort()`` of a write transaction only when it finds no other
        call in progress. Busy readers can delay that for ever.
        """
        # If another thread has closed the gate, that is as good: it waits for this thread.
        while self.handle is not None:
            try:
                if self._lock.acquire(timeout=0.01):
                    handle, self.handle = self.handle, None
                    try:
                        self._wait_for_others()
                        action()
                        return
                    finally:
                        self.handle = handle
            finally:
                try:
                    self._lock.release()
                except RuntimeError:
                    pass  # it was not taken
        action()

    # Forking. A call that another thread is in never returns in the child.

    def hold_for_fork(self, patience: float) -> None:
        """Close the gate, and wait at most ``patience`` seconds until no other thread is inside."""
        if self._lock.acquire(timeout=patience):
            self._kept, self.handle = self.handle, None
            self._held_for_fork = True
            self._wait_for_others(patience)

    def go_on(self) -> None:
        """Open it again, in the parent."""
        if self._held_for_fork:
            self._held_for_fork = False
            self.handle, self._kept = self._kept, None
            self._lock.release()

    def inherited(self) -> tuple[lmdb.Environment | None, bool]:
        """In a forked child: return the parent's handle, and whether it can be closed.

        It cannot be closed if another thread may have been in a call of it: closing would wait for
        the end of that call. A transaction in which the parent's thread has forked is not in a
        call. After a fork, Python calls that thread the child's main thread. A fork that ran no
        hooks changes nothing for Python: here it counts as made by the parent's main thread.
        """
        handle = self._kept if self._held_for_fork else self.handle
        known = self._held_for_fork or handle is not None  # else it was being changed
        return handle, known and self._wait_for_others(0, threading.main_thread().ident)

    def _wait_for_others(self, patience: float = -1, besides: int | None = None) -> bool:
        """Wait until no other thread is inside; say whether that is so after ``patience`` seconds.

        A thread that comes after the gate is closed finds no handle, and does not count.
        """
        own = get_ident()
        give_up = time.monotonic() + patience
        for thread, lock in list(self.locks.items()):
            if thread not in (own, besides):
                left = patience if patience <= 0 else max(give_up - time.monotonic(), 0)
                try:
                    if not lock.acquire(left != 0, left or -1):
                        return False
                finally:
                    try:
                        lock.release()
                    except RuntimeError:
                        pass  # it was not taken
        while any(thread not in (own, besides) for thread in list(self.reading.values())):
            if patience >= 0 and give_up <= time.monotonic():
                return False
            time.sleep(_LOOK_AGAIN)
        return True
