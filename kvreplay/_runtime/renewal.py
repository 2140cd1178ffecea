"""Renew the leases of running handlers, from one thread of a ``Replay`` that asked for it.

What is always true:

* A claim is renewed under its own lock, and only until its block is over. Ending the block waits
  for that lock, so that no renewal runs afterwards.
* A thread works while there are claims to renew, and looks after each interval at the latest. So a
  wake-up that an interrupt loses delays no renewal.
"""

from __future__ import annotations

import _thread
import os
import threading
import time
from typing import Any, Final

from kvreplay._protocol.flow import renew
from kvreplay._protocol.steps import HeldClaim
from kvreplay._runtime.blocking import drive
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import Settings
from kvreplay.events import logger
from kvreplay.store import Bell, ForkSafeLock

__all__ = ["RENEWALS_PER_LEASE", "Renewer"]

RENEWALS_PER_LEASE: Final = 3
"""How many renewals there are in one lease. One may fail, and clocks may still differ.

``docs/explanation/clocks.md`` says by how much.
"""


class _Round:
    """The claims that one process holds, and the thread that renews them."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock: Any = threading.RLock()  # guards whether there is a thread
        self.changed = Bell()
        self.holdings: dict[_Holding, bool] = {}
        self.has_thread = False


class _Holding:
    """One claim, from the begin of its handler to the end."""

    def __init__(self, renewer: Renewer, own: _Round, held: HeldClaim, run: Run) -> None:
        self._renewer = renewer
        self._round = own
        self._held = held
        self._run = run
        self._lock: Any = threading.RLock()  # while it is renewed
        self._over = False
        self.due = 0.0  # time.monotonic()

    def begin(self) -> None:
        """Renew the claim from now on.

        Raises:
            RuntimeError: no thread can be started.
        """
        own = self._round
        self.due = time.monotonic() + self._renewer.interval
        with own.lock:
            own.holdings[self] = True
            if not own.has_thread:
                _thread.start_new_thread(self._renewer.work, (own,))
                own.has_thread = True
        own.changed.ring()

    def end(self) -> None:
        """Renew it no more; no renewal runs after this. A second time it does nothing."""
        own = self._round
        self._over = True
        if own.pid == os.getpid():  # else a child was forked inside the block
            own.holdings.pop(self, None)
            with self._lock:
                pass  # its last renewal has ended
            own.changed.ring()

    def renew(self) -> None:
        """Move the lease, unless the block is over."""
        with self._lock:
            if self._over:
                return
            try:
                again = Run(self._run.settings, self._run.key)
                kept = drive(renew(self._held, self._renewer.lease), again)
            except Exception as error:  # a failed renewal does not end the run
                kept = True
                logger().warning("the renewal of a lease failed; it is tried again: %r", error)
        self.due = time.monotonic() + self._renewer.interval
        if not kept:
            self._round.holdings.pop(self, None)


class Renewer:
    """Renews claims while their handlers run. Its thread lives while there is a claim to renew.

    The parent goes on renewing the claims that a forked child inherits; the child begins a round
    of its own.
    """

    def __init__(self, settings: Settings) -> None:
        self.lease = settings.policy.lease or 0
        self.interval = self.lease / RENEWALS_PER_LEASE / 1000
        self._lock = ForkSafeLock()  # guards ``_round``
        self._round = _Round()

    @property
    def is_idle(self) -> bool:
        """Whether no claim is renewed."""
        return not self._round.holdings

    def __call__(self, held: HeldClaim, run: Run) -> _Holding:
        """Return what renews the claim from its ``begin`` to its ``end``."""
        with self._lock:
            if self._round.pid != os.getpid():
                self._round = _Round()
            return _Holding(self, self._round, held, run)

    def work(self, own: _Round) -> None:
        """Renew the claims of a round until there are none: what its thread does."""
        while True:
            with own.lock:
                holdings = list(own.holdings)
                if not holdings:
                    own.has_thread = False
                    return
            holding = min(holdings, key=lambda each: each.due)
            left = holding.due - time.monotonic()
            if left > 0:
                own.changed.wait(left)
            else:
                holding.renew()
