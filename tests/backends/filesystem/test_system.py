"""Failures of the system: no permission, no space, no descriptors."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.errors import StoreError, StoreFullError, StoreUnavailableError
from kvreplay.store import SweepResult
from kvreplay.testing.entries import put
from support.disks import fill_up, mounted
from support.file_stores import NEW, OLD, beside, index_files


def test_no_permission(store: FilesystemStore, root: Path) -> None:
    store.write("p", "s", "k", b"1")
    user = os.geteuid()
    for folder in (root / "p" / "s", beside(root) / "locks"):
        folder.chmod(0)
    try:
        if user == 0:
            os.chown(root.parent, 0, 0)
            for path in (root, root / "p", beside(root)):
                path.chmod(0o755)
            for parent in root.parents:
                parent.chmod(parent.stat().st_mode | 0o111)
            os.seteuid(65534)
        calls: list[Callable[[], object]] = [
            lambda: store.read("p", "s", "k"),
            lambda: store.write("p", "s", "k", b"2"),
        ]
        for call in calls:
            with pytest.raises(StoreError, match="belong to this user") as caught:
                call()
            assert type(caught.value) is StoreError
            assert isinstance(caught.value.__cause__, PermissionError)
    finally:
        os.seteuid(user)
        for folder in (root / "p" / "s", beside(root) / "locks"):
            folder.chmod(0o700)
    assert store.read("p", "s", "k") == b"1"
    store.write("p", "s", "k", b"2")


def test_read_only_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=4m"):
        store = FilesystemStore(disk / "store")
        put(store, "k", b"1", 5)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        calls: list[Callable[[], object]] = [
            lambda: store.write("p", "s", "k", b"2"),
            lambda: store.remove("p", "s", "k"),
            lambda: store.sweep("p", 9, 9),
            lambda: FilesystemStore(disk / "other"),
        ]
        for call in calls:
            with pytest.raises(StoreError, match="mounted read-only") as caught:
                call()
            assert type(caught.value) is StoreError
            assert isinstance(caught.value.__cause__, OSError)
        with FilesystemStore(disk / "store") as again:
            assert again.read("p", "s", "k") == b"1"
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        store.write("p", "s", "k", b"2")
        assert store.read("p", "s", "k") == b"2"


def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=1m"):
        store = FilesystemStore(disk / "store")
        put(store, "k", OLD, 5)
        store.write("p", "s", "other", OLD)
        before = index_files(disk / "store")
        fill_up(disk / "filler")
        calls: list[Callable[[], object]] = [
            lambda: store.write("p", "s", "k", NEW),
            lambda: store.write("p", "s", "new", NEW),
            lambda: store.check_and_put("p", "s", "k", expected=OLD, value=NEW, expires_at=9),
            lambda: store.check_and_put("p", "s", "new", expected=None, value=NEW),
        ]
        for call in calls:
            with pytest.raises(StoreFullError, match="free some space"):
                call()
        assert store.read("p", "s", "k") == OLD
        assert sorted(store.list("p", "s")) == ["k", "other"]
        assert index_files(disk / "store") == before
        # A full disk can be emptied.
        store.remove("p", "s", "other")
        assert store.sweep("p", 5, 9) == SweepResult(1, 1, False)
        (disk / "filler").unlink()
        put(store, "k", NEW, 9)
        assert store.read("p", "s", "k") == NEW
        assert store.sweep("p", 9, 9) == SweepResult(1, 1, False)
        store.close()


def test_too_many_open_files(store: FilesystemStore) -> None:
    store.write("p", "s", "k", b"1")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
    try:
        with pytest.raises(StoreUnavailableError, match="this may pass") as read:
            store.read("p", "s", "k")
        with pytest.raises(StoreUnavailableError, match="this may pass") as write:
            store.write("p", "s", "k", b"2")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert isinstance(read.value.__cause__, OSError)
    assert isinstance(write.value.__cause__, OSError)
    assert store.read("p", "s", "k") == b"1"
    store.write("p", "s", "k", b"2")
