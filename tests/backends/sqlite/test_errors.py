"""What SQLite's own errors mean to the caller: each is a real one of SQLite's."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.backends.sqlite.errors import commit_error, leaves_doubt, store_error
from kvreplay.errors import (
    CorruptStoreError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)

TABLE = "CREATE TABLE t (value BLOB)"
INSERT = "INSERT INTO t VALUES (zeroblob(100000))"


def full(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(TABLE)
        db.execute("PRAGMA max_page_count = 4")
        db.execute(INSERT)


def another_file(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("SELECT * FROM t")


def damaged(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(TABLE)
        db.execute(INSERT)
        db.commit()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("SELECT count(value) FROM t").fetchall()


def busy(path: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(path)) as one,
        contextlib.closing(sqlite3.connect(path, timeout=0)) as other,
    ):
        one.execute("BEGIN IMMEDIATE")
        other.execute("BEGIN IMMEDIATE")


def no_folder(path: Path) -> None:
    sqlite3.connect(path / "none" / "file")


def read_only(path: Path) -> None:
    sqlite3.connect(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(TABLE)
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        db.execute(INSERT)


def closed(path: Path) -> None:
    db = sqlite3.connect(path)
    db.close()
    db.execute("SELECT 1")


def wrong(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("SELECT nothing FROM nowhere")


@pytest.mark.parametrize(
    ("fail", "means", "said"),
    [
        (full, StoreFullError, "free some space"),
        (another_file, CorruptStoreError, "restore it from a backup"),
        (damaged, CorruptStoreError, "restore it from a backup"),
        (busy, StoreUnavailableError, "another program holds"),
        (no_folder, StoreUnavailableError, "check the path"),
        (read_only, StoreError, "check the permissions"),
        (closed, StoreError, "closed"),
        (wrong, StoreError, "nothing was changed"),
    ],
)
def test_what_an_error_means(
    fail: Callable[[Path], None], means: type[StoreError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(sqlite3.Error) as found:
        fail(tmp_path / "file")
    error = store_error(found.value, str(tmp_path / "file"))
    assert type(error) is means
    assert said in str(error)
    assert not leaves_doubt(found.value)
    assert type(commit_error(found.value, str(tmp_path / "file"), settled=False)) is means
    assert store_error(error, "elsewhere") is error


@pytest.mark.parametrize(
    ("code", "settled", "means"),
    [
        (sqlite3.SQLITE_IOERR_FSYNC, False, OutcomeUnknownError),
        (sqlite3.SQLITE_IOERR_FSYNC, True, StoreUnavailableError),
        (sqlite3.SQLITE_IOERR_WRITE, False, StoreUnavailableError),
    ],
)
def test_only_a_flush_that_failed_leaves_doubt(
    code: int, settled: bool, means: type[StoreError]
) -> None:
    """``test_crashes.py`` and the torture suite make such disks."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    assert leaves_doubt(error) is (code == sqlite3.SQLITE_IOERR_FSYNC)
    assert type(commit_error(error, "file", settled=settled)) is means


def test_an_error_that_somebody_keeps_does_not_keep_the_files(tmp_path: Path) -> None:
    """SQLite closes a connection late if a statement lives. Then it removes the log at the path,
    even if that is a new store's by now."""
    path = tmp_path / "store"
    with SQLiteStore(path) as store:
        for n in range(4):
            store.write("p", "s", f"k{n}", bytes(9000))
    with SQLiteStore(path) as store:
        kept = []
        assert store.read("p", "s", "k0") == bytes(9000)
        os.truncate(path, 4096)
        for n in range(4):
            try:
                store.read("p", "s", f"k{n}")
                store.list("p", "s")
            except StoreError as error:
                kept.append(error)
        with contextlib.suppress(StoreError):
            store.read("p", "s", "absent")
    assert kept
    assert open_files_below(tmp_path) == []


def open_files_below(folder: Path) -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [each for each in found if each.startswith(str(folder))]
