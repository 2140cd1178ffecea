"""Does a sweep's cost depend only on what it removes? And how long does a writer wait for it?"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.conftest import Sizes
from benchmarks.measure import in_turn
from benchmarks.workload import FAR, LONG_AGO, NAMESPACE, fill, url_of
from kvreplay import Replay, open_store

LIMIT: Final = 1000
"""Records in a batch: the default of ``Replay.sweep``."""

ROUNDS: Final = 3
Note = Callable[..., None]


def sweep_all(replay: Replay, due: int) -> float:
    """Sweep until nothing is due; return the seconds."""
    removed, more = 0, True
    start = time.perf_counter()
    while more:
        result = replay.sweep(LIMIT)
        removed, more = removed + result.removed, result.more
    seconds = time.perf_counter() - start
    assert removed == due
    return seconds


# A file costs some fsyncs, so the file system has fewer records.
@pytest.mark.parametrize(("engine", "fewer"), [("lmdb", 1), ("memory", 10), ("filesystem", 200)])
def test_due_among_live(
    benchmark: Any,
    note: Note,
    sizes: Sizes,
    filled: Callable[[int], str],
    engine: str,
    fewer: int,
    folder: Path,
) -> None:
    live, due = sizes.live // fewer, sizes.due // fewer
    with ExitStack() as stack:
        alone = stack.enter_context(open_store(url_of(engine, folder / "alone")))
        if engine == "lmdb":
            crowded = stack.enter_context(open_store(filled(live)))
        else:
            crowded = stack.enter_context(open_store(url_of(engine, folder / "crowded")))
            fill(crowded, range(live), FAR)

        def sweep(store: Any) -> float:
            # Their ids are scattered among the ids of the live ones.
            fill(store, range(live, live + due), LONG_AGO)
            return sweep_all(Replay(store, NAMESPACE, ttl=3600), due)

        among, none = in_turn(
            benchmark,
            lambda: sweep(crowded),
            lambda: sweep(alone),
            rounds=min(ROUNDS, sizes.rounds),
        )
    note(
        f"sweep/{engine}",
        {
            "due": due,
            "live": live,
            "s": among,
            "s with none live": none,
            "x none live": among / none,
            "µs a record": among / due * 1e6,
        },
    )


def test_writer_during_a_sweep(
    benchmark: Any,
    note: Note,
    sizes: Sizes,
    filled: Callable[[int], str],
) -> None:
    """One thread writes while another one sweeps. A write waits for the batch that is running, and
    the next batch must not go before that write."""
    live = sizes.live
    batches: list[tuple[float, float]] = []
    writes: list[tuple[float, float]] = []
    alone: list[float] = []

    with open_store(filled(live)) as store:
        replay = Replay(store, NAMESPACE, ttl=3600)
        numbers = count()

        def write() -> tuple[float, float]:
            start = time.perf_counter()
            store.write("writer", "", f"{next(numbers) % 1000}", bytes(700))
            return start, time.perf_counter()

        def write_until(done: threading.Event) -> None:
            while not done.is_set():
                writes.append(write())

        def sweep() -> None:
            more = True
            while more:
                start = time.perf_counter()
                more = replay.sweep(LIMIT).more
                batches.append((start, time.perf_counter()))

        def prepare() -> None:
            fill(store, range(live, live + sizes.due), LONG_AGO)
            alone.extend(end - start for start, end in (write() for _ in range(20)))

        def sweep_beside_a_writer() -> None:
            done = threading.Event()
            writer = threading.Thread(target=write_until, args=[done])
            writer.start()
            try:
                sweep()
            finally:
                done.set()
                writer.join()

        benchmark.pedantic(sweep_beside_a_writer, setup=prepare, rounds=min(ROUNDS, sizes.rounds))
        with store.transaction() as transaction:
            for number in range(1000):
                transaction.remove("writer", "", f"{number}")

    waits = [end - start for start, end in writes]
    lengths = [end - start for start, end in batches]
    ended = [sum(start < batch_end < end for _, batch_end in batches) for start, end in writes]
    note(
        "sweep writer/lmdb",
        {
            "writes": len(writes),
            "ms a write without sweep": statistics.median(alone) * 1000,
            "median wait ms": statistics.median(waits) * 1000,
            "longest wait ms": max(waits) * 1000,
            "median batch ms": statistics.median(lengths) * 1000,
            "longest batch ms": max(lengths) * 1000,
            "longest wait / longest batch": max(waits) / max(lengths),
            "most batches waited for": max(ended),
        },
    )
