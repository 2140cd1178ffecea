"""Call with room for only so many more frames on the stack, 1, 2, 3, ..., until that is enough.

The recursion limit stays as it is. The stack is filled up to it instead, as a program does that
recurses too deep: so the threads of an executor have all their room.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from interrupts.points import Ended

__all__ = ["Depths", "run_steps"]

T = TypeVar("T")


class Depths:
    """Runs a call with little room.

    Args:
        room: how many frames; 0: no limit, and the deepest one is counted.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._deepest = 0

    def run(self, call: Callable[[], Any]) -> Ended:
        """Run a call and tell how it ended. The limit is for what is called by :meth:`enter`."""
        ended = Ended()
        try:
            ended.result = call()
        except BaseException as error:
            ended.error = error
            if self._room and not isinstance(error, ZeroDivisionError):
                ended.point = f"with room for {self._room} frames"
                ended.stack = _stack(error)
        ended.points = self._deepest - 1  # with room for so many it has too little
        return ended

    def enter(self, call: Callable[[], T]) -> T:
        """Make a call that has no more than its room."""
        if self._room:
            return _dive(_room_here() - self._room, call)
        sys.setprofile(self._count)
        try:
            return call()
        finally:
            sys.setprofile(None)

    def _count(self, frame: FrameType | None, event: str, arg: object) -> None:
        depth = 0
        while frame is not None and frame.f_code is not Depths.enter.__code__:
            depth, frame = depth + 1, frame.f_back
        self._deepest = max(self._deepest, depth)


def _room_here(passed: int = 0) -> int:
    """Return for how many frames the caller has room."""
    try:
        return _room_here(passed + 1)
    except RecursionError:
        return passed + 1


def _dive(levels: int, call: Callable[[], T]) -> T:
    return call() if levels <= 1 else _dive(levels - 1, call)


def _stack(error: BaseException) -> list[str]:
    stack: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code is not _dive.__code__:
            stack.insert(0, f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return stack[:12]


async def run_steps(
    coroutine: Coroutine[Any, Any, T], enter: Callable[[Callable[[], Any]], Any]
) -> T:
    """Await a coroutine, each step of which is entered so; the event loop's own code is not."""
    result: T = await _Steps(coroutine, enter)
    return result


class _Steps:
    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], enter: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self._coroutine = coroutine
        self._enter = enter

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        return self._enter(partial(self._coroutine.send, value))

    def throw(self, *error: Any) -> Any:
        return self._enter(partial(self._coroutine.throw, *error))

    def close(self) -> None:
        self._coroutine.close()
