"""The turn to write among processes: so that no writer sleeps in LMDB's own lock.

That lock is a robust mutex in shared memory. A process that is killed after it was woken, and
before it got the lock, since another one was faster, takes the wake-up with it: the lock does not
tell any more that others sleep, and they sleep until somebody else has to wait. A ``flock`` is the
kernel's, which forgets a dead waiter and wakes all others.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from kvreplay.errors import StoreUnavailableError

__all__ = ["ProcessTurn"]


def _nothing() -> None:
    pass


class ProcessTurn:
    """A lock on the directory of a store; one thread of this process at a time asks for it.

    Entering it waits for the turn, without a time limit, and may raise StoreUnavailableError. It
    keeps the directory open until :meth:`close`, which the same thread at a time may call.
    ``before_waiting`` is called where another process has the turn.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory: int | None = None
        self.before_waiting: Callable[[], None] = _nothing

    def __enter__(self) -> None:
        try:
            if self._directory is None:
                self._directory = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.before_waiting()
                fcntl.flock(self._directory, fcntl.LOCK_EX)
        except OSError as error:
            self.close()
            raise StoreUnavailableError(
                f"the directory {self._path} cannot be locked: nothing was changed"
                f" ({os.strerror(error.errno or 0)})"
            ) from error
        except BaseException:  # an interrupt, perhaps right after it got the lock
            self.close()
            raise

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._directory is not None:  # or this is a child that was forked meanwhile
            try:
                fcntl.flock(self._directory, fcntl.LOCK_UN)  # also of a copy that a child has
            except OSError:
                self.close()  # which ends the lock, too; it must not deny what was done

    def __del__(self) -> None:
        self.close()  # of a store that was closed while a change was on its way

    def close(self) -> None:
        """Give up the descriptor, and with it the turn, unless somebody has a copy."""
        directory, self._directory = self._directory, None
        if directory is not None:
            try:
                os.close(directory)
            except OSError:
                pass  # Linux gives it back whatever it reports
