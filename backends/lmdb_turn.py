"""The turn to write among processes: so that no writer sleeps in LMDB's own lock.

That lock is a robust mutex in shared memory. A process that is killed after it was woken, and
before it got the lock, since another one was faster, takes the wake-up with it: the lock does not
tell any more that others sleep, and they sleep until somebody else has to wait. A ``flock`` is the
kernel's, which forgets a dead waiter and wakes all others.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from kvreplay.errors import StoreUnavailableError

__all__ = ["ProcessTurn"]


class ProcessTurn:
    """A lock on the directory of a store; one thread of this process at a time asks for it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory: int | None = None

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for the turn, without a time limit, and hold it for a block.

        Raises:
            StoreUnavailableError: there is no directory to lock, or no lock to be had.
        """
        try:
            try:
                self._directory = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(self._directory, fcntl.LOCK_EX)
            except OSError as error:
                raise StoreUnavailableError(
                    f"the directory {self._path} cannot be locked: nothing was changed"
                    f" ({os.strerror(error.errno or 0)})"
                ) from error
            yield
        finally:
            directory, self._directory = self._directory, None
            if directory is not None:  # or this is a child that was forked in the block
                # A failure must not deny what was done; the end of the descriptor is one, too.
                with contextlib.suppress(OSError):
                    fcntl.flock(directory, fcntl.LOCK_UN)  # also of a copy that a child has
                with contextlib.suppress(OSError):
                    os.close(directory)

    def leave_to_parent(self) -> None:
        """In a forked child: give up its copy of what is its parent's turn."""
        directory, self._directory = self._directory, None
        if directory is not None:
            os.close(directory)
