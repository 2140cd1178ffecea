"""The store changes underneath: it is deleted, replaced, mounted again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvreplay import Replay
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.filesystem.presence import Presence
from kvreplay.errors import (
    CorruptStoreError,
    OutcomeUnknownError,
    StoreError,
    StoreUnavailableError,
)
from support.disks import mounted
from support.file_stores import NEW, OLD, beside, files, value_of

Change = Callable[[FilesystemStore], object]
CHANGES: list[Change] = [
    lambda store: store.write("p", "s", "k", NEW),
    lambda store: store.remove("p", "s", "k"),
    lambda store: store.check_and_put("p", "s", "new", expected=None, value=NEW, expires_at=5),
    lambda store: store.sweep("p", 99, 9),
]


def remove(root: Path) -> None:
    for folder in (root, beside(root)):
        shutil.rmtree(folder)


# Deleted and replaced.


@pytest.mark.parametrize("anew", [True, False])
def test_a_deleted_store_acknowledges_nothing(
    store: FilesystemStore, root: Path, anew: bool
) -> None:
    store.write("p", "s", "k", OLD)
    remove(root)
    if anew:  # by another process; the numbers of the inodes may be those of before
        FilesystemStore(root).close()
    for change in CHANGES:
        with pytest.raises(StoreUnavailableError, match="nothing was done"):
            change(store)
    assert root.exists() == anew
    if anew:
        assert list(root.iterdir()) == []
        with FilesystemStore(root) as again:
            for change in CHANGES:
                change(again)


def test_an_effect_does_not_happen_on_a_deleted_store(store: FilesystemStore, root: Path) -> None:
    ran: list[int] = []
    replay = Replay(store, "pay", ttl=60)
    replay.execute(("s", "1"), {}, lambda: ran.append(1))
    remove(root)
    with pytest.raises(StoreError):
        replay.execute(("s", "2"), {}, lambda: ran.append(2))
    assert ran == [1]


@pytest.mark.parametrize("opened_again", [True, False])
def test_a_root_that_was_made_anew_is_another_store(
    store: FilesystemStore, root: Path, opened_again: bool
) -> None:
    store.write("p", "s", "k", OLD)
    shutil.rmtree(root)
    root.mkdir()
    if opened_again:
        FilesystemStore(root).close()
    for change in CHANGES:
        with pytest.raises(StoreUnavailableError):
            change(store)
    assert list(root.iterdir()) == []
    with FilesystemStore(root) as again:
        for change in CHANGES:
            change(again)


def test_another_store_in_its_place(store: FilesystemStore, root: Path) -> None:
    store.write("p", "s", "k", OLD)
    other = root.with_name("other")
    with FilesystemStore(other) as them:
        them.write("p", "s", "k", b"theirs")
    for one, two in ((root, other), (beside(root), beside(other))):
        one.rename(one.with_name("aside"))
        two.rename(one)
        one.with_name("aside").rename(two)
        for change in CHANGES:
            with pytest.raises(StoreUnavailableError):
                change(store)
    assert files(root) == {"p/s/k": b"theirs"}
    for one, two in ((root, other), (beside(root), beside(other))):
        two.rename(one.with_name("aside"))
        one.rename(two)
        one.with_name("aside").rename(one)
    for change in CHANGES:
        change(store)


@pytest.mark.parametrize("copied", [False, True])
def test_a_link_that_leads_to_another_store_by_now(root: Path, copied: bool) -> None:
    """Whoever opens the path from now on finds the other one, even if it is a copy of this one."""
    current, other = root.with_name("current"), root.with_name("other")
    current.symlink_to(root)
    with FilesystemStore(current) as store:
        store.write("p", "s", "k", OLD)
        if copied:
            for one, two in ((root, other), (beside(root), beside(other))):
                subprocess.run(["cp", "-a", str(one), str(two)], check=True)
        FilesystemStore(other).close()
        current.unlink()
        current.symlink_to(other)
        for change in CHANGES:
            with pytest.raises(StoreUnavailableError, match="current is no longer"):
                change(store)
        current.unlink()
        current.symlink_to(root)
        for change in CHANGES:
            change(store)


def test_dots_after_a_link_lead_where_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "there" / "deep")
    with FilesystemStore(f"{tmp_path}/link/../store") as store:
        for change in CHANGES:
            change(store)
    assert (tmp_path / "there" / "store").is_dir()


def test_another_sidecar_in_its_place(store: FilesystemStore, root: Path) -> None:
    store.write("p", "s", "k", OLD)
    FilesystemStore(root.with_name("other")).close()
    beside(root).rename(root.with_name("aside"))
    beside(root.with_name("other")).rename(beside(root))
    for change in CHANGES:
        with pytest.raises(StoreUnavailableError, match="belongs to another store"):
            change(store)
    assert value_of(store) == OLD
    shutil.rmtree(beside(root))
    root.with_name("aside").rename(beside(root))
    for change in CHANGES:
        change(store)


def test_a_sweep_looks_before_each_entry(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its marker, no sweep would find the entry again once the root is back."""
    store.check_and_put("p", "s", "k", expected=None, value=OLD, expires_at=5)
    due = store._expiry.due

    def replace_first(*args: Any) -> Any:
        root.rename(root.with_name("aside"))
        root.mkdir()
        yield from due(*args)

    with monkeypatch.context() as patch:
        patch.setattr(store._expiry, "due", replace_first)
        with pytest.raises(StoreUnavailableError):
            store.sweep("p", 5, 9)
    root.rmdir()
    root.with_name("aside").rename(root)
    assert store.sweep("p", 5, 9).removed == 1


def test_a_store_that_is_replaced_during_a_change_does_not_acknowledge_it(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def replace_first(source: str, target: str) -> None:
        if target == str(root / "p" / "s" / "k"):
            monkeypatch.undo()
            (root).rename(root.with_name("aside"))
            (root / "p" / "s").mkdir(parents=True)
        rename(source, target)

    monkeypatch.setattr(os, "rename", replace_first)
    with pytest.raises(OutcomeUnknownError, match="replaced"):
        store.write("p", "s", "k", NEW)


def test_a_removed_lock_file_is_not_made_anew_under_its_holder(
    store: FilesystemStore, root: Path
) -> None:
    """Two processes would hold one lock: the old file's, and the new one's."""
    store.write("p", "s", "k", OLD)
    shutil.rmtree(beside(root) / "locks")
    for call in (lambda: store.write("p", "s", "k", NEW), lambda: store.read("p", "s", "k")):
        with pytest.raises(StoreUnavailableError, match="open the store again"):
            call()
    with FilesystemStore(root) as again:
        assert value_of(again) == OLD
        with pytest.raises(StoreUnavailableError, match="open the store again"):
            store.write("p", "s", "k", NEW)
        again.write("p", "s", "k", NEW)
    assert store.identity[1] != again.identity[1]


# The same store, with other numbers.


def test_a_moved_copy_with_its_marks_is_the_same_store(store: FilesystemStore, root: Path) -> None:
    """As an overlay copies a folder up: other inodes, the same id."""
    store.write("p", "s", "k", OLD)
    for folder in (root, beside(root)):
        number = folder.stat().st_ino
        copy = folder.with_name("copy")
        shutil.copytree(folder, copy, symlinks=True)  # copies extended attributes too
        folder.rename(folder.with_name("aside-" + folder.name))
        copy.rename(folder)
        assert folder.stat().st_ino != number
    store.write("p", "s", "k", NEW)
    assert value_of(store) == NEW


def test_a_copy_without_marks_on_a_disk_that_is_read_only_can_be_read(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=4m") as disk:
        with FilesystemStore(disk / "store") as store:
            store.write("p", "s", "k", OLD)
        os.removexattr(disk / "store", "user.kvreplay.store")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with FilesystemStore(disk / "store") as copy:
            assert value_of(copy) == OLD
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        with FilesystemStore(disk / "store") as copy:
            copy.write("p", "s", "k", NEW)
            assert copy.identity[1] != store.identity[1]


@pytest.fixture
def without_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no extended attributes."""

    def fail(*_: object) -> Any:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "setxattr", fail)
    monkeypatch.setattr(os, "getxattr", fail)


@pytest.mark.usefixtures("without_marks")
def test_without_attributes_a_root_is_known_by_its_inode(root: Path) -> None:
    with FilesystemStore(root) as store, FilesystemStore(root) as other:
        assert store.identity == other.identity
        store.write("p", "s", "k", OLD)
        root.rename(root.with_name("aside"))
        root.mkdir()
        with pytest.raises(StoreUnavailableError):
            store.write("p", "s", "k", NEW)
        root.rmdir()
        root.with_name("aside").rename(root)
        store.write("p", "s", "k", NEW)
    FilesystemStore(root, create=False).close()
    with FilesystemStore(root) as again:
        assert again.identity == store.identity
        assert value_of(again) == NEW


def test_a_system_that_knows_no_attributes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "setxattr")
    monkeypatch.delattr(os, "getxattr")
    with FilesystemStore(root) as store:
        store.write("p", "s", "k", OLD)
        store.remove("p", "s", "k")
    with FilesystemStore(root, create=False) as again:
        assert again.identity == store.identity


def test_a_damaged_format_is_noticed_by_the_next_change(store: FilesystemStore, root: Path) -> None:
    (beside(root) / "format").write_bytes(b"")
    with pytest.raises(CorruptStoreError, match="damaged"):
        store.write("p", "s", "k", NEW)
    assert files(root) == {}


@pytest.mark.usefixtures("without_marks")
def test_without_attributes_lock_files_that_were_made_anew_are_noticed(root: Path) -> None:
    with FilesystemStore(root) as store:
        store.write("p", "s", "k", OLD)
        shutil.rmtree(beside(root) / "locks")
        with FilesystemStore(root) as again:
            with pytest.raises(StoreUnavailableError, match="open the store again"):
                store.write("p", "s", "k", NEW)
            again.write("p", "s", "k", NEW)


@pytest.mark.usefixtures("without_marks")
def test_without_attributes_another_device_number_is_the_same_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FilesystemStore(root) as store:
        look = Presence._look_at_root

        def moved(presence: Presence) -> tuple[object, object]:
            device, inode = look(presence)
            return (device, "another"), inode

        monkeypatch.setattr(Presence, "_look_at_root", moved)
        store.write("p", "s", "k", NEW)
        assert value_of(store) == NEW
