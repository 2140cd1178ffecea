"""A process that asks for payments, on a cluster that is struck: ``torture.node`` with a clock that may jump."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import kvreplay.backends.etcd  # noqa: F401  # once, before the payers are forked
from kvreplay import StoreUnavailableError, SystemClock, open_store
from support.broken_etcd import BROKEN
from support.networks import enter
from torture.ledger import Ledger
from torture.node import MODES, Node

DAY = 24 * 3_600_000
ROOM = 3  # keys, of which a thread takes one
LONGEST = 0.05  # seconds that a payment takes


class JumpingClock:
    """Within a day of the true time, another one whenever it is asked."""

    def now_ms(self) -> int:
        return SystemClock().now_ms() + random.choice((-DAY, 0, DAY))


class SlowLedger(Ledger):
    """Its payments take a while, in which their payer may die."""

    def note(self, kind: str, key: str, value: str = "") -> None:
        if kind == "effect":
            time.sleep(random.uniform(0, LONGEST))
        super().note(kind, key, value)


def opened(url: str) -> Any:
    """Open the store, as soon as enough members answer."""
    while True:
        try:
            return open_store(url)
        except StoreUnavailableError:
            continue


def main(told: dict[str, Any]) -> None:
    enter(told["network"])
    if told["broken"]:
        BROKEN[told["broken"]]()
    random.seed(told["seed"])
    clock = JumpingClock() if told["jumps"] else SystemClock()
    node = Node(
        opened(told["url"]),
        SlowLedger(Path(told["ledger"])),
        MODES[told["mode"]],
        ttl="30d",
        lease=told["lease"],
        wait_timeout=0.2,
        clock=clock,
    )

    def work() -> None:
        number = told["first"]
        while True:
            number += random.randint(1, ROOM)
            node.ask(str(number))

    os.write(1, b"begun\n")
    for _ in range(told["threads"] - 1):
        threading.Thread(target=work, daemon=True).start()
    work()
