"""What an LMDB store is and stores, and what its options do."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb import entries as lmdb_entries
from kvreplay.errors import ConfigError, InvalidNameError, KeyNotFoundError, StoreError
from kvreplay.store import SweepResult, TransactionalKVStore
from support.lmdb_stores import (
    KIB,
    MARKER,
    environment_of,
    handle_of,
    in_process,
    nothing_is_open,
    open_files_of,
    traced,
)
from support.needs import needs_strace
from support.told import told


def test_what_it_is(store: LMDBStore, root: Path) -> None:
    typed: TransactionalKVStore = store
    assert isinstance(typed, TransactionalKVStore)
    assert repr(store) == f"<LMDBStore {root} open>"
    found = (root / "data.mdb").stat()
    engine, identity = store.identity
    assert engine == "lmdb"
    assert (found.st_dev, found.st_ino) in identity
    assert LMDBStore.LOCATION == "path"
    assert set(LMDBStore.OPTIONS) == {
        *("map_size", "durability", "max_readers", "lock_timeout", "create")
    }
    store.close()
    assert repr(store) == f"<LMDBStore {root} closed>"


def test_stored_bytes(store: LMDBStore, root: Path) -> None:
    """The format, pinned: whoever changes it changes the marker too."""
    store.write("p", "", "k", b"value")
    store.write("", "", "k", b"")
    store.check_and_put("p", "s", "k", expected=None, value=b"v", expires_at=0)
    store.check_and_put("p", "s", "last", expected=None, value=b"v", expires_at=2**63 - 1)
    store.write("p", "s", "gone", b"v")
    store.remove("p", "s", "gone")
    store.check_and_put("p", "s", "k", expected=b"v", value=b"w", expires_at=0)
    store.close()
    with lmdb.open(str(root), max_dbs=8, lib_version=0) as env, env.begin() as txn:
        databases = {
            name: dict(txn.cursor(env.open_db(name, txn, create=False)))
            for name in (b"meta", b"entries", b"expiry", b"created")
        }
    own = databases[b"meta"].pop(b"id")
    assert re.fullmatch(rb"[0-9a-f]{32}", own)
    assert databases == {
        b"meta": {b"format": b"2", b"created": bytes(7) + b"\5"},
        b"entries": {
            b"\0\0k": bytes(15) + b"\2" + bytes(7) + b"\7",
            b"p\0\0k": bytes(15) + b"\1" + bytes(7) + b"\6value",
            b"p\0s\0k": bytes(7) + b"\1" + bytes(7) + b"\3" + bytes(7) + b"\x0cw",
            b"p\0s\0last": b"\x80" + bytes(7) + bytes(7) + b"\4" + bytes(7) + b"\x09v",
        },
        b"expiry": {
            b"p\0" + bytes(7) + b"\1s\0k": b"",
            b"p\0\x80" + bytes(7) + b"s\0last": b"",
        },
        b"created": {
            bytes.fromhex(digest) + bytes(7) + creation: key
            for digest, creation, key in (
                ("6e340b9cffb37a989ca544e6bb780a2c", b"\2", b"k"),
                ("882a20e6379eb83aecb916f4b9ea79c1", b"\1", b"k"),
                ("c6728888e0819810ae217463a9f7963d", b"\3", b"k"),
                ("c6728888e0819810ae217463a9f7963d", b"\4", b"last"),
            )
        },
    }
    names = {path.name for path in root.iterdir()}
    assert names == {"data.mdb", MARKER, "kvreplay.lock", "lock.mdb"}
    assert (root / MARKER).read_bytes() == b"kvreplay lmdb 2\n" + own + b"\n"


def test_no_index_entry_lingers(store: LMDBStore) -> None:
    """A sweep visits what is due and no left-over of an entry that was changed."""

    def put(value: bytes | None, expires_at: int | None = None) -> None:
        try:
            expected = store.read("p", "s", "k")
        except KeyNotFoundError:
            expected = None
        store.check_and_put("p", "s", "k", expected=expected, value=value, expires_at=expires_at)

    for change in (
        lambda: put(b"v", 500),
        lambda: put(b"v"),
        lambda: put(None, 5),
        lambda: store.write("p", "s", "k", b"v"),
        lambda: store.remove("p", "s", "k"),
    ):
        put(b"v", 5)
        change()
        assert store.sweep("p", 499, 10) == SweepResult(0, 0, False)
    put(b"v", 5)
    put(b"w", 5)
    assert store.sweep("p", 499, 10) == SweepResult(1, 1, False)


def test_a_stray_creation_is_on_no_page_with_values(store: LMDBStore) -> None:
    """Another program has removed the entry, and not what is noted of its creation."""
    for key in ("first", "stray", "last"):
        store.write("p", "s", key, key.encode())
    environment = environment_of(store)
    entry = lmdb_entries.entry_key("p", "s", "stray")
    environment.write(lambda txn: txn.delete(entry, db=environment.handle.entries))
    page = store.list_paginated_with_values("p", "s", limit=2)
    assert list(page.entries) == [("last", b"last"), ("first", b"first")]
    assert page.next_page_token is None


def test_a_stray_index_entry_removes_nothing(store: LMDBStore) -> None:
    """Both databases change together, so it is another program's; a sweep drops just that."""
    store.check_and_put("p", "s", "later", expected=None, value=b"v", expires_at=500)
    store.write("p", "s", "never", b"v")
    environment = environment_of(store)

    def stray(txn: Any) -> None:
        for key in ("later", "never", "absent"):
            entry = lmdb_entries.entry_key("p", "s", key)
            index = lmdb_entries.index_key(entry, (6).to_bytes(8, "big"))
            txn.put(index, b"", db=environment.handle.expiry)

    environment.write(stray)
    assert store.sweep("p", 5, 10) == SweepResult(3, 0, False)
    assert sorted(store.list("p", "s")) == ["later", "never"]
    assert store.sweep("p", 500, 10) == SweepResult(1, 1, False)


def test_an_illegal_name_is_told_by_its_part() -> None:
    for names, says in [
        (("p q", "s", "k"), "the primary namespace has a character"),
        (("p", "s t", "k"), "the secondary namespace has a character"),
        (("p", "s", "k l"), "the key has a character"),
        (("p", "s", ""), "the key is empty"),
        (("p", "s", b"k"), "the key is bytes"),
    ]:
        with pytest.raises(InvalidNameError, match=says):
            lmdb_entries.entry_key(*names)
    assert lmdb_entries.entry_key("p", "s", "k") == b"p\0s\0k"


def test_namespaces_are_not_remembered_for_ever() -> None:
    for number in range(2000):
        lmdb_entries.prefix_of("p", str(number))
    assert lmdb_entries.prefix_of.cache_info().currsize < 2000


def test_longest_names_can_expire(store: LMDBStore) -> None:
    names = ("N" * 120,) * 3
    assert store.check_and_put(*names, expected=None, value=b"v", expires_at=5) is None
    assert store.sweep(names[0], 5, 1) == SweepResult(1, 1, False)


@pytest.mark.parametrize(
    "options",
    [
        {"durability": "none"},
        {"map_size": 65535},
        {"map_size": 2**63},
        {"map_size": "1GiB"},
        {"map_size": True},
        {"max_readers": 0},
        {"max_readers": -1},
        {"max_readers": 2**32},
        {"max_readers": 1.5},
    ],
)
def test_absurd_options(root: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LMDBStore(root, **options)
    assert not root.exists()


@pytest.mark.parametrize("path", ["", "a\0b", b"bytes", None, 1])
def test_absurd_paths(path: Any) -> None:
    with pytest.raises(ConfigError, match="path"):
        LMDBStore(path)


@pytest.mark.parametrize("size", [64 * KIB, 64 * KIB + 1, 2**40])
def test_map_sizes(root: Path, size: int) -> None:
    with LMDBStore(root, map_size=size) as store:
        store.write("p", "s", "k", b"v")
    assert (root / "data.mdb").stat().st_blocks < 200
    with LMDBStore(root) as store:
        assert store.read("p", "s", "k") == b"v"


def test_a_map_that_cannot_be_had(root: Path) -> None:
    with pytest.raises(StoreError, match="map_size"):
        LMDBStore(root, map_size=2**62)
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")


@pytest.mark.parametrize(("durability", "metasync"), [("full", True), ("process", False)])
def test_durability(root: Path, durability: Any, metasync: bool) -> None:
    """Data pages are flushed in both; never the two modes in which a power cut may corrupt."""
    with LMDBStore(root, durability=durability) as store:
        flags = handle_of(store).flags()
        assert flags["metasync"] is metasync
        assert flags["sync"]
        assert not flags["writemap"]
        assert not flags["map_async"]


@pytest.mark.parametrize(("durability", "meta_pages"), [("full", 5), ("process", 0)])
def test_flushes_of_commits(root: Path, tmp_path: Path, durability: str, meta_pages: int) -> None:
    """The data pages of each are flushed; the page that makes them count, if ``full``."""
    needs_strace()
    log = tmp_path / "log"
    before = traced(log, root, "openat,fdatasync,pwrite64")
    code = f"""
with LMDBStore(path, durability={durability!r}) as store:
    for _ in range(COUNT):
        store.write("p", "s", "k", b"v")
"""
    LMDBStore(root).close()
    seen = []
    for count in (0, 5):
        in_process(code.replace("COUNT", str(count)), root, before=before)
        lines = log.read_text().splitlines()
        (synchronous,) = (line.split("= ")[1] for line in lines if "O_DSYNC" in line)
        flushes = sum("fdatasync(" in line for line in lines)
        seen.append((flushes, sum(f"pwrite64({synchronous}," in line for line in lines)))
    assert seen[1][0] - seen[0][0] == 5
    assert seen[1][1] - seen[0][1] == meta_pages


def test_an_unclosed_store_warns(root: Path) -> None:
    store = LMDBStore(root)
    with pytest.warns(ResourceWarning, match="open> was not closed"):
        del store
    assert nothing_is_open(), "nobody could close it now"
    assert open_files_of(root) == []


def test_the_environment_variable_does_not_switch_the_format(root: Path) -> None:
    code = 'LMDBStore(path).close(); import lmdb; say(lmdb.open(path + "x").lib_version()[0])'
    newer = in_process(code, root, LMDB_DEFAULT_LIB_VERSION="1")
    assert newer.strip() == "1", "the variable does what its documentation says"
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")
    assert (root / "data.mdb").read_bytes()[16:24] == (0xBEEFC0DE).to_bytes(4, sys.byteorder) + (
        1
    ).to_bytes(4, sys.byteorder)


def test_no_thread_and_no_file_before_it_is_opened(root: Path) -> None:
    code = """
import threading
say(len(threading.enumerate()))
store = LMDBStore(path)
say(len(threading.enumerate()))
store.close()
say(sum("mdb" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")))
"""
    assert in_process(code, root).split() == ["1", "1", "0"]


def test_the_source_of_errors_is_the_drivers(store: LMDBStore) -> None:
    with pytest.raises(KeyNotFoundError) as caught:
        store.read("p", "s", "secret")
    assert "secret" not in told(caught.value)
