"""Answer what a generator yields: with blocking calls, or with awaits.

So an engine that has both faces writes each decision once, in a generator that does no I/O.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from kvreplay.errors import StoreError

__all__ = ["drive", "drive_awaited"]

T = TypeVar("T")
Asked = TypeVar("Asked")
Told = TypeVar("Told")

Thrown = type[Exception] | tuple[type[Exception], ...]


def drive(
    steps: Generator[Asked, Told, T], answer: Callable[[Asked], Told], thrown: Thrown = StoreError
) -> T:
    """Answer what a generator asks until it returns or raises.

    Args:
        thrown: what is thrown into it, if an answer raises it.
    """
    resume: Callable[[Any], Asked] = steps.send
    told: Any = None
    while True:
        try:
            asked = resume(told)
        except StopIteration as end:
            value: T = end.value
            return value
        try:
            resume, told = steps.send, answer(asked)
        except thrown as error:
            resume, told = steps.throw, error


async def drive_awaited(
    steps: Generator[Asked, Told, T],
    answer: Callable[[Asked], Awaitable[Told]],
    thrown: Thrown = StoreError,
) -> T:
    """Do as :func:`drive`, with answers that are awaited."""
    resume: Callable[[Any], Asked] = steps.send
    told: Any = None
    while True:
        try:
            asked = resume(told)
        except StopIteration as end:
            value: T = end.value
            return value
        try:
            resume, told = steps.send, await answer(asked)
        except thrown as error:
            resume, told = steps.throw, error
