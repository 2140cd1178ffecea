"""What is opened, made or refused: no store yet, another engine's, a file system that cannot do it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from kvreplay import open_store
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.errors import (
    CorruptStoreError,
    StoreError,
    StoreNotFoundError,
)
from support.file_stores import OLD, beside, files, value_of

# Opened, or created.


@pytest.mark.parametrize("deep", [False, True])
def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, deep: bool) -> None:
    root = tmp_path / "deep" / "store" if deep else tmp_path / "store"
    for opening in (
        lambda: FilesystemStore(root, create=False),
        lambda: open_store(f"filesystem:{root}?create=false"),
    ):
        with pytest.raises(StoreNotFoundError, match="kvreplay init"):
            opening()
    assert list(tmp_path.iterdir()) == []
    FilesystemStore(root).close()
    with FilesystemStore(root, create=False) as store:
        store.write("p", "s", "k", OLD)


def test_a_folder_that_nobody_adopted_stays_as_it_is(root: Path) -> None:
    (root / "p" / "s").mkdir(parents=True)
    (root / "p" / "s" / "k").write_bytes(OLD)
    with pytest.raises(StoreNotFoundError):
        FilesystemStore(root, create=False)
    assert not beside(root).exists()
    with FilesystemStore(root, create=True) as store:
        assert value_of(store) == OLD


def test_an_adopted_root_that_is_missing_is_no_new_store(root: Path) -> None:
    FilesystemStore(root).close()
    root.rmdir()
    for create in (True, False):
        with pytest.raises(CorruptStoreError, match="missing"):
            FilesystemStore(root, create=create)
    assert not root.exists()


@pytest.mark.parametrize("name", ["data.mdb", "kvreplay.format"])
@pytest.mark.parametrize("adopted", [True, False])
def test_a_store_of_lmdb_is_refused_by_its_name(root: Path, name: str, adopted: bool) -> None:
    if adopted:
        FilesystemStore(root).close()
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(b"theirs")
    before = files(root.parent)
    for create in (True, False):
        with pytest.raises(CorruptStoreError, match="LMDB"):
            FilesystemStore(root, create=create)
    assert files(root.parent) == before
    assert beside(root).exists() == adopted
    (root / name).unlink()
    FilesystemStore(root).close()


def test_a_real_store_of_lmdb_is_refused(root: Path) -> None:
    with open_store(f"lmdb:{root}") as store:
        store.write("p", "s", "k", OLD)
    with pytest.raises(CorruptStoreError, match="LMDB"):
        open_store(f"filesystem:{root}")
    with open_store(f"lmdb:{root}") as store:
        assert store.read("p", "s", "k") == OLD


@pytest.mark.parametrize("gone", [False, True])
def test_a_store_of_sqlite_is_refused_by_its_name(root: Path, gone: bool) -> None:
    """Even if its database is gone: then that is a loss, and no place for a new store."""
    open_store(f"sqlite:{root}").close()
    if gone:
        root.unlink()
    before = files(root.parent)
    for create in (True, False):
        with pytest.raises(CorruptStoreError, match="SQLite"):
            FilesystemStore(root, create=create)
    assert files(root.parent) == before


# What the file system must be able to do.


@pytest.mark.parametrize(
    ("call", "code", "says"),
    [
        ("link", errno.EPERM, "a hard link"),
        ("link", errno.ENOTSUP, "a hard link"),
        ("symlink", errno.EPERM, "a symbolic link"),
        ("rename", errno.EXDEV, "a rename from one to the other"),
        ("fsync", errno.EINVAL, "the fsync of a folder"),
        ("flock", errno.ENOLCK, "flock"),
    ],
)
def test_a_file_system_that_cannot_is_refused_at_opening(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, says: str
) -> None:
    import fcntl
    import stat

    module: Any = fcntl if call == "flock" else os
    original = getattr(module, call)
    steps = 0

    def fail(*args: Any) -> Any:
        nonlocal steps
        if call == "rename" and "[empty]" not in args[1]:
            return original(*args)
        if call == "fsync" and "kvreplay/tmp" not in os.readlink(f"/proc/self/fd/{args[0]}"):
            return original(*args)
        if call == "fsync" and not stat.S_ISDIR(os.fstat(args[0]).st_mode):
            return original(*args)
        if call == "flock" and stat.S_ISDIR(os.fstat(args[0]).st_mode):
            return original(*args)
        steps += 1
        if call == "fsync" and steps == 1:  # when the folder was made
            return original(*args)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(module, call, fail)
        with pytest.raises(StoreError, match=f"cannot do what a store needs, which is {says}"):
            FilesystemStore(root)
        assert steps
        with pytest.raises(StoreNotFoundError):
            FilesystemStore(root, create=False)
    assert list((beside(root) / "tmp").iterdir()) == []
    with FilesystemStore(root) as store:
        store.write("p", "s", "k", OLD)


def test_what_was_tried_is_not_tried_again(root: Path, trace: list[str]) -> None:
    FilesystemStore(root).close()
    assert [step for step in trace if step.startswith("link")]
    trace.clear()
    FilesystemStore(root).close()
    assert [step.split()[0] for step in trace] == ["rename"]
