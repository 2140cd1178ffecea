"""Waiting for what happens, never for some time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvreplay.backends.file_lock import FileLock

__all__ = ["PATIENCE", "HeldTransaction", "until", "until_somebody_waits_for"]

PATIENCE = 60.0
"""Seconds after which something that has not happened is taken for a deadlock."""


def until(true: Callable[[], Any], patience: float = PATIENCE) -> None:
    """Wait until something is true, for so many seconds at most."""
    give_up = time.monotonic() + patience
    while not true():
        assert time.monotonic() < give_up, "it never came true"
        os.sched_yield()


def until_somebody_waits_for(path: Path) -> None:
    """Wait until a process or a thread waits for a file lock that another one holds."""
    file = FileLock(str(path), os.O_RDWR)
    until(file._others_wait)
    file.close()


class HeldTransaction:
    """A transaction on a thread of its own, which stays open until it is let go."""

    def __init__(self, store: Any, *written: bytes) -> None:
        """Return when it is open, and has written the values to the entry ``p/s/k``."""
        self._store, self._written = store, written
        self._inside, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold)
        self._thread.start()
        assert self._inside.wait(PATIENCE)

    def _hold(self) -> None:
        with self._store.transaction() as txn:
            for value in self._written:
                txn.write("p", "s", "k", value)
            self._inside.set()
            assert self._leave.wait(PATIENCE)

    def let_go(self) -> None:
        self._leave.set()

    def end(self) -> None:
        """Let it go, and wait until it is committed."""
        self.let_go()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
