"""Raise at the n-th point at which CPython looks for signals, n = 1, 2, ..., in the main thread.

There is no tracer, so what runs is what runs in production. The signal handler raises its own signal
again by an operator, after which CPython does not look for signals. So it is called again at the
very next point at which CPython looks, and so on: once at each of them.
"""

from __future__ import annotations

import _thread
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import attrs

__all__ = ["Ended", "Points", "TimeLimit"]

SIGNAL: Final = signal.SIGUSR1


class TimeLimit(Exception):
    """What a signal handler raises that is an ``Exception``."""


class _Again:
    __getitem__ = _thread.interrupt_main


_again: Final = _Again()
"""``_again[SIGNAL]`` raises the signal."""


@attrs.define
class Ended:
    """How a call ended: what it returned or raised, and the point at which it was interrupted."""

    result: Any = None
    error: BaseException | None = None
    point: str | None = None
    file: str | None = None
    """Where that point is."""
    stack: list[str] = attrs.field(factory=list)
    points: int = 0
    """Up to the interrupt, or in all if there was none."""


class Points:
    """Runs a call and raises ``error`` at one point.

    Args:
        counts: which points count, by the frame that runs there; by default all.
    """

    def __init__(
        self, error: type[BaseException], counts: Callable[[FrameType], bool] | None = None
    ) -> None:
        self._error = error
        self._counts = counts
        self._armed = False
        self._at = 0
        self._ended = Ended()

    def run(self, call: Callable[[], Any], at: int) -> Ended:
        """Run the call, interrupted at its point number ``at``; 0: at none."""
        self._at = at
        ended = self._ended = Ended()
        before = signal.signal(SIGNAL, self._handle)
        try:
            self._armed = True
            _again[SIGNAL]
            ended.result = call()
        except BaseException as error:
            ended.error = error
        finally:
            self._armed = False
            signal.signal(SIGNAL, before)
        return ended

    def _handle(self, signum: int, frame: FrameType) -> None:
        if not self._armed:
            return
        if self._counts is None or self._counts(frame):
            self._ended.points += 1
            if self._ended.points == self._at:
                self._armed = False
                self._ended.point = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                self._ended.file = frame.f_code.co_filename
                self._ended.stack = _stack(frame)
                raise self._error
        _again[SIGNAL]  # nothing may follow


def _stack(frame: FrameType | None) -> list[str]:
    stack: list[str] = []
    while frame is not None and len(stack) < 12:
        stack.append(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}")
        frame = frame.f_back
    return stack
