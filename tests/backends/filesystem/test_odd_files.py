"""What is no regular file where an entry's should be: nobody waits for it, and nobody shows it."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvreplay import Replay
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.filesystem.layout import EntryFile
from kvreplay.errors import CorruptStoreError
from support.file_stores import beside, value_of


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.parent.parent.parent.with_name("pipe"))
    path.symlink_to("../../../pipe")


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # zeros without end
    except PermissionError:
        pytest.skip("needs the right to make a device")


def folder(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("nothing")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


ODD: list[Callable[[Path], None]] = [fifo, link_to_fifo, a_socket, device, folder, circle]


def in_time(call: Callable[[], object]) -> Any:
    """Fail instead of hanging."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it hangs"
    return outcome[0]


@pytest.mark.parametrize("make", ODD)
def test_it_is_refused_and_not_shown(
    store: FilesystemStore, root: Path, make: Callable[[Path], None]
) -> None:
    store.write("p", "s", "good", b"1")
    make(root / "p" / "s" / "k")
    assert in_time(lambda: store.list("p", "s")) == ["good"]
    assert in_time(lambda: list(store.list_all_keys())) == [("p", "s", "good")]
    in_time(lambda: [*Replay(store, "p", ttl=1).records()])
    calls: list[Callable[[], object]] = [
        lambda: store.read("p", "s", "k"),
        lambda: store.read_entry("p", "s", "k"),
        lambda: store.check_and_put("p", "s", "k", expected=None, value=b"2", expires_at=5),
    ]
    for call in calls:
        error = in_time(call)
        assert type(error) is CorruptStoreError, error
        assert isinstance(error.__cause__, OSError)
        assert "not the regular file" in str(error)
        assert "p/s/k" not in str(error)
    assert store.read("p", "s", "good") == b"1"
    if make is not folder:  # an operator may remove it, or write over it
        in_time(lambda: store.remove("p", "s", "k"))
        make(root / "p" / "s" / "k") if make is not link_to_fifo else None
        in_time(lambda: store.write("p", "s", "k", b"3"))
        assert value_of(store) == b"3"


@pytest.mark.parametrize("part", ["p", "p/s", "p/s/k"])
def test_a_link_to_nothing_may_be_an_entry_and_is_told(
    store: FilesystemStore, root: Path, part: str
) -> None:
    """It may lead to a disk that is not mounted: neither absent, nor removed, nor a shorter list."""
    store.write("q", "t", "good", b"1")
    store.write("p", "s", "good", b"1")
    store.write("p", "s", "k", b"2")
    store.check_and_put("p", "s", "due", expected=None, value=b"3", expires_at=5)
    disk = root.with_name("disk")
    (root / part).rename(disk)
    (root / part).symlink_to(disk)
    before = sorted(store.list_all_keys())
    assert len(before) == 4, "a link to what is there is followed"
    disk.rename(root.with_name("unmounted"))
    calls: list[Callable[[], object]] = [
        lambda: store.read("p", "s", "k"),
        lambda: store.read_entry("p", "s", "k"),
        lambda: store.check_and_put("p", "s", "k", expected=None, value=b"2", expires_at=5),
        lambda: store.list("p", "s"),
        lambda: store.list_paginated("p", "s"),
        lambda: store.list_paginated_with_values("p", "s"),
        lambda: list(store.list_all_keys()),
    ]
    if part != "p/s/k":
        calls += [lambda: store.remove("p", "s", "k"), lambda: store.sweep("p", 5, 1)]
    for call in calls:
        with pytest.raises(CorruptStoreError, match="a link to nothing") as caught:
            call()
        assert "p/s" not in str(caught.value)
    assert store.read("q", "t", "good") == b"1"
    root.with_name("unmounted").rename(disk)
    assert sorted(store.list_all_keys()) == before
    assert store.sweep("p", 5, 1).removed == 1


def test_a_link_to_nothing_can_be_removed_and_written_over(
    store: FilesystemStore, root: Path
) -> None:
    store.write("p", "s", "good", b"1")
    for act in (lambda: store.remove("p", "s", "k"), lambda: store.write("p", "s", "k", b"3")):
        dangling(root / "p" / "s" / "k")
        act()
    assert value_of(store) == b"3"
    assert sorted(store.list("p", "s")) == ["good", "k"]


def test_a_link_to_a_file_is_followed(store: FilesystemStore, root: Path) -> None:
    """As LDK follows it."""
    store.write("p", "s", "good", b"1")
    (root / "p" / "s" / "k").symlink_to("good")
    assert sorted(store.list("p", "s")) == ["good", "k"]
    assert value_of(store) == b"1"


@pytest.mark.parametrize("where", ["p", "s"])
def test_an_odd_folder_hides_nothing_else(store: FilesystemStore, root: Path, where: str) -> None:
    store.write("q", "t", "good", b"1")
    path = root / "p" if where == "p" else root / "q" / "s"
    path.symlink_to(path.name)
    os.mkfifo(root / "pipe")
    assert in_time(lambda: list(store.list_all_keys())) == [("q", "t", "good")]


@pytest.mark.parametrize("name", ["format", "locks/00"])
def test_a_fifo_in_the_sidecar_makes_nobody_wait(root: Path, name: str) -> None:
    FilesystemStore(root).close()
    path = beside(root) / name
    path.unlink()
    os.mkfifo(path)
    outcome = in_time(lambda: FilesystemStore(root))
    if name == "format":
        assert type(outcome) is CorruptStoreError
        return
    key = next(f"k{n}" for n in range(9999) if EntryFile("p", "s", f"k{n}").stripe == 0)
    in_time(lambda: outcome.write("p", "s", key, b"1"))
    in_time(lambda: outcome.read("p", "s", key))


@pytest.mark.parametrize("name", ["expiry", "stamps", "tmp"])
@pytest.mark.parametrize("make", [fifo, circle])
def test_an_odd_file_in_the_sidecar_is_not_called_the_folder_above(
    root: Path, name: str, make: Callable[[Path], None]
) -> None:
    FilesystemStore(root).close()
    path = beside(root) / name
    path.rmdir()
    make(path)
    outcome = in_time(lambda: FilesystemStore(root))
    assert type(outcome) is CorruptStoreError
    assert str(beside(root)) in str(outcome)


# Locks: only who may write there may hold them.


@pytest.mark.parametrize("given", [0o055, 0o050, 0o005])
def test_who_may_only_read_cannot_lock(root: Path, given: int) -> None:
    FilesystemStore(root).close()
    beside(root).chmod(0o755)
    for path in (beside(root) / "locks", beside(root) / "owners"):
        path.touch()
        path.chmod((0o700 if path.is_dir() else 0o600) | given)
    FilesystemStore(root).close()
    assert stat.S_IMODE((beside(root) / "locks").stat().st_mode) == 0o700
    assert stat.S_IMODE((beside(root) / "owners").stat().st_mode) == 0o600


def test_a_group_that_may_write_may_lock(root: Path) -> None:
    FilesystemStore(root).close()
    (beside(root) / "locks").chmod(0o775)
    FilesystemStore(root).close()
    assert stat.S_IMODE((beside(root) / "locks").stat().st_mode) == 0o770


@pytest.mark.parametrize("umask", [0, 0o777])
def test_a_new_store_lets_nobody_else_lock(root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        FilesystemStore(root).close()
    finally:
        os.umask(before)
    for path in [beside(root), *beside(root).rglob("*")]:
        assert not path.stat().st_mode & 0o077, path


def test_no_descriptor_is_kept_between_calls(store: FilesystemStore, root: Path) -> None:
    """So a daemon may close all that it has, and other files may get their numbers."""
    store.write("p", "s", "k", b"1")
    store.check_and_put("p", "s", "l", expected=None, value=b"1", expires_at=5)
    walk = store.list_all_keys()
    next(walk)
    store.sweep("p", 5, 1)
    held = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if fd != "0" and os.path.lexists(f"/proc/self/fd/{fd}")
    ]
    assert not [path for path in held if path.startswith(str(root.parent))]
