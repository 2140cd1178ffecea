"""A pair that is killed at a call of its nodes to their stores, and what becomes of such pairs.

    python -m ldk.killed PROGRAM FOLDER ENGINE WAY SEED

WAY is "turns" or "plain": then the pair pays back and forth. With "requests" it takes turns, and one
node answers ``async_order.request_invoice``, session after session; each answer is a line.

It has a process group of its own, to which it sends SIGKILL: nodes and stores end at one moment.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import count, cycle
from pathlib import Path
from typing import Any

from kvreplay.demo.ldk.pair import Pair
from kvreplay.demo.ldk.process import LDKNodes

TESTS = Path(__file__).parent.parent
LSP = "02" + "ab" * 32
CALLS = 150  # in some eight payments
LONGEST = 2e-3  # seconds after the call has begun; a change may take so long


def kill() -> None:
    os.killpg(0, signal.SIGKILL)


class KilledNodes(LDKNodes):
    """Ends all at one of its calls: before it, in it, or when it is done and not answered."""

    strike: tuple[int, str, float]
    calls = 0

    def serve(self, header: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        at, moment, delay = self.strike
        self.calls += 1
        if self.calls != at:
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
        choose.randint(1, CALLS),  # the first of them load the nodes
        choose.choice(["before", "in", "after"]),
        choose.uniform(0, LONGEST),
    )
    pair = Pair(Path(program), Path(folder), engine, turns=way != "plain", nodes=KilledNodes)
    if way == "requests":
        for n in count(1):
            outcome = pair.request_invoice("bob", (LSP, f"session-{n}"), 1000 * n)
            print(outcome.response, flush=True)
    for sender in cycle(choose.sample(["alice", "bob"], 2)):
        pair.pay(sender, choose.randint(1_000, 100_000))


def killed(
    program: Path, begun: Path, folder: Path, engine: str, way: str, seed: int
) -> Sequence[str]:
    """Kill a pair that goes on from a copy of ``begun`` in ``folder``; return the lines it wrote."""
    shutil.copytree(begun, folder)
    done = subprocess.run(
        [sys.executable, "-m", "ldk.killed", program, folder, engine, way, str(seed)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    return done.stdout.splitlines()


if __name__ == "__main__":
    main(*sys.argv[1:])
