"""The runs of one replay whose handlers have begun: what ``close()`` waits for."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import get_ident
from typing import Final

from kvreplay._protocol.keys import ReplayKey
from kvreplay.errors import ReplayClosedError
from kvreplay.events import logger
from kvreplay.store import Bell
from kvreplay.store.locks import ProcessMark, this_process

__all__ = ["Running"]

_LOOK_AGAIN: Final = 1.0
"""Seconds: an interrupt may lose a wake-up."""


class Running:
    """The runs that have called their handlers and have not ended. A forked child has none."""

    def __init__(self) -> None:
        # With the process and the thread of each.
        self._runs: dict[object, tuple[ReplayKey, ProcessMark, int]] = {}
        self._bells: dict[Bell, None] = {}
        self.is_closed = False

    def check_open(self) -> None:
        """Refuse to begin a handler after ``close()``.

        Raises:
            ReplayClosedError: it was called.
        """
        if self.is_closed:
            raise ReplayClosedError(
                "this replay was closed, so no handler begins any more: nothing ran, and the key is"
                " as it was; ask another process, or ask again after the restart"
            )

    def begin(self, run: object, key: ReplayKey) -> None:
        """Note that a run is about to call its handler.

        Raises:
            ReplayClosedError: ``close()`` was called. If that comes just now, it waits for this
                run, or this run is refused.
        """
        self._runs[run] = key, this_process(), get_ident()
        try:
            self.check_open()
        except ReplayClosedError:
            self.end(run)
            raise

    def end(self, run: object) -> None:
        """Note that it has ended; a second call does nothing."""
        if self._runs.pop(run, None) is not None:
            for bell in list(self._bells):
                bell.ring()

    def close(self, namespace: str, timeout: int | None, monotonic: Callable[[], float]) -> int:
        """Let no handler begin any more, wait for those that run, and log those that are left.

        A handler on this very thread has called this, or a signal handler that interrupted it has:
        it cannot end meanwhile, so it is left.

        Args:
            timeout: for how long to wait (ms); ``None``: no limit.

        Returns:
            How many are left.
        """
        self.is_closed = True
        bell = Bell()
        end = math.inf if timeout is None else monotonic() + timeout / 1000
        try:
            self._bells[bell] = None
            left = self._left_at(end, bell, monotonic)
        finally:
            self._bells.pop(bell, None)
        for key in left:
            logger().warning(
                "close() of %r left a handler running (%s): if this process ends now, its key is in"
                " doubt",
                namespace,
                key.digest(),
            )
        return len(left)

    def _left_at(self, end: float, bell: Bell, monotonic: Callable[[], float]) -> list[ReplayKey]:
        """Wait until no handler runs, but not beyond ``end``; return the keys that are left.

        The loop has a function of its own for the sake of interrupts: see ``test_loops.py``.
        """
        own = get_ident()
        while self._left(beside=own) and (time_left := end - monotonic()) > 0:
            bell.wait(min(time_left, _LOOK_AGAIN))
        return self._left()

    def _left(self, beside: int | None = None) -> list[ReplayKey]:
        return [
            key
            for key, process, thread in list(self._runs.values())
            if process[0] and thread != beside
        ]
