"""Faults that are planted in an engine's own structures: ``check`` tells of each, and of no other."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb.entries import digest_of
from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.store import Entry

ADDRESS = ("p", "s", "k")
STAMP = (6).to_bytes(8, "big")  # of the expiry 5
CREATED = digest_of(b"p\0s") + (1).to_bytes(8, "big")

Plant = Callable[[Any, Any], object]


def filled(engine: Any, path: Path) -> None:
    with engine(path) as store:
        for key, expires_at in (("k", 5), ("good", 5), ("lasting", None)):
            store.check_and_put("p", "s", key, expected=None, value=b"v", expires_at=expires_at)
        assert list(store.check()) == []


IN_LMDB: list[tuple[str, Plant, list[tuple[Any, str]]]] = [
    ("no fault", lambda txn, dbs: None, []),
    (
        "an expiry that is not in the index",
        lambda txn, dbs: txn.delete(b"p\0" + STAMP + b"s\0k", db=dbs["expiry"]),
        [(ADDRESS, "expiry index lacks")],
    ),
    (
        "an entry that is gone, in the index",
        lambda txn, dbs: txn.put(b"p\0" + STAMP + b"s\0gone", b"", db=dbs["expiry"]),
        [(("p", "s", "gone"), "at a time that is not its own")],
    ),
    (
        "another time in the index",
        lambda txn, dbs: txn.put(b"p\0" + bytes(7) + b"\7s\0k", b"", db=dbs["expiry"]),
        [(ADDRESS, "at a time that is not its own")],
    ),
    (
        "an entry's item in the index that is another one's",
        lambda txn, dbs: (
            txn.delete(b"p\0" + STAMP + b"s\0k", db=dbs["expiry"]),
            txn.put(b"p\0" + bytes(7) + b"\7s\0gone", b"", db=dbs["expiry"]),
        ),
        [(ADDRESS, "no sweep removes it"), (("p", "s", "gone"), "at a time that is not its own")],
    ),
    (
        "what is no item of the index",
        lambda txn, dbs: txn.put(b"junk", b"", db=dbs["expiry"]),
        [(None, "at a time that is not its own")],
    ),
    (
        "an entry that is too short",
        lambda txn, dbs: txn.put(b"p\0s\0lasting", b"short", db=dbs["entries"]),
        [(("p", "s", "lasting"), "too short")],
    ),
    (
        "an entry under a name that is none",
        lambda txn, dbs: txn.put(b"p\0s\0a/b", b"short", db=dbs["entries"]),
        [],
    ),
    (
        "a creation that is not in the index",
        lambda txn, dbs: txn.delete(CREATED, db=dbs["created"]),
        [(ADDRESS, "no page shows it")],
    ),
    (
        "a creation with another entry's number",
        lambda txn, dbs: txn.put(CREATED, b"good", db=dbs["created"]),
        [(ADDRESS, "no page shows it")],
    ),
    (
        "a number that was not given yet",
        lambda txn, dbs: txn.put(b"created", (2).to_bytes(8, "big"), db=dbs["meta"]),
        [(("p", "s", "lasting"), "not given yet")],
    ),
]


@pytest.mark.parametrize(("plant", "expected"), [each[1:] for each in IN_LMDB])
def test_lmdb(plant: Plant, expected: list[tuple[Any, str]], tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(LMDBStore, path)
    with lmdb.open(str(path), max_dbs=8, map_size=2**34, lib_version=0) as env:
        names = ("entries", "expiry", "created", "meta")
        dbs = {name: env.open_db(name.encode(), create=False) for name in names}
        with env.begin(write=True) as txn:
            plant(txn, dbs)
    assert_told(LMDBStore, path, expected)


def assert_told(engine: Any, path: Path, expected: list[tuple[Any, str]]) -> None:
    with engine(path) as store:
        found = list(store.check())
        assert [fault.address for fault in found] == [address for address, _ in expected]
        for fault, (address, what) in zip(found, expected, strict=True):
            assert what in fault.what
            assert address is None or address[2] not in repr(fault).partition("what=")[0]


BROKEN_INDEX = """
    DROP INDEX idx_ldk_node_data_paginated;
    CREATE INDEX idx_ldk_node_data_paginated ON ldk_node_data
        (primary_namespace, secondary_namespace, sort_order DESC, key ASC) WHERE key <> 'k';
    PRAGMA writable_schema = ON;
    UPDATE sqlite_master SET sql = replace(sql, ' WHERE key <> ''k''', '')
        WHERE name = 'idx_ldk_node_data_paginated';
"""
IN_SQLITE = {
    "SELECT 1": [],
    "UPDATE ldk_node_data SET value = 'v' WHERE key = 'k'": [(ADDRESS, "no blob")],
    "UPDATE ldk_node_data SET value = NULL WHERE key = 'k'": [(ADDRESS, "no blob")],
    "UPDATE ldk_node_data SET sort_order = -1 WHERE key = 'k'": [(ADDRESS, "no number")],
    "UPDATE ldk_node_data SET sort_order = 0.5 WHERE key = 'k'": [(ADDRESS, "no number")],
    "UPDATE ldk_node_data SET key = 'a/b', value = 1 WHERE key = 'k'": [],
    BROKEN_INDEX: [(None, "SQLite says: row 1 missing from index")],
}


@pytest.mark.parametrize("plant", IN_SQLITE)
def test_sqlite(plant: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(SQLiteStore, path)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(plant)
        db.commit()
    expected = IN_SQLITE[plant]
    if "missing" in str(expected):
        with SQLiteStore(path) as store:
            told = [fault.what for fault in store.check()]
            assert expected[0][1] in told[0]
    else:
        assert_told(SQLiteStore, path, expected)


@pytest.mark.parametrize(
    ("plant", "what"),
    [
        ("UPDATE kvreplay_meta SET value = 1 WHERE name = 'last_order'", "is less than that"),
        ("DELETE FROM kvreplay_meta WHERE name = 'settled'", "lost its row settled"),
    ],
)
def test_sqlite_while_it_is_open(plant: str, what: str, tmp_path: Path) -> None:
    """What an opening would mend."""
    path = tmp_path / "store"
    filled(SQLiteStore, path)
    with SQLiteStore(path) as store:
        with closing(sqlite3.connect(path)) as db:
            db.execute(plant)
            db.commit()
        (fault,) = store.check()
        assert (fault.address, what in fault.what) == (None, True)


@pytest.mark.parametrize("engine", [LMDBStore, SQLiteStore])
def test_many_pages(engine: Any, tmp_path: Path) -> None:
    with engine(tmp_path / "store") as store:
        with store.transaction() as transaction:
            for n in range(2500):
                transaction.check_and_put("p", "s", f"{n}", expected=None, value=b"v", expires_at=n)
        assert list(store.check()) == []
        assert len({address for address, _ in store.scan()}) == 2500


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with SQLiteStore(path) as store:
        for n in range(200):
            store.write("p", "s", f"k{n}", bytes(1000))
    content = bytearray(path.read_bytes())
    for page in range(20, len(content) // 4096):
        content[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(content)
    with SQLiteStore(path) as store:
        found = list(store.check())
        assert found
        assert all(fault.address is None for fault in found)


def copied(path: Path, place: Path, *, linked: bool) -> None:
    copy = shutil.copytree
    copy(path, place, symlinks=True)
    sidecar, other = Path(f"{path}.kvreplay"), Path(f"{place}.kvreplay")
    copy(sidecar, other, symlinks=True)
    if linked:
        for marker in other.glob("expiry/*/*/*/*"):
            key = marker.name.split("~")[1]
            marker.unlink()
            marker.hardlink_to(place / "p" / "s" / key)


@pytest.mark.parametrize("linked", [True, False])
def test_the_file_system_tells_of_a_copy_without_its_links(linked: bool, tmp_path: Path) -> None:
    filled(FilesystemStore, tmp_path / "store")
    copied(tmp_path / "store", tmp_path / "copy", linked=linked)
    with FilesystemStore(tmp_path / "copy") as store:
        expires_at = 5 if linked else None
        assert store.read_entry(*ADDRESS) == Entry(b"v", expires_at)
        found = list(store.check())
        lost = [] if linked else [("p", "s", "good"), ADDRESS]
        assert sorted(fault.address for fault in found) == lost
        store.write(*ADDRESS, b"w")  # whoever changes it says anew what its expiry is
        assert ADDRESS not in [fault.address for fault in store.check()]


def test_the_file_system_takes_no_other_marker_for_a_fault(tmp_path: Path) -> None:
    """A crash may leave one of an entry that was replaced since."""
    filled(FilesystemStore, tmp_path / "store")
    value = tmp_path / "store" / "p" / "s" / "k"
    value.unlink()
    value.write_bytes(b"another")
    with FilesystemStore(tmp_path / "store") as store:
        assert list(store.check()) == []
