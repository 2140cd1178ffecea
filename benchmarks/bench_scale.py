"""What grows with the number of records: a hit, a page, opening, memory? And an import?"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import pytest

import kvreplay
from benchmarks.conftest import Sizes
from benchmarks.measure import calling, in_turn
from benchmarks.workload import NAMESPACE, PARAMS, SCOPE, never, request_id
from kvreplay import Replay, open_store

KEYS: Final = 10_000
"""How many different keys are asked for, in random order."""

FEW: Final = 1000
"""Records in the store whose pages are compared with those of larger ones."""

Note = Callable[..., None]


def hits(store: Any, records: int) -> Callable[[], object]:
    replay = Replay(store, NAMESPACE, ttl=3600)
    numbers = random.Random(1).sample(range(records), min(KEYS, records))
    keys: Iterator[tuple[str, str]] = cycle([(SCOPE, request_id(number)) for number in numbers])

    def hit() -> object:
        return replay.execute(next(keys), PARAMS, never)

    for _ in numbers:  # the first read of a page maps it into this process
        hit()
    return hit


def test_hit(
    benchmark: Any, note: Note, sizes: Sizes, filled: Callable[[int], str], records: int
) -> None:
    least = min(sizes.records)
    with open_store(filled(records)) as store, open_store(filled(least)) as small:
        own, smallest = in_turn(
            benchmark,
            calling(hits(store, records), sizes.calls),
            calling(hits(small, least), sizes.calls),
            rounds=sizes.rounds,
        )
    note(
        f"scale/hit, {records} records",
        {"records": records, "µs": own * 1e6, f"x {least} records": own / smallest},
    )


def test_open(
    benchmark: Any, note: Note, sizes: Sizes, filled: Callable[[int], str], records: int
) -> None:
    def opening(url: str) -> float:
        start = time.perf_counter()
        store = open_store(url)
        seconds = time.perf_counter() - start
        store.close()
        return seconds

    url, least = filled(records), min(sizes.records)
    smallest_url = filled(least)
    own, smallest = in_turn(
        benchmark, lambda: opening(url), lambda: opening(smallest_url), rounds=sizes.rounds
    )
    note(
        f"scale/open, {records} records",
        {"records": records, "ms": own * 1000, f"x {least} records": own / smallest},
    )


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_page(
    benchmark: Any, note: Note, sizes: Sizes, filled: Callable[..., str], engine: str, records: int
) -> None:
    """A page of 100 keys, one after the other in the order of creation."""
    url, smallest_url = filled(records, engine), filled(FEW, engine)
    with open_store(url) as store, open_store(smallest_url) as small:
        own, smallest = in_turn(
            benchmark,
            calling(pages(store), max(sizes.calls // 10, 1)),
            calling(pages(small), max(sizes.calls // 10, 1)),
            rounds=sizes.rounds,
        )
    note(
        f"scale/page of 100, {engine}, {records} records",
        {"records": records, "µs": own * 1e6, f"x {FEW} records": own / smallest},
    )


def pages(store: Any) -> Callable[[], object]:
    """Return what takes the next page, and begins anew after the last one."""
    token: str | None = None

    def take() -> None:
        nonlocal token
        token = store.list_paginated(NAMESPACE, SCOPE, token, limit=100).next_page_token

    return take


def test_memory(benchmark: Any, note: Note, sizes: Sizes) -> None:
    """Run in its own process, on a store in shared memory, since the disk does not matter here."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    command = [sys.executable, "-m", "benchmarks.footprint", str(folder), str(sizes.executions)]
    try:
        ran = benchmark.pedantic(subprocess.run, [command], SUBPROCESS, rounds=1)
    finally:
        shutil.rmtree(folder)
    note("memory/executions", json.loads(ran.stdout))


SUBPROCESS: Final = {
    "check": True,
    "stdout": subprocess.PIPE,
    "env": {
        **{
            name: value
            for name, value in os.environ.items()
            # In use, modules are compiled only once: when they are installed or first imported.
            if name != "PYTHONDONTWRITEBYTECODE"
        },
        "PYTHONPATH": os.pathsep.join(
            str(each) for each in (Path(__file__).parents[1], Path(kvreplay.__file__).parents[1])
        ),
    },
}


def test_import(benchmark: Any, note: Note, sizes: Sizes) -> None:
    """The time of a whole process, with the import and without."""

    def process(program: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], **SUBPROCESS)
        return time.perf_counter() - start

    own, bare = in_turn(
        benchmark,
        lambda: process("import kvreplay"),
        lambda: process("pass"),
        rounds=sizes.rounds,
    )
    loaded = "import sys, kvreplay; print(*(name.partition('.')[0] for name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", loaded], **SUBPROCESS)
    drivers = sorted({"lmdb", "sqlite3"} & set(ran.stdout.decode().split()))
    note(
        "import/kvreplay",
        {"ms over a bare interpreter": (own - bare) * 1000, "drivers imported": len(drivers)},
    )
