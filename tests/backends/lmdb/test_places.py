"""Directories, permissions, places that cannot be used."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kvreplay import open_store
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.errors import (
    ConfigError,
    CorruptStoreError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
)
from kvreplay.testing.entries import content
from support.disks import mounted
from support.lmdb_stores import MARKER, Process, filled, in_process
from support.needs import UNSHARE, needs_pid_namespaces, needs_root, needs_strace


def test_the_directories_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB flushes none. The marker comes last: it vouches for all that was flushed before."""
    flushed: list[str] = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}")
        marked = (tmp_path / "a" / "b" / MARKER).exists()
        data = (tmp_path / "a" / "b" / "data.mdb").exists()
        short = os.path.relpath(name, tmp_path)
        flushed.append("temporary" if short.endswith(".tmp") else f"{short} {data:d}{marked:d}")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    with LMDBStore(tmp_path / "a" / "b"):
        pass
    assert set(flushed[:4]) == {"a 00", ". 00", "a/b 00"}
    assert flushed[-3:] == ["a/b 10", "temporary", "a/b 11"]
    flushed.clear()
    with LMDBStore(tmp_path / "a" / "b"):
        pass
    assert flushed == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_permissions_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with LMDBStore(tmp_path / "a" / "store") as store:
            store.write("p", "s", "k", b"v")
            modes = {
                str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
                for path in tmp_path.rglob("*")
            }
    finally:
        os.umask(before)
    assert modes == {
        "a": 0o700,
        "a/store": 0o700,
        "a/store/data.mdb": 0o600,
        "a/store/lock.mdb": 0o600,
        "a/store/kvreplay.lock": 0o600,
        f"a/store/{MARKER}": 0o600,
    }


def test_a_path_that_is_a_file(root: Path) -> None:
    root.write_bytes(b"precious")
    with pytest.raises(StoreError, match="not a directory"):
        LMDBStore(root)
    with pytest.raises(StoreError):
        LMDBStore(root / "below")
    assert root.read_bytes() == b"precious"


def test_a_path_of_links_that_go_round(root: Path) -> None:
    root.symlink_to(root)
    with pytest.raises(StoreError, match="symbolic links"):
        LMDBStore(root)


def test_a_link_that_leads_nowhere(root: Path) -> None:
    root.symlink_to(root.with_name("nowhere"))
    with pytest.raises(StoreError):
        LMDBStore(root)
    assert not root.with_name("nowhere").exists()


def test_a_read_only_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=4m"):
        with LMDBStore(disk / "store") as store:
            store.write("p", "s", "k", b"v")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("store", "new"):
            with pytest.raises(StoreError, match="writable") as caught:
                LMDBStore(disk / name)
            assert not isinstance(caught.value, CorruptStoreError | StoreFullError)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        with LMDBStore(disk / "store") as store:
            assert store.read("p", "s", "k") == b"v"


@pytest.mark.parametrize("what", ["folder", "data.mdb", "lock.mdb", MARKER, "parent"])
def test_permission_denied(tmp_path: Path, what: str) -> None:
    needs_root()
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    root = tmp_path / "parent" / "store"
    before = filled(root)
    for path in [root.parent, root, *root.iterdir()]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    denied = {"folder": root, "parent": root.parent}.get(what, root / what)
    denied.chmod(0)
    code = """
LMDBStore(path).close()  # whom nothing is denied; and all is imported that another user may not read
os.setgid(65534); os.setuid(65534)
try:
    LMDBStore(path)
except StoreError as error:
    assert type(error) is StoreError, type(error)
    say(str(error))
"""
    assert "permissions" in in_process(code, root)
    denied.chmod(0o777)
    with LMDBStore(root) as store:
        assert content(store) == before


def test_the_same_process_id_in_two_pid_namespaces(root: Path) -> None:
    """Two containers that share a volume: LMDB cannot tell their processes apart."""
    needs_pid_namespaces()
    code = """
try:
    store = LMDBStore(path)
    say(f"opened as {os.getpid()}")
    wait()
    store.close()
except StoreUnavailableError as error:
    say(str(error))
"""
    with Process(code, root, before=UNSHARE) as one, Process(code, root, before=UNSHARE) as other:
        first = one.hear()
        second = other.hear()
        said = sorted([first, second])
        assert said[1].startswith("opened as ")
        assert "PID namespace" in said[0]
        for process, line in ((one, first), (other, second)):
            if line.startswith("opened"):
                process.tell()
    in_process("LMDBStore(path).close()", root)


# What may be made, and where another engine has its store.


def test_no_store_is_made_unless_it_may_be(tmp_path: Path) -> None:
    for path in (tmp_path / "a" / "store", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir()
        with pytest.raises(StoreNotFoundError, match="create=True"):
            LMDBStore(path, create=False)
        with pytest.raises(StoreNotFoundError):
            open_store(f"lmdb:{path}?create=no")
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["empty"]
    LMDBStore(tmp_path / "a" / "store", create=True).close()
    with LMDBStore(tmp_path / "a" / "store", create=False) as store:
        store.write("p", "s", "k", b"v")


def test_a_lost_store_is_corrupt_and_not_missing(root: Path) -> None:
    filled(root)
    (root / "data.mdb").unlink()
    with pytest.raises(CorruptStoreError, match="data.mdb is missing"):
        LMDBStore(root, create=False)


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("beside", [True, False])
def test_a_store_of_the_filesystem_engine_in_its_place(
    root: Path, create: bool, beside: bool
) -> None:
    """Known by its folder beside it, or by its entries: LDK's own has no such folder."""
    with FilesystemStore(root) as theirs:
        if not beside:
            theirs.write("p", "", "k", b"v")
    if not beside:
        shutil.rmtree(f"{root}.kvreplay")
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(CorruptStoreError, match='engine "filesystem"'):
        LMDBStore(root, create=create)
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.parametrize("spelling", ["link", "store.kvreplay"])
def test_another_spelling_of_a_store_of_the_filesystem_engine(root: Path, spelling: str) -> None:
    """It has no entry yet, so only its own folder shows it."""
    FilesystemStore(root).close()
    root.with_name("link").symlink_to(root)
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(CorruptStoreError, match='engine "filesystem"'):
        LMDBStore(root.with_name(spelling))
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("create", [True, False])
def test_a_store_of_the_sqlite_engine_in_its_place(root: Path, create: bool, gone: bool) -> None:
    """Even if its database is gone: then that is a loss, and no place for a new store."""
    SQLiteStore(root).close()
    if gone:
        root.unlink()
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(CorruptStoreError, match='engine "sqlite"'):
        LMDBStore(root, create=create)
    assert sorted(root.parent.rglob("*")) == before
    if not gone:
        SQLiteStore(root, create=False).close()


def test_folders_of_something_else_are_no_store(root: Path) -> None:
    (root / "lost+found").mkdir(parents=True)
    (root / "logs").mkdir()
    (root / "logs" / "today").touch()
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")
    FilesystemStore(root.with_name("other")).close()
    LMDBStore(root, create=False).close()


def test_a_link_that_is_followed_by_dots_leads_where_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "there" / "deep")
    for name in ("store", "new/store"):
        with LMDBStore(f"{tmp_path}/link/../{name}") as store:
            store.write("p", "s", "k", b"v")
        assert (tmp_path / "there" / name / "data.mdb").exists()
        assert not (tmp_path / name).exists()


def test_dots_after_a_folder_that_is_not_there_make_the_same_place_as_everywhere(
    tmp_path: Path,
) -> None:
    for made in (LMDBStore(f"{tmp_path}/gone/../one"), FilesystemStore(f"{tmp_path}/gone/../two")):
        with made as store:
            store.write("p", "s", "k", b"v")
    assert {each.name for each in tmp_path.iterdir()} == {"one", "two", "two.kvreplay"}


def test_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not UTF-8; nothing was opened"):
        LMDBStore(f"{tmp_path}/x\udcff")
    assert not [*tmp_path.iterdir()]
    with LMDBStore(tmp_path / "größer") as store:
        store.write("p", "s", "k", b"v")


@pytest.mark.parametrize("marker", ["fifo", "link to a fifo", "folder"])
def test_a_marker_that_is_no_file_makes_nobody_wait(
    root: Path, tmp_path: Path, marker: str
) -> None:
    filled(root)
    (root / MARKER).unlink()
    if marker == "folder":
        (root / MARKER).mkdir()
    else:
        pipe = root / MARKER if marker == "fifo" else tmp_path / "pipe"
        os.mkfifo(pipe)
        if marker != "fifo":
            (root / MARKER).symlink_to(pipe)
    open_it = f"from kvreplay.backends.lmdb import LMDBStore; LMDBStore({str(root)!r})"
    ended = subprocess.run(
        [sys.executable, "-c", open_it], capture_output=True, text=True, timeout=20
    )
    assert ended.stderr.splitlines()[-1].startswith("kvreplay.errors.StoreError: cannot open")


def test_a_file_system_without_flock_is_told_of_at_opening(root: Path) -> None:
    """Before anything could have an effect."""
    needs_strace()
    before = ("strace", "-f", "-o", "/dev/null", "-e", "trace=flock")
    code = """
try:
    LMDBStore(path)
except StoreError as error:
    assert type(error) is StoreError, type(error)
    say(str(error))
"""
    for fault in ("ENOSYS", "ENOLCK", "EOPNOTSUPP"):
        said = in_process(code, root, before=(*before, "-e", f"inject=flock:error={fault}"))
        assert "no flock" in said
    assert not (root / "data.mdb").exists()
    LMDBStore(root).close()


def test_a_file_system_without_hard_links_will_do(root: Path) -> None:
    needs_strace()
    before = (
        "strace", "-f", "-o", "/dev/null", "-e", "trace=link,linkat",
        "-e", "inject=link,linkat:error=EPERM",
    )  # fmt: skip
    in_process("LMDBStore(path).close()", root, before=before)
    LMDBStore(root, create=False).close()
