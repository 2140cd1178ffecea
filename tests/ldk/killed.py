"""A pair that is killed at a call by which its nodes change their stores.

    python -m ldk.killed PROGRAM FOLDER ENGINE WAY SEED

It goes on from what is in the folder. With WAY "turns" or "plain" it looks whether the channel is
still there, and with "turns" whether all is well; it says so in a line, and the two pay each other.
With "requests" one of them answers ``async_order.request_invoice``, session after session; each
answer is a line. The process has a group of its own, to which it sends SIGKILL: nodes and stores end
at one moment. Only if the channel was closed it ends by itself.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import count, cycle
from pathlib import Path
from typing import Any

from kvreplay.demo.ldk.pair import PUSH_MSAT, SATOSHIS, Pair
from kvreplay.demo.ldk.process import LDKNodes

TESTS = Path(__file__).parent.parent
LSP = "02" + "ab" * 32
RESERVE_MSAT = SATOSHIS * 10  # one in a hundred, which neither may spend
OPEN, FORCE_CLOSED = "open", "force-closed"

READS = ("list", "read")  # a kill at one of these is one between two changes
CHANGES = 120  # a few of them to load, some 20 to 33 in each payment
PENDING_UPDATES = 10  # of LDK's persister: so there are waves of lazy removes among the changes
LONGEST = 2e-3  # seconds after the call has begun; a change may take so long


def killed(program: Path, folder: Path, engine: str, way: str, seed: int) -> Sequence[str]:
    """Let a pair go on in a process that is killed; return the lines that it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "ldk.killed", program, folder, engine, way, str(seed)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == (0 if FORCE_CLOSED in lines else -signal.SIGKILL)
    return lines


def check_that_all_is_well(pair: Pair) -> None:
    """Both nodes agree, nothing hangs, and what was counted is what came."""
    pair.ask("tick")
    alice, bob = pair.channels().values()
    assert alice["pending_htlcs"] == bob["pending_htlcs"] == 0
    assert alice["outbound_msat"] == bob["inbound_msat"]
    assert bob["outbound_msat"] == alice["inbound_msat"]
    moved = pair.received("alice") - pair.received("bob")
    assert alice["outbound_msat"] == SATOSHIS * 1000 - PUSH_MSAT - RESERVE_MSAT + moved
    assert bob["outbound_msat"] == PUSH_MSAT - RESERVE_MSAT - moved


def kill() -> None:
    os.killpg(0, signal.SIGKILL)


class KilledNodes(LDKNodes):
    """Ends all at one of its changes: before it, in it, or when it is done and not answered."""

    strike: tuple[int, str, float]
    changes = 0

    def serve(self, header: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        at, moment, delay = self.strike
        self.changes += header["call"] not in READS
        if self.changes != at or header["call"] in READS:
            return super().serve(header, body)
        if moment == "before":
            kill()
        elif moment == "in":
            threading.Thread(target=_kill_after, args=(delay,)).start()
        answer = super().serve(header, body)
        if moment == "after":
            kill()
        return answer


def _kill_after(delay: float) -> None:
    until = time.perf_counter() + delay
    while time.perf_counter() < until:
        pass
    kill()


def main(program: str, folder: str, engine: str, way: str, seed: str) -> None:
    choose = random.Random(seed)
    KilledNodes.strike = (
        choose.randint(1, CHANGES),
        choose.choice(["before", "in", "after"]),
        choose.uniform(0, LONGEST),
    )
    pair = Pair(
        Path(program),
        Path(folder),
        engine,
        turns=way != "plain",
        nodes=KilledNodes,
        maximum_pending_updates=PENDING_UPDATES,
    )
    if way == "requests":
        for n in count(1):
            outcome = pair.request_invoice("bob", (LSP, f"session-{n}"), 1000 * n)
            print(outcome.response, flush=True)
    if pair.is_force_closed():
        print(FORCE_CLOSED)
        pair.close()
        return
    if way == "turns":
        check_that_all_is_well(pair)
    print(OPEN, flush=True)
    for sender in cycle(choose.sample(["alice", "bob"], 2)):
        assert pair.pay(sender, choose.randint(1_000, 100_000)) == "sent"


if __name__ == "__main__":
    main(*sys.argv[1:])
