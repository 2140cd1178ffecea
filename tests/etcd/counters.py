"""Threads that count up an entry each, and hold the store to what it told them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from kvreplay import KeyNotFoundError, OutcomeUnknownError, StoreUnavailableError
from support.waiting import PATIENCE, until

__all__ = ["A_LITTLE", "Counter", "counting", "until_counted"]

NAMESPACE = ("counters", "")
A_LITTLE = 5.0
"""Seconds, beyond its bound, that a call may take on a machine that is busy."""


@attrs.define
class Counter:
    """One entry that nobody else changes, and what its thread was told.

    Attributes:
        known: what was last seen there.
        possible: what may be there: what is known, and what was sent and never told.
        told: how many changes were acknowledged.
        unknown: how many changes had no known outcome.
        refused: how many calls were refused, as nobody could do them.
        longest: how long a call has taken, in seconds.
        wrong: what must never be.
    """

    store: Any
    key: str
    known: bytes | None = None
    possible: set[bytes | None] = attrs.field(factory=lambda: {None})
    told: int = 0
    unknown: int = 0
    refused: int = 0
    longest: float = 0.0
    wrong: list[str] = attrs.field(factory=list)
    _number: int = 0

    def count_up(self) -> None:
        """Read, and then change what was read."""
        self._number += 1
        new = b"%d" % self._number
        try:
            self.look()
            with self._timed():
                found = self.store.check_and_put(
                    *NAMESPACE, self.key, expected=self.known, value=new
                )
        except OutcomeUnknownError:
            self.unknown += 1
            self.possible.add(new)
        except StoreUnavailableError:
            self.refused += 1
        else:
            if found == self.known:
                self.told += 1
                # What was sent before had expected something else, which never comes back.
                self.known, self.possible = new, {new}
            else:
                self._saw(found)

    def look(self) -> None:
        try:
            with self._timed():
                found = self.store.read(*NAMESPACE, self.key)
        except KeyNotFoundError:
            found = None
        self._saw(found)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.longest = max(self.longest, time.monotonic() - began)

    def _saw(self, found: bytes | None) -> None:
        if found not in self.possible:
            self.wrong.append(f"{found!r} is there, and not one of {self.possible}")
        self.known = found


@contextmanager
def counting(store: Any, *, bound: float, threads: int = 3) -> Iterator[Sequence[Counter]]:
    """Let threads count while the block runs; in the end each entry is what its thread was told.

    Args:
        bound: how long a call may take, in seconds.
    """
    counters = [Counter(store, f"k{number}") for number in range(threads)]
    over = threading.Event()

    def work(counter: Counter) -> None:
        try:
            while not over.is_set():
                counter.count_up()
        except BaseException as error:
            counter.wrong.append(repr(error))
            raise

    workers = [threading.Thread(target=work, args=(each,)) for each in counters]
    for worker in workers:
        worker.start()
    try:
        until_counted(counters)
        yield counters
    finally:
        over.set()
        for worker in workers:
            worker.join(PATIENCE)
    for counter in counters:
        counter.look()
        assert not counter.wrong, counter.wrong
        assert counter.longest < bound + A_LITTLE, f"a call took {counter.longest:.1f} s"


def until_counted(counters: Sequence[Counter], more: int = 3) -> None:
    """Wait until each has counted up so many times more."""
    before = [counter.told for counter in counters]
    until(
        lambda: all(
            counter.told >= was + more or counter.wrong
            for counter, was in zip(counters, before, strict=True)
        )
    )
