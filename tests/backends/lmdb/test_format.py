"""The marker, and files that are not what they should be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.errors import CorruptStoreError
from kvreplay.testing.entries import content
from support.lmdb_stores import KIB, MARKER, Process, filled, handle_of, in_process
from support.needs import needs_strace
from support.told import told


def test_an_emptied_data_file_is_no_new_store(root: Path) -> None:
    before = filled(root)
    data = (root / "data.mdb").read_bytes()
    (root / "data.mdb").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match="data.mdb is empty"):
            LMDBStore(root)
        assert (root / "data.mdb").read_bytes() == b""
    (root / "data.mdb").write_bytes(data)
    with LMDBStore(root) as store:
        assert content(store) == before


@pytest.mark.parametrize("marked", [True, False])
def test_an_empty_data_file_is_never_taken_for_a_new_store(root: Path, marked: bool) -> None:
    filled(root)
    os.truncate(root / "data.mdb", 0)
    if not marked:
        (root / MARKER).unlink()
    with pytest.raises(CorruptStoreError, match="data.mdb is empty"):
        LMDBStore(root)
    (root / "data.mdb").unlink()  # as the message says, to accept the loss
    (root / MARKER).unlink(missing_ok=True)
    LMDBStore(root).close()


def test_a_deleted_data_file_is_no_new_store(root: Path) -> None:
    filled(root)
    (root / "data.mdb").unlink()
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match="data.mdb is missing"):
            LMDBStore(root)
        assert not (root / "data.mdb").exists()
    (root / MARKER).unlink()  # as the message says, to accept the loss
    with LMDBStore(root) as store:
        assert content(store) == {}


@pytest.mark.parametrize(
    "left", ["half", "pages", 1, 100, 4096, 4200, 8192, 8193, 12288, -4096, -1]
)
def test_a_cut_data_file_is_refused(root: Path, left: Any) -> None:
    """Touching a page beyond its end would kill the process with SIGBUS: so in a process."""
    filled(root)
    size = (root / "data.mdb").stat().st_size
    if left == "half":
        left = size // 2
    elif left == "pages":
        left = size // 2 // 4096 * 4096
    elif left < 0:
        left += size
    os.truncate(root / "data.mdb", left)
    cut = (root / "data.mdb").read_bytes()
    code = """
try:
    LMDBStore(path)
except CorruptStoreError as error:
    say(str(error))
"""
    assert "restore it from a backup" in in_process(code, root)
    assert (root / "data.mdb").read_bytes() == cut


def test_a_sound_file_may_be_shorter_than_its_page_count(root: Path) -> None:
    """LMDB never writes the pages that a transaction takes and frees again."""
    with LMDBStore(root) as store:
        with store.transaction() as txn:
            txn.write("p", "s", "k", b"v")
            txn.write("p", "s", "big", bytes(200 * KIB))
            txn.remove("p", "s", "big")
        info = handle_of(store).info()
    assert (root / "data.mdb").stat().st_size < (info["last_pgno"] + 1) * 4096
    with LMDBStore(root) as store:
        assert content(store) == {("p", "s", "k"): b"v"}
        store.write("p", "s", "more", bytes(300 * KIB))


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    "garbage",
    [b"not LMDB", b"\0" * 20000, b"SQLite format 3\0" * 1000, os.urandom(20000)],
    ids=["text", "zeros", "SQLite's", "random"],
)
def test_garbage_is_refused(root: Path, garbage: bytes, marked: bool) -> None:
    filled(root)
    (root / "data.mdb").write_bytes(garbage)
    if not marked:
        (root / MARKER).unlink()
    with pytest.raises(CorruptStoreError, match="damaged"):
        LMDBStore(root)
    assert (root / "data.mdb").read_bytes() == garbage
    assert (root / MARKER).exists() is marked


@pytest.mark.parametrize("marked", [True, False])
def test_the_format_of_lmdb_1_is_refused(root: Path, marked: bool) -> None:
    root.mkdir()
    with lmdb.open(str(root), lib_version=1, max_dbs=8) as env, env.begin(write=True) as txn:
        txn.put(b"k", b"v")
    data = (root / "data.mdb").read_bytes()
    if marked:
        (root / MARKER).write_bytes(b"kvreplay lmdb 2\n" + b"0" * 32 + b"\n")
    with pytest.raises(CorruptStoreError, match="LMDB 0.9"):
        LMDBStore(root)
    assert (root / "data.mdb").read_bytes() == data


@pytest.mark.parametrize("text", [b"kvreplay lmdb 3\n", b"", b"kvreplay lmdb 2\n", b"\xff" * 1000])
def test_another_marker_is_refused(root: Path, text: bytes) -> None:
    before = filled(root)
    marker = (root / MARKER).read_bytes()
    (root / MARKER).write_bytes(text)
    data = (root / "data.mdb").read_bytes()
    with pytest.raises(CorruptStoreError, match="another format"):
        LMDBStore(root)
    assert (root / MARKER).read_bytes() == text
    assert (root / "data.mdb").read_bytes() == data
    (root / MARKER).write_bytes(marker)
    with LMDBStore(root) as store:
        assert content(store) == before


@pytest.mark.parametrize("inside", [b"3", None])
@pytest.mark.parametrize("marked", [True, False])
def test_another_format_inside_is_refused(root: Path, inside: bytes | None, marked: bool) -> None:
    filled(root)
    with lmdb.open(str(root), max_dbs=8, lib_version=0) as env:
        meta = env.open_db(b"meta", create=False)
        with env.begin(write=True) as txn:
            if inside is None:
                txn.delete(b"format", db=meta)
            else:
                txn.put(b"format", inside, db=meta)
    if not marked:
        (root / MARKER).unlink()
    data = (root / "data.mdb").read_bytes()
    with pytest.raises(CorruptStoreError, match="another format"):
        LMDBStore(root)
    assert (root / "data.mdb").read_bytes() == data


def test_databases_that_are_missing_are_refused(root: Path) -> None:
    filled(root)
    with lmdb.open(str(root), max_dbs=8, lib_version=0) as env:
        expiry = env.open_db(b"expiry", create=False)
        with env.begin(write=True) as txn:
            txn.drop(expiry)
    with pytest.raises(CorruptStoreError):
        LMDBStore(root)


def test_a_store_without_creations_is_refused(root: Path) -> None:
    """As kvreplay made it for a while, before 0.1.0: without the database ``created``."""
    filled(root)
    with lmdb.open(str(root), max_dbs=8, lib_version=0) as env:
        created = env.open_db(b"created", create=False)
        with env.begin(write=True) as txn:
            txn.drop(created)
    data = (root / "data.mdb").read_bytes()
    with pytest.raises(CorruptStoreError, match="another format"):
        LMDBStore(root)
    assert (root / "data.mdb").read_bytes() == data


def test_a_missing_marker_is_written(root: Path) -> None:
    before = filled(root)
    marker = (root / MARKER).read_bytes()
    (root / MARKER).unlink()
    with LMDBStore(root) as store:
        assert content(store) == before
    assert (root / MARKER).read_bytes() == marker
    (root / "data.mdb").write_bytes(b"")
    with pytest.raises(CorruptStoreError):
        LMDBStore(root)


@pytest.mark.parametrize("named", [True, False])
def test_a_foreign_environment_is_refused_and_untouched(root: Path, named: bool) -> None:
    root.mkdir()
    with lmdb.open(str(root), max_dbs=8, lib_version=0) as env:
        database = env.open_db(b"theirs") if named else None
        with env.begin(write=True) as txn:
            txn.put(b"k", b"v", db=database)
    data = (root / "data.mdb").read_bytes()
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match="another program"):
            LMDBStore(root)
        assert (root / "data.mdb").read_bytes() == data
        assert not (root / MARKER).exists()


@pytest.mark.parametrize("left", ["nothing", "lock.mdb", "data.mdb.0.tmp", "lock.mdb.0.tmp"])
def test_what_a_crash_at_the_very_beginning_leaves(root: Path, left: str) -> None:
    root.mkdir()
    if left != "nothing":
        (root / left).touch()
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")
    with LMDBStore(root) as store:
        assert store.read("p", "s", "k") == b"v"


@pytest.mark.any_python
def test_killed_at_each_step_of_making_a_store(root: Path, tmp_path: Path) -> None:
    """Whatever step it came to, the next opening goes on; a complete one is known as such."""
    needs_strace()
    deep = root.parent / "deep" / "store"
    marked = []
    for step in ("mkdir", "pwrite64", "fdatasync", "fsync", "link", "unlink", "rename"):
        for n in range(1, 50):
            shutil.rmtree(deep.parent, ignore_errors=True)
            before = (
                "strace", "-f", "-o", "/dev/null", "-e", f"trace={step}",
                "-e", f"inject={step}:signal=SIGKILL:when={n}",
            )  # fmt: skip
            with Process('LMDBStore(path).close(); say("made")', deep, before=before) as process:
                made = process.rest().strip() == "made"
            marked.append((deep / MARKER).exists())
            with LMDBStore(deep) as store:
                assert content(store) == {}
                store.write("p", "s", "k", b"v")
            with LMDBStore(deep) as store:
                assert content(store) == {("p", "s", "k"): b"v"}
            if made:
                break
        assert made
    assert len(marked) > 25
    assert set(marked) == {True, False}


@contextmanager
def damaged(root: Path, store: LMDBStore) -> Iterator[None]:
    """Scribble over the pages of the entries, below an open store."""
    store.close()
    pages = (root / "data.mdb").read_bytes()
    with (root / "data.mdb").open("r+b") as file:
        for at in range(2 * 4096, len(pages), 4096):
            if b"secret" in pages[at : at + 4096]:
                file.seek(at + 8)
                file.write(b"\xff" * 8)
    yield
    (root / "data.mdb").write_bytes(pages)


def test_damaged_pages_that_lmdb_notices(root: Path) -> None:
    """It notices few; then the caller is told, and no key is."""
    store = LMDBStore(root)
    store.write("p", "s", "secret", b"v")
    with damaged(root, store), LMDBStore(root) as again:
        for call in (
            lambda: again.read("p", "s", "secret"),
            lambda: again.list("p", "s"),
            lambda: again.write("p", "s", "secret", b"w"),
        ):
            with pytest.raises(CorruptStoreError, match="damaged") as caught:
                call()
            assert "secret" not in told(caught.value)
        with pytest.raises(CorruptStoreError), again.transaction() as txn:
            txn.read("p", "s", "secret")
