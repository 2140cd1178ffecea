"""The gate before an LMDB handle: many threads use the handle, and it changes while nobody does.

``set_mapsize`` and ``close`` take the map away from open transactions. So a thread that uses the
handle goes through the gate, and a thread that changes the handle closes the gate first.

What is always true:

* The gate is closed exactly while ``handle`` is ``None``. Only the thread that holds ``_lock``
  closes and opens it.
* To enter, a thread announces itself in ``inside`` and only then looks at ``handle``. To close, a
  thread takes ``handle`` away and only then looks at ``inside``. So nobody is overlooked.
* A thread that is inside never waits at the gate.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import lmdb

from kvreplay.store import ForkSafeLock

__all__ = ["Gate"]


class Gate:
    """Guards a handle; it is closed, and the handle ``None``, while the handle changes."""

    def __init__(self, handle: lmdb.Environment) -> None:
        self.handle: lmdb.Environment | None = handle
        self._lock = ForkSafeLock()  # held by the thread that has closed the gate
        self.inside: deque[None] = deque()  # one for each between enter and leave
        self.left = threading.Event()
        self._held_for_fork = False
        self._kept: lmdb.Environment | None = None  # the handle, while it is held for a fork

    def enter(self) -> lmdb.Environment | None:
        """Return the handle, to be followed by one :meth:`leave`; ``None``: the gate is closed."""
        self.inside.append(None)
        if (handle := self.handle) is not None:
            return handle
        self.leave()
        return None

    def leave(self) -> None:
        """Say that the handle, and all that was made with it, is no longer in use."""
        self.inside.pop()
        if self.handle is None:
            self.left.set()

    def reopen(self, make: Callable[[], lmdb.Environment]) -> None:
        """Wait until the gate is open; if there is no handle then, ``make`` a new one."""
        with self._lock:
            if self.handle is None:
                self.handle = make()

    def alone(self, change: Callable[[lmdb.Environment | None], lmdb.Environment | None]) -> None:
        """Replace the handle by ``change(handle)`` while nobody uses it.

        If ``change`` raises, there is no handle, and :meth:`reopen` makes a new one.
        """
        with self._lock:
            handle, self.handle = self.handle, None
            try:
                self._drain(0, None)
            except BaseException:  # an interrupt
                self.handle = handle
                raise
            self.handle = change(handle)

    def quietly(self, action: Callable[[], None]) -> None:
        """Run ``action``, for a thread that is inside, while no other thread is.

        LMDB's Python driver ends ``abort()`` of a write transaction only when it finds no other
        call in progress. Busy readers can delay that for ever.
        """
        held = False
        # If another thread has closed the gate, that is as good: it waits for this thread.
        while self.handle is not None and not (held := self._lock.acquire(timeout=0.01)):
            pass
        if not held:
            return action()
        handle, self.handle = self.handle, None
        try:
            self._drain(1, None)
            action()
        finally:
            self.handle = handle
            self._lock.release()

    # Forking. A call that another thread is in never returns in the child.

    def hold_for_fork(self, own: int, patience: float) -> None:
        """Close the gate, and wait at most ``patience`` seconds until only ``own`` are inside."""
        if self._lock.acquire(timeout=patience):
            self._kept, self.handle = self.handle, None
            self._held_for_fork = True
            self._drain(own, patience)

    def go_on(self) -> None:
        """Open it again, in the parent."""
        if self._held_for_fork:
            self._held_for_fork = False
            self.handle, self._kept = self._kept, None
            self._lock.release()

    def inherited(self, own: int) -> tuple[lmdb.Environment | None, bool]:
        """In a forked child: return the parent's handle, and whether it can be closed.

        It cannot be closed if another thread may have been in a call of it: closing would wait for
        the end of that call.
        """
        handle = self._kept if self._held_for_fork else self.handle
        known = self._held_for_fork or handle is not None  # else it was being changed
        return handle, known and len(self.inside) <= own

    def _drain(self, at_most: int, timeout: float | None) -> bool:
        """Wait, behind the closed gate, until not more than ``at_most`` are inside."""
        while True:
            self.left.clear()
            if len(self.inside) <= at_most:
                return True
            if not self.left.wait(timeout):
                return False
