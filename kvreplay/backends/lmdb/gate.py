"""The gate before an LMDB handle: many use it at a time, and it is changed while nobody does.

``set_mapsize`` and ``close`` pull the map away from under open transactions, and a forked child
must close its parent's handle without harming what the parent's threads are in the middle of.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import lmdb

from kvreplay.store import ForkSafeLock

__all__ = ["FORK_PATIENCE", "Gate"]

FORK_PATIENCE = 10.0
"""Seconds that a fork waits, at most, for what other threads are in the middle of."""


class Gate:
    """Guards a handle; it is closed, and the handle ``None``, while the handle changes.

    Args:
        handle: what it guards.
        reopen: makes a new handle when there is none, behind the closed gate.
        check_wait: called before waiting at a closed gate; may refuse by raising.
    """

    def __init__(
        self,
        handle: lmdb.Environment,
        reopen: Callable[[], lmdb.Environment],
        check_wait: Callable[[], None],
    ) -> None:
        self.handle: lmdb.Environment | None = handle
        self._reopen = reopen
        self._check_wait = check_wait
        self._lock = ForkSafeLock()  # held by who has closed the gate
        self.inside: deque[None] = deque()  # one for each between enter and leave
        self.left = threading.Event()
        self._forking: tuple[bool, bool, lmdb.Environment | None] = (False, False, None)

    def enter(self) -> lmdb.Environment:
        """Wait until it is open; every return is followed by one :meth:`leave`."""
        while True:
            # First announce, then look: whoever closes the gate does it in the other order.
            self.inside.append(None)
            if (handle := self.handle) is not None:
                return handle
            self.leave()
            self._check_wait()
            with self._lock:  # until whoever closed it is done
                if self.handle is None:
                    self.handle = self._reopen()

    def leave(self) -> None:
        """Say that the handle, and all that came of it, is no longer in use."""
        self.inside.pop()
        if self.handle is None:
            self.left.set()

    def alone(self, change: Callable[[lmdb.Environment | None], lmdb.Environment | None]) -> None:
        """Replace the handle by ``change(handle)`` while nobody uses it.

        If ``change`` raises, there is no handle, and whoever enters next makes a new one.
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
        """Run ``action``, for a thread that is inside, while no other one is.

        LMDB's Python driver ends ``abort()`` of a write transaction only when it finds no other
        call in progress, which busy readers can put off for ever.
        """
        held = False
        # A gate that another thread has closed is as good: that thread waits for this one.
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

    def before_fork(self, own: int) -> None:
        """Close the gate and let all but the ``own`` uses of this thread end, within reason."""
        held = self._lock.acquire(timeout=FORK_PATIENCE)
        handle, calm = None, False
        if held:
            handle, self.handle = self.handle, None
            calm = self._drain(own, FORK_PATIENCE)
        self._forking = held, calm, handle

    def after_fork_in_parent(self) -> None:
        """Open it again."""
        held, _, handle = self._forking
        self._forking = (False, False, None)
        if held:
            self.handle = handle
            self._lock.release()

    def after_fork_in_child(self) -> tuple[lmdb.Environment | None, bool]:
        """Leave the gate closed and empty.

        Returns:
            The parent's handle, if it had one, and whether it can be closed without a hang.
        """
        held, calm, handle = self._forking
        self._forking = (False, False, None)
        self.handle = None
        self.inside.clear()
        self.left = threading.Event()
        if held:
            self._lock.release()
        return handle, calm or (held and handle is None)

    def _drain(self, at_most: int, timeout: float | None) -> bool:
        """Wait, behind the closed gate, until only so many are inside."""
        while True:
            self.left.clear()
            if len(self.inside) <= at_most:
                return True
            if not self.left.wait(timeout):
                return False
