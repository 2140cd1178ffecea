"""Actions on threads of their own, so that a store that hangs makes its test fail and end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import pytest

__all__ = ["PATIENCE", "Running", "at_once", "elsewhere", "watched_by"]

T = TypeVar("T")

PATIENCE = 60.0
"""After so many seconds, an action that has not come back counts as a deadlock."""


class Running(Generic[T]):
    """An action on a thread that does not keep the interpreter from ending."""

    def __init__(self, action: Callable[[], T]) -> None:
        self._action = action
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._action())
        except BaseException as error:  # result() raises it
            self._error = error

    @property
    def over(self) -> bool:
        """Whether the action has come back."""
        return not self._thread.is_alive()

    def result(self) -> T:
        """Wait for the action; return what it returned, or raise what it raised."""
        self._thread.join(PATIENCE)
        if not self.over:
            pytest.fail(f"it has not come back in {PATIENCE:g} s: a deadlock")
        if self._error is not None:
            raise self._error
        return self._results[0]


def elsewhere(action: Callable[[], T]) -> T:
    """Run an action on another thread; return its result."""
    return Running(action).result()


def at_once(*actions: Callable[[], T]) -> list[T]:
    """Run actions that begin together, each on its own thread; return their results."""
    start = threading.Barrier(len(actions))

    def with_the_others(action: Callable[[], T]) -> Callable[[], T]:
        def act() -> T:
            start.wait(PATIENCE)
            return action()

        return act

    with _switching_often():
        running = [Running(with_the_others(action)) for action in actions]
        return [each.result() for each in running]


@contextmanager
def watched_by(*looks: Callable[[], object]) -> Iterator[None]:
    """While a block runs, threads look again and again; its end raises what they raised."""
    done = threading.Event()

    def again_and_again(look: Callable[[], object]) -> Callable[[], None]:
        def watch() -> None:
            while not done.is_set():
                look()
            look()

        return watch

    with _switching_often():
        watchers = [Running(again_and_again(look)) for look in looks]
        try:
            yield
        finally:
            done.set()
        for watcher in watchers:
            watcher.result()


@contextmanager
def _switching_often() -> Iterator[None]:
    """Let another thread run between any two steps."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
