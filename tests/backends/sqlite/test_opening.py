"""Opening: what is made, what is refused and by which name, and what is found to be gone later."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvreplay import open_store
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.sqlite import SQLiteStore, database
from kvreplay.errors import (
    ConfigError,
    CorruptStoreError,
    StoreError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from kvreplay.testing.entries import content
from support.sqlite_stores import in_process, locks_of, raw

ENDS = ("", "-wal", "-shm")


def test_a_new_store_is_made_whole(root: Path) -> None:
    """With mode 0600, in folders that are its own; nothing temporary stays."""
    path = root / "deep" / "store.db"
    with SQLiteStore(path):
        pass
    assert sorted(os.listdir(path.parent)) == ["store.db", "store.db-kvreplay-lock"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with raw(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_none_is_made_where_none_may_be(root: Path) -> None:
    path = root / "deep" / "store.db"
    with pytest.raises(StoreNotFoundError, match="create"):
        SQLiteStore(path, create=False)
    assert not root.exists()
    with pytest.raises(StoreNotFoundError):
        open_store(f"sqlite://{path}?create=false")
    SQLiteStore(path).close()
    with SQLiteStore(path, create=False) as store:
        store.write("p", "s", "k", b"v")


@pytest.mark.parametrize("empty", [True, False])
def test_a_store_that_is_gone_or_emptied_is_not_a_new_one(root: Path, empty: bool) -> None:
    SQLiteStore(root).close()
    if empty:
        os.truncate(root, 0)
    else:
        root.unlink()
    for create in (True, False):
        with pytest.raises(CorruptStoreError, match="empty" if empty else "missing"):
            SQLiteStore(root, create=create)
    root.with_name("store-kvreplay-lock").unlink()
    if not empty:
        assert not root.exists()
    SQLiteStore(root).close()


def test_an_empty_file_or_database_becomes_a_store(root: Path) -> None:
    root.touch()
    with pytest.raises(StoreNotFoundError):
        SQLiteStore(root, create=False)
    SQLiteStore(root).close()
    other = root.with_name("other")
    with raw(other) as connection:
        connection.execute("VACUUM")
        connection.execute("CREATE TABLE t (x)")
        connection.execute("DROP TABLE t")
    assert other.stat().st_size
    with pytest.raises(StoreNotFoundError, match="without any table"):
        SQLiteStore(other, create=False)
    with SQLiteStore(other) as store:
        store.write("p", "s", "k", b"v")


def lmdb(path: Path) -> None:
    LMDBStore(path).close()


def files(path: Path) -> None:
    FilesystemStore(path).close()


def node(path: Path) -> None:
    path.mkdir()
    (path / "ldk_node_data.sqlite").touch()


def folder(path: Path) -> None:
    path.mkdir()


def other_database(path: Path) -> None:
    with raw(path) as connection:
        connection.execute("CREATE TABLE wallet (x)")


def text(path: Path) -> None:
    path.write_text("no database at all, " * 400)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lmdb, "with an LMDB store"),
        (files, "with a filesystem store"),
        (node, r"with ldk-node's ldk_node_data.sqlite"),
        (folder, "is a directory"),
        (other_database, "database of another program"),
        (text, "no SQLite database"),
    ],
)
def test_what_is_no_store_is_refused_by_its_name_and_untouched(
    root: Path, make: Callable[[Path], None], says: str
) -> None:
    make(root)
    before = sorted(each.name for each in root.parent.iterdir())
    for create in (True, False):
        with pytest.raises(CorruptStoreError, match=says):
            SQLiteStore(root, create=create)
    assert sorted(each.name for each in root.parent.iterdir()) == before


def test_a_format_of_our_own_that_is_newer(root: Path) -> None:
    SQLiteStore(root).close()
    with raw(root) as connection:
        connection.execute("UPDATE kvreplay_meta SET value = 2 WHERE name = 'format'")
    with pytest.raises(CorruptStoreError, match="another format"):
        SQLiteStore(root)


def test_a_store_that_has_lost_a_row_of_its_own_is_damaged(root: Path) -> None:
    with SQLiteStore(root) as store:
        store.write("p", "s", "k", b"v")
        with raw(root) as connection:
            connection.execute("DELETE FROM kvreplay_meta WHERE name = 'last_order'")
        with pytest.raises(CorruptStoreError, match="lost a row"):
            store.write("p", "s", "other", b"v")
        assert store.read("p", "s", "k") == b"v"
    with raw(root) as connection:  # as an index that a lost write has left older than its table
        connection.execute("DELETE FROM kvreplay_meta WHERE name = 'id'")
        connection.execute(
            "CREATE TRIGGER lost BEFORE INSERT ON kvreplay_meta BEGIN SELECT RAISE(IGNORE); END"
        )
    with pytest.raises(CorruptStoreError, match="lost a row"):
        SQLiteStore(root)


@pytest.mark.parametrize("options", [{"durability": "none"}, {"create": "false"}, {"create": 1}])
def test_a_wrong_option(root: Path, options: Any) -> None:
    with pytest.raises(ConfigError):
        SQLiteStore(root, **options)
    assert not root.exists()


def test_the_identity_is_the_files(root: Path) -> None:
    """Whatever path leads to it; a copy is another store."""
    link = root.with_name("link")
    link.symlink_to(root)
    with SQLiteStore(root) as store, SQLiteStore(link) as same:
        assert store.identity == same.identity
        assert store.owners_file == same.owners_file == f"{root}-kvreplay-owners"
        one = store.identity
    copy = root.with_name("copy")
    shutil.copy(root, copy)
    with SQLiteStore(copy) as other:
        assert other.identity != one


@pytest.mark.parametrize(
    "what", ["removed", "replaced", "log removed", "shared memory removed", "folder moved"]
)
def test_files_that_changed_are_noticed_by_the_next_write(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "folder"
    path = folder / "store.db"
    with SQLiteStore(path) as store, SQLiteStore(tmp_path / "new.db") as new:
        new.write("p", "s", "other", b"v")
        store.write("p", "s", "k", b"v")
        if what == "removed":
            path.unlink()
        elif what == "replaced":
            new.close()
            (tmp_path / "new.db").rename(path)
            (folder / "store.db-wal").unlink()  # else SQLite takes it for the new file's
        elif what == "log removed":
            (folder / "store.db-wal").unlink()
        elif what == "shared memory removed":
            (folder / "store.db-shm").unlink()
        else:
            folder.rename(tmp_path / "moved")
        for call in (
            lambda: store.write("p", "s", "k", b"lost"),
            lambda: store.check_and_put("p", "s", "k", expected=b"v", value=b"lost"),
            lambda: store.transaction().__enter__(),
            lambda: store.sweep("p", 5, 5),
        ):
            with pytest.raises(StoreUnavailableError, match="no longer the file"):
                call()
    if what == "replaced":
        with SQLiteStore(path) as later:
            assert content(later) == {("p", "s", "other"): b"v"}


def test_files_that_are_moved_back_are_the_same(root: Path) -> None:
    with SQLiteStore(root) as store:
        store.write("p", "s", "k", b"v")
        root.rename(root.with_name("aside"))
        with pytest.raises(StoreUnavailableError):
            store.write("p", "s", "k", b"w")
        root.with_name("aside").rename(root)
        store.write("p", "s", "k", b"w")


def contents(path: Path) -> dict[int, bytes]:
    """What is in the three files, by SQLite's own descriptors of them."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{name}") in [f"{path}{end}" for end in ENDS]:
                found[int(name)] = os.pread(int(name), 1 << 24, 0)
    return found


def test_an_older_copy_of_all_files_in_their_place_is_refused(root: Path) -> None:
    """As ``rsync --inplace`` restores a backup. Without this, what is newer would be gone silently."""
    with SQLiteStore(root) as store:
        store.write("p", "s", "k", b"v")
        older = contents(root)
        assert len(older) == len(ENDS)
        store.write("p", "s", "k", b"newer")
        store.write("p", "s", "later", b"v")
        newer = contents(root)
        for file, content_of in older.items():
            os.pwrite(file, content_of, 0)
        assert store.list("p", "s") == ["k"], "it is the older copy"
        for call in (
            lambda: store.write("p", "s", "new", b"v"),
            lambda: store.check_and_put("p", "s", "k", expected=b"v", value=b"w"),
            lambda: store.remove("p", "s", "k"),
            lambda: store.transaction().__enter__(),
            lambda: store.sweep("p", 5, 5),
        ):
            with pytest.raises(CorruptStoreError, match="older copy"):
                call()
        for file, content_of in newer.items():
            os.pwrite(file, content_of, 0)
        store.write("p", "s", "new", b"v")
        assert sorted(store.list("p", "s")) == ["k", "later", "new"]


def test_a_write_never_opens_the_database_file(root: Path) -> None:
    """To open and close it would end SQLite's locks in this process, as this test shows first."""
    with SQLiteStore(root) as store:
        store.write("p", "s", "k", b"v")
        held = locks_of(os.getpid(), root)
        assert held
        for n in range(3):
            store.write("p", "s", "k", b"%d" % n)
            store.read("p", "s", "k")
            assert store.identity
        with store.transaction() as txn:
            txn.write("p", "s", "k", b"v")
        with SQLiteStore(root):  # which looks at the path, and opens it by SQLite only
            pass
        assert locks_of(os.getpid(), root) == held
        root.open().close()
        assert locks_of(os.getpid(), root) == []


def test_an_old_version_of_sqlite_is_named_once(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, said in (((3, 51, 2), 1), ((3, 51, 3), 0)):
        monkeypatch.setattr(database, "_warned", [])
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "kvreplay"):
            SQLiteStore(root).close()
            SQLiteStore(root).close()
        assert [record.getMessage() for record in caplog.records if "WAL-reset" in record.msg] == [
            record.getMessage() for record in caplog.records
        ]
        assert len(caplog.records) == said


def test_a_damaged_page_is_a_corrupt_store(root: Path) -> None:
    with SQLiteStore(root) as store:
        for n in range(50):
            store.write("p", "s", f"k{n}", bytes(3000))
    with root.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (root.stat().st_size - 4096))
    with pytest.raises(CorruptStoreError, match="damaged"):
        SQLiteStore(root)


def test_processes_that_make_the_same_store_at_once(root: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    code = """
with SQLiteStore(path) as store:
    store.write("p", "s", str(os.getpid()), b"v")
    say(store.identity[1])
"""
    with ThreadPoolExecutor(3) as pool:
        said = {text.strip() for text in pool.map(lambda _: in_process(code, root), range(3))}
    assert len(said) == 1, "each made its own"
    with SQLiteStore(root) as store:
        assert len(store.list("p", "s")) == 3
    assert [each.name for each in root.parent.iterdir() if "tmp" in each.name] == []


def test_a_store_that_nobody_may_write(root: Path) -> None:
    with pytest.raises(StoreError, match="cannot open"):
        SQLiteStore("/proc/no/such/store.db")
