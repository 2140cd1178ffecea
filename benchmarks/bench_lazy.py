"""How long does a wave of lazy removals make its caller wait, beside one durable write?

LDK's persister sends 101 at once, with ``maximum_pending_updates=100``. Each wave is measured in
one run with the durable write before it, and with the one after it, whose commit makes the
removals.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.conftest import Sizes
from benchmarks.workload import url_of
from kvreplay import open_store

ENGINES: Final = ("lmdb", "sqlite", "filesystem")
WAVE: Final = 101
UPDATE: Final = bytes(700)  # about as long as an update of a monitor
MONITOR: Final = "0" * 64

Note = Callable[..., None]


def seconds_of(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def waves(store: Any, times: int) -> dict[str, float]:
    """Return the medians: seconds of a durable write, of waves, and of the write after each."""
    seen: dict[str, list[float]] = {"write": [], "longest": [], "wave": [], "after": []}
    for _ in range(times):
        filling = store.transaction() if hasattr(store, "transaction") else nullcontext(store)
        with filling as into:
            for n in range(WAVE):
                into.write("monitor_updates", MONITOR, str(n), UPDATE)
        seen["write"].append(seconds_of(lambda: store.write("monitors", "", MONITOR, UPDATE)))
        each = [
            seconds_of(lambda n=n: store.remove("monitor_updates", MONITOR, str(n), lazy=True))
            for n in range(WAVE)
        ]
        seen["longest"].append(max(each))
        seen["wave"].append(sum(each))
        seen["after"].append(seconds_of(lambda: store.write("monitors", "", MONITOR, UPDATE)))
    return {name: statistics.median(those) for name, those in seen.items()}


def figures_of(seconds: dict[str, float]) -> dict[str, float]:
    """Return a row's figures."""
    write = seconds["write"]
    return {
        "write ms": write * 1000,
        "wave ms": seconds["wave"] * 1000,
        "longest call, x a write": seconds["longest"] / write,
        "wave, x a write": seconds["wave"] / write,
        "next write, x a write": seconds["after"] / write,
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_wave(benchmark: Any, note: Note, sizes: Sizes, folder: Path, engine: str) -> None:
    with open_store(url_of(engine, folder)) as store:
        seconds = benchmark.pedantic(lambda: waves(store, sizes.rounds), rounds=1)
    note(f"lazy removes/{engine}", figures_of(seconds))
