"""How the benchmarks measure: each thing in turn with its rivals; and the figures of the disk."""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

__all__ = [
    "Bound",
    "calling",
    "commits_of",
    "file_system_of",
    "flush_seconds",
    "in_tasks",
    "in_threads",
    "in_turn",
]


def in_turn(
    benchmark: Any, own: Callable[[], float], *rivals: Callable[[], float], rounds: int
) -> list[float]:
    """Run what is measured and its rivals in turn, so that a noisy machine disturbs all alike.

    Each callable runs one round and returns its figure. If there are several rounds, one more
    runs first, and is not counted.

    Returns:
        The medians; that of ``own`` comes first.
    """
    figures: list[list[float]] = [[] for _ in range(1 + len(rivals))]

    def measure_rivals() -> None:
        for seen, rival in zip(figures[1:], rivals, strict=True):
            seen.append(rival())

    benchmark.pedantic(
        lambda: figures[0].append(own()),
        setup=measure_rivals,
        rounds=rounds,
        warmup_rounds=1 if rounds > 1 else 0,
    )
    return [statistics.median(seen[-rounds:]) for seen in figures]


class Bound:
    """What rounds spend their time with, which is what bounds them; over all rounds of one row.

    Args:
        rest: what the process does while it does not run.
    """

    def __init__(self, rest: str = "waiting") -> None:
        self._rest = rest
        self._spent = {"interpreter": 0.0, "kernel": 0.0, rest: 0.0}

    def of(self, run: Callable[[], float]) -> Callable[[], float]:
        """Return the same round, and note how its time is spent."""

        def noted() -> float:
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            figure = run()
            end, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            own, kernel = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
            self._spent["interpreter"] += own
            self._spent["kernel"] += kernel
            # Where several cores are busy, nothing is left.
            self._spent[self._rest] += max(end - start - own - kernel, 0.0)
            return figure

        return noted

    def __str__(self) -> str:
        whole = sum(self._spent.values()) or 1.0
        shares = sorted(
            ((spent / whole, what) for what, spent in self._spent.items()), reverse=True
        )
        return ", ".join(f"{what} {share:.0%}" for share, what in shares if share >= 0.2)


def calling(function: Callable[[], object], calls: int) -> Callable[[], float]:
    """Return a round of so many calls; its figure is the seconds for one call."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls

    return run


def in_threads(threads: int, seconds: float, work: Callable[[], object]) -> float:
    """Have all threads call ``work``, again and again for some time.

    Returns:
        The calls per second, from the moment when all are ready until the last one returns.
    """
    start = 0.0

    def begin() -> None:
        nonlocal start
        start = time.perf_counter()

    ready = threading.Barrier(threads, action=begin)

    def run() -> int:
        ready.wait()
        done = 0
        while not done or time.perf_counter() < start + seconds:
            work()
            done += 1
        return done

    with ThreadPoolExecutor(threads) as executor:
        running = [executor.submit(run) for _ in range(threads)]
        done = sum(each.result() for each in running)
    return done / (time.perf_counter() - start)


def in_tasks(tasks: int, seconds: float, work: Callable[[], Awaitable[object]]) -> float:
    """Do the same as :func:`in_threads`, in tasks of one event loop."""

    async def run(until: float) -> int:
        done = 0
        while not done or time.perf_counter() < until:
            await work()
            done += 1
        return done

    async def run_all() -> float:
        start = time.perf_counter()
        done = await asyncio.gather(*(run(start + seconds) for _ in range(tasks)))
        return sum(done) / (time.perf_counter() - start)

    return asyncio.run(run_all())


_LAST_TRANSACTION = """
import lmdb, sys
env = lmdb.open(sys.argv[1], readonly=True, lock=False, create=False, max_dbs=2, lib_version=0)
print(env.info()["last_txnid"])
"""


def commits_of(environment: Path) -> int:
    """Return how many commits an LMDB environment has seen.

    Another process looks, since LMDB forbids this one to open the files twice.
    """
    command = [sys.executable, "-c", _LAST_TRANSACTION, str(environment)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


def flush_seconds(folder: Path, flushes: int = 100) -> float:
    """Return the median time of an fdatasync after a write of 4 KiB."""
    path = folder / "flush"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(file, bytes(4096))
        os.fsync(file)
        times = []
        for _ in range(flushes):
            start = time.perf_counter()
            os.pwrite(file, os.urandom(4096), 0)
            os.fdatasync(file)
            times.append(time.perf_counter() - start)
    finally:
        os.close(file)
        path.unlink()
    return statistics.median(times)


def file_system_of(folder: Path) -> str:
    """Return the type of the file system that a folder is on."""
    try:
        mounts = list(_mounts())
    except OSError:
        return "unknown"
    place = folder.resolve()
    return max((len(str(at)), kind) for at, kind in mounts if place.is_relative_to(at))[1]


def _mounts() -> Iterator[tuple[Path, str]]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        yield Path(before.split(" ")[4]), after.split(" ")[0]
