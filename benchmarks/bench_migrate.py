"""A migration from LMDB to SQLite, beside a raw loop that copies and verifies the same rows."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Final

import lmdb

from benchmarks.conftest import Sizes
from benchmarks.footprint import anonymous_bytes
from benchmarks.measure import in_turn
from kvreplay import Progress, migrate

BATCH: Final = 5_000
"""Rows in a transaction, as in a migration of ours."""
STAMP: Final = 8
"""Bytes of expiry before each value in LMDB; and as many of the creation number and of the
transaction, if the store knows those: see docs/format.md."""

Row = tuple[str, str, str, bytes, int | None]

TABLES: Final = """
    CREATE TABLE ldk_node_data (
        primary_namespace TEXT NOT NULL, secondary_namespace TEXT NOT NULL, key TEXT NOT NULL,
        value BLOB, sort_order INTEGER NOT NULL,
        PRIMARY KEY (primary_namespace, secondary_namespace, key));
    CREATE INDEX paginated ON ldk_node_data
        (primary_namespace, secondary_namespace, sort_order DESC, key ASC);
    CREATE TABLE expiry (
        primary_namespace TEXT NOT NULL, secondary_namespace TEXT NOT NULL, key TEXT NOT NULL,
        expires_at INTEGER NOT NULL,
        PRIMARY KEY (primary_namespace, secondary_namespace, key)) WITHOUT ROWID;
    CREATE INDEX due ON expiry (primary_namespace, expires_at);
"""
JOINED: Final = """
    FROM ldk_node_data LEFT JOIN expiry USING (primary_namespace, secondary_namespace, key)"""
BY_NAME: Final = f"""
    SELECT value, expires_at {JOINED}
    WHERE primary_namespace = ? AND secondary_namespace = ? AND key = ?"""
IN_ORDER: Final = f"""
    SELECT primary_namespace, secondary_namespace, key, value, expires_at {JOINED}
    ORDER BY primary_namespace, secondary_namespace, key"""


class Source:
    """The LMDB store, read without kvreplay."""

    def __init__(self, env: lmdb.Environment) -> None:
        self._env = env
        with env.begin() as txn:
            self._ordered = txn.get(b"created") is not None
        self._head = 3 * STAMP if self._ordered else STAMP
        self._entries = env.open_db(b"entries", create=False)

    def by_name(self) -> Iterator[Row]:
        with self._env.begin() as txn:
            for name, stored in txn.cursor(self._entries):
                yield self._row(name, stored)

    def oldest_first(self) -> Iterator[Row]:
        """Yield the rows of each namespace in the order of creation, if the store knows one."""
        if not self._ordered:
            yield from self.by_name()
            return
        created = self._env.open_db(b"created", create=False)
        with self._env.begin() as txn:
            names = txn.cursor(self._entries).iternext(values=False)
            spaces = {sha256(each).digest()[:16]: each for each in map(namespace_of, names)}
            for place, key in txn.cursor(created):
                name = spaces[place[:16]] + b"\0" + key
                yield self._row(name, txn.get(name, db=self._entries))

    def _row(self, name: bytes, stored: bytes) -> Row:
        primary, secondary, key = name.decode().split("\0")
        stamp = int.from_bytes(stored[:STAMP], "big")
        return primary, secondary, key, stored[self._head :], stamp - 1 if stamp else None


def namespace_of(name: bytes) -> bytes:
    return name.rpartition(b"\0")[0]


def raw_loop(source: Path, path: Path) -> tuple[float, float]:
    """Copy all rows, and verify each by its name. Return the seconds, and those if it verifies by
    reading both sides in order instead."""
    path.parent.mkdir()
    start = time.perf_counter()
    with (
        closing(lmdb.open(str(source), max_dbs=4, readonly=True, lib_version=0)) as env,
        closing(sqlite3.connect(path, isolation_level=None)) as db,
    ):
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(TABLES)
        from_lmdb, count = Source(env), 0
        rows = from_lmdb.oldest_first()
        while batch := list(islice(rows, BATCH)):
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "INSERT INTO ldk_node_data VALUES (?, ?, ?, ?, ?)",
                [(*row[:4], count + number) for number, row in enumerate(batch)],
            )
            db.executemany(
                "INSERT INTO expiry VALUES (?, ?, ?, ?)",
                [(*row[:3], row[4]) for row in batch if row[4] is not None],
            )
            db.execute("COMMIT")
            count += len(batch)
        copied = time.perf_counter()
        for *name, value, expires_at in from_lmdb.by_name():
            assert db.execute(BY_NAME, name).fetchone() == (value, expires_at)
        assert db.execute("SELECT count(*) FROM ldk_node_data").fetchone() == (count,)
        by_name = time.perf_counter()
        for here, there in zip(from_lmdb.by_name(), db.execute(IN_ORDER), strict=True):
            assert here == there
        in_order = time.perf_counter()
    shutil.rmtree(path.parent)
    return by_name - start, copied - start + in_order - by_name


def test_lmdb_to_sqlite(
    benchmark: Any,
    note: Callable[..., None],
    sizes: Sizes,
    filled: Callable[[int], str],
    folder: Path,
) -> None:
    url = filled(sizes.migrated)
    source = Path(url.removeprefix("lmdb:").partition("?")[0])
    in_order: list[float] = []
    growth: list[int] = []

    def ours() -> float:
        place = folder / "ours"
        before, most = anonymous_bytes(), 0

        def look(progress: Progress) -> None:
            nonlocal most
            if progress.done % BATCH == 0:
                most = max(most, anonymous_bytes(collect=False))

        start = time.perf_counter()
        done = migrate(url, f"sqlite:{place / 'store'}", on_progress=look)
        seconds = time.perf_counter() - start
        assert done.entries == done.copied == sizes.migrated
        growth.append(most - before)
        shutil.rmtree(place)
        return seconds

    def raw() -> float:
        by_name, ordered = raw_loop(source, folder / "raw" / "store")
        in_order.append(ordered)
        return by_name

    own, by_name = in_turn(benchmark, ours, raw, rounds=1)
    note(
        "migrate/lmdb to sqlite",
        {
            "records": sizes.migrated,
            "s": own,
            "raw s": by_name,
            "x raw loop": own / by_name,
            "x raw loop, verified in order": own / in_order[-1],
            "growth MiB": max(growth) / 2**20,
        },
    )
