"""What mounts do to a store that is open: overlays, bind mounts, a disk that goes and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kvreplay import KVReplayError, Replay, StoreError, StoreNotFoundError, StoreUnavailableError
from kvreplay.backends.filesystem import FilesystemStore
from support.disks import mounted
from support.engines import Engine
from support.file_stores import NEW, OLD, beside, value_of
from support.needs import complaint_of, missing, needs_disks, needs_root
from torture.disks import Ext4, run

Place = tuple[int, int]


def place_of(path: Path) -> Place:
    found = path.stat()
    return found.st_dev, found.st_ino


@contextmanager
def mounted_by(*command: str | Path) -> Iterator[None]:
    """Run this mount, whose last argument is where, and undo it."""
    needs_root()
    complaint = complaint_of(*map(str, command))
    if complaint is not None:
        missing(f"needs the right to run {command[0]}: {complaint}")
    try:
        yield
    finally:
        run("umount", command[-1])


@pytest.mark.parametrize("durability", ["full", "process"])
def test_a_store_in_an_image_goes_on_when_its_folders_are_copied_up(
    tmp_path: Path, durability: str
) -> None:
    """The upper layer is on another file system, as in many containers."""
    lower, upper, seen = tmp_path / "lower", tmp_path / "upper", tmp_path / "seen"
    for folder in (lower, seen):
        folder.mkdir()
    root, sidecar = seen / "store", beside(seen / "store")
    with FilesystemStore(lower / "store") as store:
        store.write("p", "s", "k", OLD)
    with mounted(upper, "size=16m"):
        (upper / "up").mkdir()
        (upper / "work").mkdir()
        options = f"lowerdir={lower},upperdir={upper / 'up'},workdir={upper / 'work'}"
        overlay = ("mount", "-t", "overlay", "-o", options, "overlay", seen)
        with mounted_by(*overlay):
            store = FilesystemStore(root, durability=durability)  # type: ignore[arg-type]
            before = [place_of(root), place_of(sidecar / "format")]
            assert not (upper / "up" / "store").exists(), "it is copied up already"
            assert value_of(store) == OLD
            change_it(store)
            (sidecar / "format").chmod(0o640)  # what no write of ours touches is copied up too
            assert (upper / "up" / "store" / "p" / "s" / "k").exists()
            assert (upper / "up" / "store.kvreplay" / "format").exists()
            change_it(store)
            (seen / "other").mkdir()
        with pytest.raises(StoreUnavailableError):
            store.write("p", "s", "k", OLD)  # it is not mounted
        with mounted_by(*overlay):
            # The kernel has forgotten the numbers of the lower layer, and folders are numbered anew
            # in the order in which they are looked at.
            place_of(seen / "other")
            after = [place_of(root), place_of(sidecar / "format")]
            assert before[0] != after[0], "no number has changed: this shows nothing"
            assert before[1] != after[1], "no number has changed: this shows nothing"
            change_it(store)
            store.close()
            with FilesystemStore(root, create=False) as store:
                assert value_of(store) == NEW


def change_it(store: FilesystemStore) -> None:
    store.write("p", "s", "k", OLD)
    assert store.check_and_put("p", "s", "k", expected=OLD, value=NEW) == OLD
    store.check_and_put("p", "s", "due", expected=None, value=b"v", expires_at=5)
    assert store.sweep("p", 5, 9).removed == 1
    assert value_of(store) == NEW


def test_a_bind_mount_is_the_same_store(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "seen").mkdir()
    with FilesystemStore(tmp_path / "real" / "store") as store:
        with mounted_by("mount", "--bind", tmp_path / "real", tmp_path / "seen"):
            bound = FilesystemStore(tmp_path / "seen" / "store")
            assert bound.identity == store.identity
            store.write("p", "s", "k", OLD)
            assert bound.check_and_put("p", "s", "k", expected=OLD, value=NEW) == OLD
            assert value_of(store) == NEW
        with pytest.raises(StoreUnavailableError):
            bound.write("p", "s", "k", OLD)  # that mount is gone
        assert list((tmp_path / "seen").iterdir()) == []
        with mounted_by("mount", "--bind", tmp_path / "real", tmp_path / "seen"):
            bound.write("p", "s", "k", OLD)
            assert value_of(store) == OLD


def test_a_root_that_is_a_bind_mount_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    """Both are on one device, and yet no file can be moved from one to the other."""
    root = tmp_path / "store"
    (tmp_path / "elsewhere").mkdir()
    root.mkdir()
    ran: list[int] = []
    with mounted_by("mount", "--bind", tmp_path / "elsewhere", root):
        assert root.stat().st_dev == tmp_path.stat().st_dev
        with pytest.raises(StoreError, match="no mount in between"):
            Replay(FilesystemStore(root), "ns", ttl=9).execute(
                ("s", "1"), {}, lambda: ran.append(1)
            )
    assert ran == []
    FilesystemStore(root).close()
    with (
        mounted_by("mount", "--bind", tmp_path / "elsewhere", root),
        pytest.raises(StoreError),
    ):
        FilesystemStore(root)


@pytest.fixture
def disk(tmp_path: Path) -> Ext4:
    needs_disks()
    return Ext4(tmp_path, "32M")


def test_a_disk_that_is_not_mounted_is_no_new_store(durable: Engine, disk: Ext4) -> None:
    """A mistyped or unmounted path with ``create=False`` makes nothing, and runs nothing."""
    durable.path = disk.path / "store"
    with pytest.raises(StoreNotFoundError):
        durable.open(create=False)
    assert list(disk.path.iterdir()) == []
    with disk.mounted():
        with pytest.raises(StoreNotFoundError):
            durable.open(create=False)
        with durable.open() as store:
            store.write("p", "s", "k", OLD)
        with durable.open(create=False) as store:
            assert value_of(store) == OLD
    with pytest.raises(StoreNotFoundError):
        durable.open(create=False)
    assert list(disk.path.iterdir()) == []


def test_a_disk_that_goes_and_comes_back(disk: Ext4, tmp_path: Path) -> None:
    ran: list[int] = []
    with disk.mounted():
        store = FilesystemStore(disk.path / "store")
        replay = Replay(store, "ns", ttl=600)
        replay.execute(("s", "1"), {}, lambda: ran.append(1))
        before = place_of(disk.path / "store")
    with pytest.raises(KVReplayError):
        replay.execute(("s", "2"), {}, lambda: ran.append(2))
    assert list(disk.path.iterdir()) == []
    with ExitStack() as stack:
        for number in range(20):
            stack.enter_context(spare_disk(tmp_path / f"spare{number}"))
            with disk.mounted():
                if place_of(disk.path / "store") == before:
                    continue  # the loop device of before was free again: let one more spare take it
                assert replay.execute(("s", "1"), {}, lambda: ran.append(1)).replayed
                assert not replay.execute(("s", "2"), {}, lambda: ran.append(2)).replayed
                break
        else:
            pytest.fail("always the same device: this shows nothing")
    assert ran == [1, 2]


@contextmanager
def spare_disk(folder: Path) -> Iterator[None]:
    """A disk that has a loop device of its own."""
    folder.mkdir()
    image = folder.with_suffix(".image")
    run("truncate", "-s", "1M", image)
    run("mkfs.ext4", "-q", image)
    with mounted_by("mount", "-o", "loop", image, folder):
        yield
