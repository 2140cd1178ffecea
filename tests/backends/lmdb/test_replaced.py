"""Files that are deleted, replaced, set back or remounted below an open store: no change is lost silently."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

from kvreplay.backends.lmdb import LMDBStore, presence
from kvreplay.errors import CorruptStoreError, StoreError, StoreUnavailableError
from support.disks import mounted
from support.lmdb_stores import (
    MARKER,
    Process,
    environment_of,
    handle_of,
    in_process,
    nothing_is_open,
    open_files_of,
)
from support.needs import complaint_of, missing

WRITER = """
store = LMDBStore(path)
say("ready")
while key := wait():
    try:
        store.write("p", "s", key, b"theirs")
        say("written")
    except StoreError as error:
        say(type(error).__name__)
store.close()
"""


def transact(store: LMDBStore) -> None:
    with store.transaction() as txn:
        txn.write("p", "s", "txn", b"v")


CHANGES: list[Callable[[LMDBStore], Any]] = [
    lambda store: store.write("p", "s", "new", b"v"),
    lambda store: store.check_and_put("p", "s", "new", expected=None, value=b"v"),
    lambda store: store.remove("p", "s", "k"),
    lambda store: store.sweep("p", 5, 5),
    transact,
]


def refused(store: LMDBStore, error: type[StoreError], text: str) -> None:
    """Every change is, again and again."""
    for change in CHANGES * 2:
        with pytest.raises(error, match=text):
            change(store)


def copy_into(source: Path, target: Path) -> None:
    """As ``cp`` does: the same inode gets other content."""
    target.write_bytes(source.read_bytes())


def be_quiet(store: LMDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the store know that all is in place, as after some seconds without a change."""
    for bound in ("_SETTLED", "_SOON_SETTLED"):
        monkeypatch.setattr(presence, bound, -1)
    store.write("p", "s", "k", b"v")
    assert environment_of(store).handle.turn.watch.is_quiet()


@pytest.fixture
def kept(store: LMDBStore) -> LMDBStore:
    store.write("p", "s", "k", b"v")
    return store


@pytest.mark.parametrize("what", ["folder", "data.mdb"])
def test_a_deleted_store_acknowledges_nothing(kept: LMDBStore, root: Path, what: str) -> None:
    shutil.rmtree(root) if what == "folder" else (root / what).unlink()
    before = sorted(root.iterdir()) if root.exists() else None
    refused(kept, StoreUnavailableError, "not there any more")
    assert (sorted(root.iterdir()) if root.exists() else None) == before, "something was made"


def test_the_folder_below_a_lost_mount_stays_empty(kept: LMDBStore, root: Path) -> None:
    os.rename(root, root.with_name("away"))
    root.mkdir()
    refused(kept, StoreUnavailableError, "not there any more")
    assert list(root.iterdir()) == []
    root.rmdir()
    os.rename(root.with_name("away"), root)  # it is back
    handle = handle_of(kept)
    kept.write("p", "s", "new", b"v")
    assert handle_of(kept) is handle


@pytest.mark.parametrize("quiet", [True, False])
def test_another_store_in_its_place_is_refused(
    kept: LMDBStore, root: Path, tmp_path: Path, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if all was in place for so long that one look at the folder was enough."""
    if quiet:
        be_quiet(kept, monkeypatch)
    os.rename(root, tmp_path / "away")
    with Process(WRITER, root) as other:
        assert other.hear() == "ready"
        other.tell("other")
        assert other.hear() == "written"
        refused(kept, CorruptStoreError, "another store's")
        with pytest.raises(CorruptStoreError, match="another store's"):
            kept.read("p", "s", "k")  # from now on
        other.tell("more")
        assert other.hear() == "written"
    kept.close()
    with LMDBStore(root) as store:
        assert sorted(store.list("p", "s")) == ["more", "other"]
    with LMDBStore(tmp_path / "away") as store:
        assert store.list("p", "s") == ["k"]
    assert nothing_is_open()


def test_an_older_copy_that_sets_the_times_back_too_is_refused(
    kept: LMDBStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``rsync -a`` restores a backup: by a rename, and the folder's time as it was."""
    be_quiet(kept, monkeypatch)
    before = root.stat()
    shutil.copy(root / "data.mdb", tmp_path / "backup")
    kept.write("p", "s", "later", b"v")
    os.rename(tmp_path / "backup", root / "data.mdb")
    os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))
    while root.stat().st_ctime_ns == before.st_ctime_ns:  # the kernel's clock has coarse steps
        os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert root.stat().st_mtime_ns == before.st_mtime_ns
    refused(kept, CorruptStoreError, "older copy")


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_an_older_copy_in_its_place_is_refused(
    kept: LMDBStore, root: Path, tmp_path: Path, how: str
) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(root, backup)
    kept.write("p", "s", "later", b"v")
    if how == "moved":
        os.rename(root, tmp_path / "away")
        os.rename(backup, root)
    else:
        copy_into(backup / "data.mdb", root / "data.mdb")
    data = (root / "data.mdb").read_bytes()
    refused(kept, CorruptStoreError, "older copy")
    with pytest.raises(CorruptStoreError, match="older copy"):
        kept.read("p", "s", "k")
    assert (root / "data.mdb").read_bytes() == data
    kept.close()
    with LMDBStore(root) as store:  # as the message says, to go on with it
        assert store.list("p", "s") == ["k"]
        store.write("p", "s", "new", b"v")


def test_an_older_copy_below_two_processes_is_refused_by_both(
    kept: LMDBStore, root: Path, tmp_path: Path
) -> None:
    shutil.copy(root / "data.mdb", tmp_path / "backup")
    with Process(WRITER, root) as other:
        assert other.hear() == "ready"
        other.tell("later")
        assert other.hear() == "written"
        copy_into(tmp_path / "backup", root / "data.mdb")
        refused(kept, CorruptStoreError, "older copy")
        other.tell("more")
        assert other.hear() == "CorruptStoreError"


def test_the_same_store_in_its_place_is_opened_anew(
    kept: LMDBStore, root: Path, tmp_path: Path
) -> None:
    """As after a remount, or where an overlay makes a copy: other inodes, the same content."""
    shutil.copytree(root, tmp_path / "copy")
    os.rename(root, tmp_path / "away")
    os.rename(tmp_path / "copy", root)
    identity = kept.identity
    kept.write("p", "s", "new", b"v")
    assert kept.identity == identity, "the flights of a process find each other by it"
    assert kept.read("p", "s", "k") == b"v"
    with LMDBStore(root) as again:  # it shares the environment, found by its new files
        assert environment_of(again) is environment_of(kept)
        assert sorted(again.list("p", "s")) == ["k", "new"]
    with LMDBStore(tmp_path / "away") as away:
        assert away.list("p", "s") == ["k"]


def test_a_mount_that_comes_back_as_another_device(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=4m"):
        with LMDBStore(disk / "store") as store:
            store.write("p", "s", "k", b"v")
            complaint = complaint_of("mount", "--bind", str(disk / "store"), str(disk / "store"))
            if complaint is not None:
                missing(f"needs the right to bind: {complaint}")
            try:
                store.write("p", "s", "new", b"v")
            finally:
                subprocess.run(["umount", str(disk / "store")], check=True)
            assert store.read("p", "s", "new") == b"v"


def test_a_removed_lock_file_loses_no_change(kept: LMDBStore, root: Path) -> None:
    """Each side would build on an old snapshot of its own."""
    (root / "lock.mdb").unlink()
    keys = ["k"]
    with Process(WRITER, root) as other:
        assert other.hear() == "ready"
        assert (root / "lock.mdb").exists()
        for n in range(10):
            other.tell(f"theirs{n}")
            assert other.hear() == "written"
            kept.write("p", "s", f"ours{n}", b"v")
            keys += [f"theirs{n}", f"ours{n}"]
            assert sorted(kept.list("p", "s")) == sorted(keys)
        other.tell()
        other.join()
    kept.close()
    with LMDBStore(root) as store:
        assert sorted(store.list("p", "s")) == sorted(keys)


@pytest.mark.parametrize("name", ["lock.mdb", "kvreplay.lock"])
def test_a_lock_file_that_is_removed_in_a_transaction(
    kept: LMDBStore, root: Path, name: str
) -> None:
    """Who opens the store waits for its end, and who comes next looks again."""
    with Process(WRITER, root) as other:
        with kept.transaction() as txn:
            txn.write("p", "s", "txn", b"v")
            (root / name).unlink()
        assert other.hear() == "ready"
        for n in range(3):
            other.tell(f"theirs{n}")
            assert other.hear() == "written"
            kept.write("p", "s", f"ours{n}", b"v")
        other.tell()
        other.join()
    assert len(kept.list("p", "s")) == 8


@pytest.mark.parametrize("names", [["kvreplay.lock"], ["kvreplay.lock", "lock.mdb"]])
def test_nobody_comes_into_a_transaction_whose_lock_files_are_removed(
    kept: LMDBStore, root: Path, names: list[str]
) -> None:
    """As by who wants to get rid of *stale* locks: he would wait without a bound, or lose a change."""
    code = """
try:
    store = LMDBStore(path, lock_timeout=0.3)
    store.write("p", "s", "theirs", b"v")
    store.close()
except StoreUnavailableError as error:
    say(error)
"""
    with kept.transaction() as txn:
        txn.write("p", "s", "txn", b"v")
        for name in names:
            (root / name).unlink()
        assert f"the process {os.getpid()} has it" in in_process(code, root)
    assert in_process(code, root) == ""
    kept.write("p", "s", "ours", b"v")
    assert sorted(kept.list("p", "s")) == ["k", "ours", "theirs", "txn"]


def test_a_marker_of_another_store(root: Path, tmp_path: Path) -> None:
    """``data.mdb`` alone was put in the place of another."""
    for path in (root, tmp_path / "other"):
        with LMDBStore(path) as store:
            store.write("p", "s", path.name, b"v")
    copy_into(tmp_path / "other" / "data.mdb", root / "data.mdb")
    with pytest.raises(CorruptStoreError, match="another store's"):
        LMDBStore(root)
    (root / MARKER).unlink()  # as the message says
    with LMDBStore(root) as store:
        assert store.list("p", "s") == ["other"]


# Descriptors that are another's by now.


def test_closed_descriptors_are_opened_anew(kept: LMDBStore, root: Path) -> None:
    for number in descriptors_of(root):
        os.close(number)
    kept.write("p", "s", "new", b"v")
    assert kept.read("p", "s", "new") == b"v"
    assert len(descriptors_of(root)) == 5
    kept.close()
    assert open_files_of(root) == []


def test_descriptors_that_are_other_files_by_now_are_left_alone(
    kept: LMDBStore, root: Path, tmp_path: Path
) -> None:
    """A daemon closes all it has, and opens its own files under those numbers."""
    numbers = descriptors_of(root)
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"precious")
    for number in numbers:
        opened = os.open(theirs, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
    for _ in range(2):
        with pytest.raises(StoreError, match="descriptors that it has closed"):
            kept.write("p", "s", "new", b"v")
    kept.close()
    assert theirs.read_bytes() == b"precious"
    for number in numbers:
        assert os.path.samestat(os.fstat(number), theirs.stat())
        os.close(number)


@pytest.mark.parametrize("reused", [True, False])
def test_a_child_that_closes_all_descriptors(
    kept: LMDBStore, root: Path, tmp_path: Path, fork: Any, reused: bool
) -> None:
    """It becomes a daemon: what it has opened since is not closed when it opens the store anew."""
    numbers = descriptors_of(root)

    def child() -> None:
        os.closerange(min(numbers), max(numbers) + 1)
        if reused:
            mine = [os.open(tmp_path, os.O_RDONLY) for _ in range(4)]
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="a daemon must close"):
                    kept.write("p", "s", "child", b"v")
            for number in mine:
                assert os.path.samestat(os.fstat(number), tmp_path.stat())
        else:
            kept.write("p", "s", "child", b"v")
            assert kept.read("p", "s", "child") == b"v"

    fork(child).join()
    assert kept.list("p", "s") == (["k"] if reused else ["child", "k"])
    kept.write("p", "s", "parent", b"v")


def descriptors_of(root: Path) -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(f"{root.resolve()}/"):
                found.append(int(name))
        except OSError:
            pass  # of the listing itself
    return found


def test_a_check_that_fails_leaves_no_transaction_open(
    kept: LMDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(environment_of(kept).handle._readers, "look", _fail)
        for change in CHANGES:
            with pytest.raises(StoreError):
                change(kept)
    kept.write("p", "s", "new", b"v")


def _fail(*_args: Any) -> None:
    raise lmdb.CorruptedError("in the middle")


@pytest.mark.parametrize(("fraction", "bound"), [(0, 1.0), (123_456_789, 0.1)])
def test_a_look_at_the_folder_counts_once_its_last_change_is_past(
    fraction: int, bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may tell a change to the second only, so the next one may look the same."""
    second = 1_000_000_000
    changed = 1_700_000_000 * second + fraction
    status = SimpleNamespace(st_dev=1, st_ino=1, st_ctime_ns=changed)
    monkeypatch.setattr(presence.os, "stat", lambda path: status)
    for late in (False, True):
        watch = presence.FolderWatch(str(tmp_path))
        now = changed + int((bound + (0.01 if late else -0.01)) * second)
        monkeypatch.setattr(presence.time, "time_ns", lambda now=now: now)
        assert not watch.is_quiet()
        watch.settle()
        assert watch.is_quiet() is late
    monkeypatch.undo()
