"""A disk that gets full, at each page of a write and of an opening."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.errors import StoreFullError
from kvreplay.store import SweepResult
from kvreplay.testing.entries import content
from support.disks import fill_up, mounted
from support.lmdb_stores import KIB, in_process
from support.told import told


def fill(store: LMDBStore, name: str, size: int) -> int:
    """Write until the disk is full; return how many entries were acknowledged."""
    for n in range(10_000):
        try:
            store.write("p", name, f"secret{n}", b"hidden" * (size // 6))
        except StoreFullError as error:
            assert "secret" not in told(error)
            assert "hidden" not in told(error)
            return n
    raise AssertionError("the disk was never full")


def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=1m"):
        root = disk / "store"
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(400 * KIB))
        with LMDBStore(root) as store:
            store.check_and_put("p", "s", "due", expected=None, value=b"v", expires_at=5)
            count = fill(store, "small", 600) + fill(store, "big", 20 * KIB)
            before = content(store)
            assert len(before) == count + 1
            for call in (
                lambda: store.write("p", "s", "due", bytes(100 * KIB)),
                lambda: store.check_and_put(
                    "p", "s", "due", expected=b"v", value=bytes(100 * KIB), expires_at=9
                ),
                lambda: store.check_and_put("p", "s", "x", expected=None, value=bytes(100 * KIB)),
            ):
                with pytest.raises(StoreFullError):
                    call()
            with pytest.raises(StoreFullError), store.transaction() as txn:
                txn.write("p", "s", "due", b"w")
                txn.write("p", "s", "x", bytes(100 * KIB))
            assert content(store) == before
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(content, store).result(30) == before
        with LMDBStore(root) as store:
            assert content(store) == before
            ballast.unlink()
            store.write("p", "s", "x", bytes(100 * KIB))
            assert store.sweep("p", 5, 5) == SweepResult(1, 1, False)
            assert set(content(store)) == (set(before) | {("p", "s", "x")}) - {("p", "s", "due")}


def test_full_disk_at_each_page(tmp_path: Path) -> None:
    """From *no page is free* to *all that are needed are*: applied as a whole, or not at all."""
    disk = tmp_path / "disk"
    with mounted(disk, "size=1m"):
        root, spare = disk / "store", disk / "spare"
        outcomes = []
        for pages in range(14):
            shutil.rmtree(root, ignore_errors=True)
            with LMDBStore(root) as store:
                store.write("p", "s", "k", b"old")
                spare.write_bytes(bytes(pages * 4 * KIB))
                fill_up(disk / "ballast")
                spare.unlink()
                try:
                    with store.transaction() as txn:
                        txn.write("p", "s", "k", b"new")
                        txn.write("p", "s", "more", bytes(6 * 4 * KIB))
                    outcomes.append("applied")
                except StoreFullError:
                    outcomes.append("full")
                applied = outcomes[-1] == "applied"
                assert store.read("p", "s", "k") == (b"new" if applied else b"old")
                assert (("p", "s", "more") in content(store)) is applied
                (disk / "ballast").unlink()
            with LMDBStore(root) as store:
                assert store.read("p", "s", "k") == (b"new" if applied else b"old")
                store.write("p", "s", "k", bytes(50 * KIB))
                assert (("p", "s", "more") in content(store)) is applied
        assert outcomes == sorted(outcomes, reverse=True)
        assert set(outcomes) == {"applied", "full"}


def test_a_full_disk_at_each_page_of_opening(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=512k"):
        root, spare, ballast = disk / "store", disk / "spare", disk / "ballast"
        outcomes = []
        for pages in range(24):
            shutil.rmtree(root, ignore_errors=True)
            spare.write_bytes(bytes(pages * 4 * KIB))
            fill_up(ballast)
            spare.unlink()
            try:
                LMDBStore(root, max_readers=4).close()
                outcomes.append("opened")
            except StoreFullError:
                outcomes.append("full")
            ballast.unlink()
            with LMDBStore(root) as store:
                store.write("p", "s", "k", b"v")
            with LMDBStore(root) as store:
                assert content(store) == {("p", "s", "k"): b"v"}
        assert set(outcomes) == {"opened", "full"}


def test_a_limit_on_the_size_of_files(root: Path) -> None:
    """A full disk that needs no root: here the kernel cuts writes short, which is no ENOSPC."""
    code = """
import resource
with LMDBStore(path) as store:
    size = os.path.getsize(path + "/data.mdb")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, resource.RLIM_INFINITY))
    for n in range(10):
        try:
            store.write("p", "s", f"k{n}", bytes(3000))
        except OutcomeUnknownError:
            raise
        except StoreError as error:
            break
    assert n < 9
    assert store.list("p", "s") == [f"k{m}" for m in range(n)]
    say(n)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    store.write("p", "s", "later", bytes(30000))
"""
    count = int(in_process(code, root))
    with LMDBStore(root) as store:
        assert set(store.list("p", "s")) == {f"k{n}" for n in range(count)} | {"later"}
