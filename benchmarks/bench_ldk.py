"""Ten payments of two LDK nodes: a transaction a turn, beside a commit for each write.

The nodes take most of the time, so this is measured where a flush is what the disk makes of it, and
where it takes milliseconds. That is a process of its own: ``python -m benchmarks.bench_ldk PROGRAM
FOLDER ENGINE ROUNDS``.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.conftest import FLUSH_MS, Sizes
from kvreplay.demo.ldk.pair import NAMES, Pair
from kvreplay.demo.ldk.program import install, why_not

ENGINES: Final = ("lmdb", "sqlite")
PAYMENTS: Final = 10
ROUNDS: Final = 9
"""At most: a round takes seconds."""

Note = Callable[..., None]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nodes' program, from npm."""
    if (reason := why_not()) is not None:
        pytest.skip(f"LDK's nodes cannot be run: {reason}")
    return install(tmp_path_factory.mktemp("ldk"))


@pytest.mark.parametrize("engine", ENGINES)
def test_payments(
    benchmark: Any, note: Note, sizes: Sizes, program: Path, folder: Path, engine: str
) -> None:
    seconds = benchmark.pedantic(
        lambda: measured(program, folder, engine, min(sizes.rounds, ROUNDS), dict(os.environ)),
        rounds=1,
    )
    note(f"ldk/{engine}", figures_of(seconds))


@pytest.mark.parametrize("engine", ENGINES)
def test_payments_on_a_slow_disk(
    benchmark: Any,
    note: Note,
    sizes: Sizes,
    program: Path,
    memory: Path,
    slow: dict[str, str],
    engine: str,
) -> None:
    seconds = benchmark.pedantic(
        lambda: measured(program, memory, engine, min(sizes.rounds, ROUNDS), slow), rounds=1
    )
    note(f"ldk/{engine}, a flush of {FLUSH_MS:g} ms", figures_of(seconds))


def figures_of(seconds: dict[str, float]) -> dict[str, float]:
    """Return the row."""
    return {
        "ms a payment, a transaction a turn": seconds["turns"] / PAYMENTS * 1000,
        "ms a payment, a commit a write": seconds["plain"] / PAYMENTS * 1000,
        "x a commit a write": seconds["turns"] / seconds["plain"],
    }


def measured(
    program: Path, folder: Path, engine: str, rounds: int, environment: dict[str, str]
) -> dict[str, float]:
    """Return the seconds of ten payments, each way."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_ldk", program, folder, engine, str(rounds)],
        check=True,
        stdout=subprocess.PIPE,
        env=environment,
    )
    found: dict[str, float] = json.loads(run.stdout)
    return found


def main(program: Path, folder: Path, engine: str, rounds: int) -> None:
    """Print the medians of ten payments each way, measured in turn with two living pairs."""
    pairs = {
        way: Pair(program, folder / way, engine, turns=way == "turns") for way in ("turns", "plain")
    }
    for pair in pairs.values():
        assert pair.open_channel()
    seconds: dict[str, list[float]] = {way: [] for way in pairs}
    for _ in range(1 + rounds):
        for way, pair in pairs.items():
            start = time.perf_counter()
            for number in range(PAYMENTS):
                assert pair.pay(NAMES[number % 2], 10_000) == "sent"
            seconds[way].append(time.perf_counter() - start)
    for pair in pairs.values():
        pair.close()
    shutil.rmtree(folder / "turns")
    shutil.rmtree(folder / "plain")
    print(json.dumps({way: statistics.median(seen[1:]) for way, seen in seconds.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
