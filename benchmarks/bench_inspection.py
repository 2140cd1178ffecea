"""Walks of a whole store beside raw loops, and a backup while others write beside a raw copy."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import lmdb
import pytest

from benchmarks.conftest import Sizes
from benchmarks.footprint import anonymous_bytes
from benchmarks.measure import in_turn
from kvreplay import open_store
from kvreplay._inspection import Inspection, check, count, replay_namespaces
from kvreplay._protocol.record import decode

Note = Callable[..., None]

HEAD: Final = 24  # bytes before each value in LMDB; see docs/format.md
WRITERS: Final = 8
LOOK: Final = 10_000  # records between two looks at the memory
SELECT: Final = """
    SELECT primary_namespace, secondary_namespace, key, value, expires_at
    FROM ldk_node_data LEFT JOIN kvreplay_expiry
    USING (primary_namespace, secondary_namespace, key, sort_order)"""


def data_of(url: str, engine: str) -> Path:
    """Return the file that has the entries."""
    path = Path(url.partition(":")[2].partition("?")[0])
    return path / "data.mdb" if engine == "lmdb" else path


def raw_lmdb(path: Path) -> Iterator[bytes]:
    with (
        closing(lmdb.open(str(path.parent), max_dbs=8, readonly=True, lib_version=0)) as env,
        env.begin() as txn,
    ):
        for _, stored in txn.cursor(env.open_db(b"entries", txn, create=False)):
            yield stored[HEAD:]


def raw_sqlite(path: Path, sql: str = SELECT) -> Iterator[bytes]:
    with closing(sqlite3.connect(path)) as db:
        for *_, value, _ in db.execute(sql):
            yield value


def timed(values: Iterator[bytes], records: int) -> float:
    """Decode all; return the seconds."""
    start, decoded = time.perf_counter(), 0
    for value in values:
        decode(value)
        decoded += 1
    assert decoded == records
    return time.perf_counter() - start


class Watched:
    """A store whose scan tells how much memory this process has at most meanwhile."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def scan(self, *namespace: str | None) -> Iterator[Any]:
        for passed, entry in enumerate(self._store.scan(*namespace)):
            if passed % LOOK == 0:
                self.most = max(self.most, anonymous_bytes(collect=False))
            yield entry


def scan(store: Any) -> int:
    decoded = 0
    for _, entry in store.scan():
        decode(entry.value)
        decoded += 1
    return decoded


def stat(store: Any) -> int:
    return sum(each.entries for each in count(Inspection(store)).replay.values())


def check_all(store: Any) -> int:
    """As the command does: which namespaces are replay ones is found out first."""
    looked = 0

    def passed() -> None:
        nonlocal looked
        looked += 1

    assert not list(check(Inspection(store), replay_namespaces(store, None)[0], passed))
    return looked


@pytest.mark.parametrize("walk", [scan, stat, check_all], ids=["scan", "stat", "check"])
@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_walk(
    benchmark: Any,
    note: Note,
    sizes: Sizes,
    filled: Callable[..., str],
    engine: str,
    walk: Callable[[Any], int],
) -> None:
    records = sizes.live
    url = filled(records, engine)
    path = data_of(url, engine)
    raw = {"lmdb": raw_lmdb, "sqlite": raw_sqlite}[engine]
    growth: list[int] = []

    def own_walk() -> float:
        before = anonymous_bytes()
        with open_store(url) as store:
            watched = Watched(store)
            start = time.perf_counter()
            assert walk(watched) == records
            seconds = time.perf_counter() - start
        growth.append(watched.most - before)
        return seconds

    own, bare = in_turn(
        benchmark, own_walk, lambda: timed(raw(path), records), rounds=min(3, sizes.rounds)
    )
    note(
        f"{walk.__name__.removesuffix('_all')}/{engine}",
        {
            "records": records,
            "s": own,
            "raw s": bare,
            "x raw loop": own / bare,
            "µs a record": own / records * 1e6,
            "growth MiB": max(growth) / 2**20,
        },
    )


def copied(path: Path, place: Path) -> float:
    """Copy a file and flush the copy; return the seconds."""
    start = time.perf_counter()
    shutil.copyfile(path, place)
    with open(place, "rb") as copy:
        os.fsync(copy.fileno())
    seconds = time.perf_counter() - start
    place.unlink()
    return seconds


class Writers:
    """Threads that write again and again, and how many writes they have made."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._done = threading.Event()
        self._counts = [0] * WRITERS
        self._threads = [threading.Thread(target=self._write, args=[n]) for n in range(WRITERS)]

    def _write(self, own: int) -> None:
        while not self._done.is_set():
            self._store.write("writer", f"{own}", f"{self._counts[own] % 500}", bytes(700))
            self._counts[own] += 1

    def rate_during(self, action: Callable[[], object]) -> tuple[float, float]:
        """Return how many writes a second there are during an action, and its seconds."""
        before, start = sum(self._counts), time.perf_counter()
        action()
        seconds = time.perf_counter() - start
        return (sum(self._counts) - before) / seconds, seconds

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_backup(
    benchmark: Any,
    note: Note,
    sizes: Sizes,
    filled: Callable[..., str],
    engine: str,
    folder: Path,
) -> None:
    records = sizes.live
    url = filled(records, engine)
    path = data_of(url, engine)
    rates: list[tuple[float, float]] = []

    with open_store(url) as store:
        backed_up: Any = store

        def back_up() -> None:
            backed_up.backup(folder / "copy")

        def backup() -> float:
            with Writers(store) as writers:
                before, _ = writers.rate_during(lambda: time.sleep(sizes.seconds))
                during, seconds = writers.rate_during(back_up)
                after, _ = writers.rate_during(lambda: time.sleep(sizes.seconds))
            rates.append(((before + after) / 2, during))
            place = folder / "copy"
            if engine == "lmdb":
                shutil.rmtree(place)
            else:
                place.unlink()
            return seconds

        own, bare = in_turn(
            benchmark,
            backup,
            lambda: copied(path, folder / "raw"),
            rounds=min(3, sizes.rounds),
        )
        with store.transaction() as transaction:
            for own_writes in range(WRITERS):
                for key in transaction.list("writer", f"{own_writes}"):
                    transaction.remove("writer", f"{own_writes}", key)
    alone, during = (sum(each) / len(rates) for each in zip(*rates, strict=True))
    note(
        f"backup/{engine}",
        {
            "records": records,
            "MiB": path.stat().st_size / 2**20,
            "s": own,
            "raw copy s": bare,
            "x raw copy": own / bare,
            "writes a second": alone,
            "meanwhile": during,
            "x slower": alone / during,
        },
    )
