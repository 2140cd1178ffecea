"""Renew the leases of running handlers, from one thread of a ``Replay`` that asked for it."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import attrs

from kvreplay._protocol.flow import renew
from kvreplay._protocol.steps import HeldClaim
from kvreplay._runtime.blocking import drive
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import ReplayNamespace
from kvreplay.events import logger

__all__ = ["RENEWALS_PER_LEASE", "Renewer"]

RENEWALS_PER_LEASE: Final = 3
"""So that two may fail before the lease is over."""


@attrs.define(eq=False)
class _Holding:
    held: HeldClaim
    run: Run
    due: float  # time.monotonic()
    renewing: bool = False


class Renewer:
    """Holds claims while their handlers run. Its thread lives while there is one to hold."""

    def __init__(self, namespace: ReplayNamespace) -> None:
        self._lease = namespace.policy.lease or 0
        self._interval = self._lease / RENEWALS_PER_LEASE / 1000
        self._holdings: list[_Holding] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        _renewers.add(self)

    def forget(self) -> None:
        """In a forked child: what the parent's threads hold is the parent's to renew."""
        self._holdings = []
        self._changed = threading.Condition()
        self._thread = None

    @contextmanager
    def __call__(self, held: HeldClaim, run: Run) -> Iterator[None]:
        """Renew the claim until the block ends; no renewal is under way after it."""
        holding = _Holding(held, run, time.monotonic() + self._interval)
        try:
            with self._changed:
                self._holdings.append(holding)
                if self._thread is None:
                    thread = threading.Thread(
                        target=self._work, name="kvreplay-renewer", daemon=True
                    )
                    thread.start()
                    self._thread = thread
                self._changed.notify_all()
            yield
        finally:
            with self._changed:
                if holding in self._holdings:
                    self._holdings.remove(holding)
                self._changed.notify_all()
                self._changed.wait_for(lambda: not holding.renewing)

    def _work(self) -> None:
        while (holding := self._next()) is not None:
            try:
                own = Run(holding.run.namespace, holding.run.key)
                kept = drive(renew(holding.held, own.key, self._lease), own)
            except Exception as error:  # the run goes on, whatever a renewal meets
                kept = True
                logger().warning("a lease could not be renewed, and is tried again: %r", error)
            with self._changed:
                holding.renewing = False
                holding.due = time.monotonic() + self._interval
                if not kept and holding in self._holdings:
                    self._holdings.remove(holding)
                self._changed.notify_all()

    def _next(self) -> _Holding | None:
        """Wait until a claim is due, and return it; ``None`` if there is none to hold."""
        with self._changed:
            while self._holdings:
                holding = min(self._holdings, key=lambda each: each.due)
                left = holding.due - time.monotonic()
                if left <= 0:
                    holding.renewing = True
                    return holding
                self._changed.wait(left)
            self._thread = None
            return None


_renewers: Final[weakref.WeakSet[Renewer]] = weakref.WeakSet()


def _forget() -> None:
    for renewer in _renewers:
        renewer.forget()


os.register_at_fork(after_in_child=_forget)
