"""Renew the leases of running handlers, from one thread of a ``Replay`` that asked for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import attrs

from kvreplay._protocol.flow import renew
from kvreplay._protocol.steps import HeldClaim
from kvreplay._runtime.blocking import drive
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import Settings
from kvreplay.events import logger
from kvreplay.store import ForkSafeLock

__all__ = ["RENEWALS_PER_LEASE", "Renewer"]

RENEWALS_PER_LEASE: Final = 3
"""How many renewals there are in one lease, so that two may fail before it is over."""


@attrs.define(eq=False)
class _Holding:
    held: HeldClaim
    run: Run
    due: float  # time.monotonic()
    renewing: bool = False


class _Round:
    """The claims that one process holds, and the thread that renews them."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.changed = threading.Condition()
        self.holdings: list[_Holding] = []
        self.thread: threading.Thread | None = None


class Renewer:
    """Renews claims while their handlers run. Its thread lives while there is a claim to renew.

    The parent goes on renewing the claims that a forked child inherits; the child begins a round
    of its own.
    """

    def __init__(self, settings: Settings) -> None:
        self._lease = settings.policy.lease or 0
        self._interval = self._lease / RENEWALS_PER_LEASE / 1000
        self._lock = ForkSafeLock()  # guards ``_round``
        self._round = _Round()

    @contextmanager
    def __call__(self, held: HeldClaim, run: Run) -> Iterator[None]:
        """Renew the claim until the block ends; no renewal runs after it."""
        with self._lock:
            if self._round.pid != os.getpid():
                self._round = _Round()
            own = self._round
        holding = _Holding(held, run, time.monotonic() + self._interval)
        try:
            with own.changed:
                own.holdings.append(holding)
                if own.thread is None:
                    thread = threading.Thread(
                        target=self._work, args=(own,), name="kvreplay-renewer", daemon=True
                    )
                    thread.start()
                    own.thread = thread
                own.changed.notify_all()
            yield
        finally:
            if own.pid == os.getpid():  # else a child was forked inside the block
                with own.changed:
                    if holding in own.holdings:
                        own.holdings.remove(holding)
                    own.changed.notify_all()
                    own.changed.wait_for(lambda: not holding.renewing)

    def _work(self, own: _Round) -> None:
        while (holding := _next(own)) is not None:
            try:
                again = Run(holding.run.settings, holding.run.key)
                kept = drive(renew(holding.held, again.key, self._lease), again)
            except Exception as error:  # a failed renewal does not end the run
                kept = True
                logger().warning("the renewal of a lease failed; it is tried again: %r", error)
            with own.changed:
                holding.renewing = False
                holding.due = time.monotonic() + self._interval
                if not kept and holding in own.holdings:
                    own.holdings.remove(holding)
                own.changed.notify_all()


def _next(own: _Round) -> _Holding | None:
    """Wait until a claim is due, and return it; ``None`` if no claim is left."""
    with own.changed:
        while own.holdings:
            holding = min(own.holdings, key=lambda each: each.due)
            left = holding.due - time.monotonic()
            if left <= 0:
                holding.renewing = True
                return holding
            own.changed.wait(left)
        own.thread = None
        return None
