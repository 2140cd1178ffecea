"""What do a first execution, and a wave of lazy removals, cost where a flush takes milliseconds?

The files are in memory, and ``slow_disk.c`` waits in each flush. It is loaded into a process of its
own, so that nothing else is slow: ``python -m benchmarks.bench_slow_disk FOLDER EXECUTIONS``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

from benchmarks.bench_lazy import figures_of, waves
from benchmarks.conftest import FLUSH_MS, Sizes
from benchmarks.workload import NAMESPACE, PARAMS, SCOPE, request_id, respond, url_of
from kvreplay import Replay, open_store

ENGINES: Final = ("lmdb", "sqlite")
ROUNDS: Final = 3

Note = Callable[..., None]


def test_slow_disk(
    benchmark: Any, note: Note, sizes: Sizes, memory: Path, slow: dict[str, str]
) -> None:
    executions = 10 if sizes.rounds == 1 else 100  # so many that SQLite checkpoints
    seconds = benchmark.pedantic(lambda: measured(memory, executions, slow), rounds=1)
    for engine in ENGINES:
        note(
            f"slow disk/{engine}",
            {
                "flush ms": FLUSH_MS,
                "ms": seconds[engine]["execution"] * 1000,
                "x lmdb": seconds[engine]["execution"] / seconds["lmdb"]["execution"],
            },
        )
        note(f"lazy removes/{engine}, slow disk", figures_of(seconds[engine]))


def measured(
    folder: Path, executions: int, environment: dict[str, str]
) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "benchmarks.bench_slow_disk", str(folder), str(executions)]
    run = subprocess.run(command, check=True, capture_output=True, env=environment)
    found: dict[str, dict[str, float]] = json.loads(run.stdout)
    return found


def main(folder: Path, executions: int) -> None:
    """Print the seconds of a first execution on each engine, measured in turn, and of waves."""
    numbers = count()
    figures: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(ROUNDS):
        for engine, seen in figures.items():
            with open_store(url_of(engine, folder / engine)) as store:
                replay = Replay(store, NAMESPACE, ttl=3600)
                replay.execute((SCOPE, request_id(next(numbers))), PARAMS, respond)
                start = time.perf_counter()
                for _ in range(executions):
                    replay.execute((SCOPE, request_id(next(numbers))), PARAMS, respond)
                seen.append((time.perf_counter() - start) / executions)
    found = {}
    for engine, seen in figures.items():
        with open_store(url_of(engine, folder / engine)) as store:
            found[engine] = {"execution": statistics.median(seen), **waves(store, ROUNDS)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
