"""The file-system store: its bytes on disk, its crashes, its races and its refusals."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.durable_files import make_directories, replace_file
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.filesystem import layout as filesystem_layout
from kvreplay.backends.filesystem.expiry import DueMarker, Mark
from kvreplay.backends.filesystem.layout import Entry, flocked, lock_file
from kvreplay.errors import (
    ConfigError,
    CorruptStoreError,
    InvalidNameError,
    InvalidValueError,
    KeyNotFoundError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from kvreplay.store import ExpiringKVStore, SweepResult, TransactionalKVStore

MINUTE = 60_000
OLD = b"old" * 1000
NEW = b"new" * 2000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[FilesystemStore]:
    with FilesystemStore(root) as store:
        yield store


def beside(root: Path) -> Path:
    return root.with_name(root.name + ".kvreplay")


def files(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder: its bytes, or what it points to."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def index_files(root: Path) -> set[str]:
    """What the sidecar holds besides its fixed files."""
    return {
        name
        for name in files(beside(root))
        if name != "format" and not name.startswith("locks" + os.sep)
    }


def put(
    store: FilesystemStore, key: str, value: bytes, expires_at: int | None, p: str = "p"
) -> None:
    try:
        expected = store.read(p, "s", key)
    except KeyNotFoundError:
        expected = None
    found = store.check_and_put(p, "s", key, expected=expected, value=value, expires_at=expires_at)
    assert found == expected


def messages(error: BaseException | None) -> str:
    """All that a log of this exception and of those behind it would say."""
    return (
        ""
        if error is None
        else f"{error!r} {error} {messages(error.__cause__)}{messages(error.__context__)}"
    )


def snapshot(*folders: Path) -> list[tuple[str, int, int, int]]:
    """What a call that touches nothing leaves equal."""
    return [
        (str(path), found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        for folder in folders
        for path in [folder, *sorted(folder.rglob("*"))]
        for found in [path.lstat()]
    ]


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = f"needs the right to mount a tmpfs: {done.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# The layout.


def test_is_an_expiring_store_without_transactions(store: FilesystemStore, root: Path) -> None:
    typed: ExpiringKVStore = store
    assert isinstance(typed, ExpiringKVStore)
    assert not isinstance(typed, TransactionalKVStore)
    found = root.stat()
    assert store.identity == ("filesystem", found.st_dev, found.st_ino)
    assert store.reads_are_local
    assert repr(store) == f"FilesystemStore({str(root)!r}, durability='full')"
    assert FilesystemStore.LOCATION == "path"
    assert FilesystemStore.OPTIONS == {"durability": ("full", "process")}


def test_layout_is_that_of_ldk(store: FilesystemStore, root: Path) -> None:
    name = "N" * 120
    store.write("monitors", "updates", "Ab-9_z", b"\x00one\n")
    store.write("monitors", "", "two", b"")
    store.write("", "", "manager", b"three")
    store.write(name, name, name, b"four")
    assert files(root) == {
        "monitors/updates/Ab-9_z": b"\x00one\n",
        "monitors/[empty]/two": b"",
        "[empty]/[empty]/manager": b"three",
        f"{name}/{name}/{name}": b"four",
    }
    assert store.read("monitors", "updates", "Ab-9_z") == b"\x00one\n"
    assert store.read("", "", "manager") == b"three"
    assert sorted(store.list_all_keys()) == [
        ("", "", "manager"),
        (name, name, name),
        ("monitors", "", "two"),
        ("monitors", "updates", "Ab-9_z"),
    ]


def test_adopts_what_ldk_wrote(root: Path) -> None:
    folder = root / "monitors" / "[empty]"
    folder.mkdir(parents=True)
    (folder / "key").write_bytes(b"ldk")
    (folder / "key.7.tmp").write_bytes(b"half")
    (folder / "gone.3.trash").write_bytes(b"gone")
    (folder / "directory").mkdir()
    (root / "[empty]" / "odd").mkdir(parents=True)
    (root / "[empty]" / "odd" / "key").write_bytes(b"no legal address")
    with FilesystemStore(root) as store:
        assert store.list("monitors", "") == ["key"]
        assert store.list("unknown", "") == store.list("monitors", "unknown") == []
        assert list(store.list_all_keys()) == [("monitors", "", "key")]
        assert store.read("monitors", "", "key") == b"ldk"
        assert store.check_and_put("monitors", "", "key", expected=b"ldk", value=b"x") == b"ldk"
        store.remove("monitors", "", "key")
        assert store.list("monitors", "") == []


def test_nothing_foreign_below_root(root: Path) -> None:
    """Not even for a moment: every name made or moved below root is an entry's."""
    script = """
import os, sys
from kvreplay.backends.filesystem import FilesystemStore
root = sys.argv[1]
names = set()
def watch(event, args):
    if event in {"open", "os.rename", "os.mkdir", "os.link", "os.symlink"}:
        for path in args[:2]:
            if isinstance(path, str) and path.startswith(root + "/"):
                names.add(path[len(root) + 1:])
sys.addaudithook(watch)
for durability in ("full", "process"):
    with FilesystemStore(root, durability=durability) as store:
        store.write("p", "s", "key", b"1")
        store.check_and_put("p", "s", "key", expected=b"1", value=b"2", expires_at=5)
        store.check_and_put("p", "s", "key", expected=b"2", value=b"3", expires_at=6)
        store.sweep("p", 6, 10)
        store.write("p", "s", "key", b"1")
        store.remove("p", "s", "key", lazy=True)
print(sorted(names))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(root)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['p', 'p/s', 'p/s/key']"
    assert files(root) == {}


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_permissions_whatever_the_umask(root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with FilesystemStore(root / "deep") as store:
            put(store, "key", b"v", 5)
            put(store, "key", b"w", 6)
            store.write("", "", "other", b"x")
    finally:
        os.umask(before)
    for path in [root, *root.rglob("*")]:
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode):
            assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path.name


def test_update_keeps_the_creation_time(store: FilesystemStore, root: Path) -> None:
    store.write("p", "s", "key", b"1")
    file = root / "p" / "s" / "key"
    os.utime(file, ns=(1, 1_234_567_890_123_456_789))
    store.write("p", "s", "key", b"2")
    assert file.stat().st_mtime_ns == 1_234_567_890_123_456_789
    put(store, "key", b"3", 7)
    assert file.stat().st_mtime_ns == 1_234_567_890_123_456_789
    store.remove("p", "s", "key")
    store.write("p", "s", "key", b"4")
    assert file.stat().st_mtime_ns > 1_234_567_890_123_456_789


def test_one_store_by_every_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    with FilesystemStore("link") as one, FilesystemStore(tmp_path / "real" / ".") as other:
        assert one.identity == other.identity
        monkeypatch.chdir("/")
        one.write("p", "s", "k", b"1")
        assert other.read("p", "s", "k") == b"1"
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link", "real.kvreplay"}


# What is refused.


@pytest.mark.parametrize(
    ("p", "s", "k"),
    [("p", "s", ""), ("", "s", "k"), ("p/q", "s", "k"), ("p", "..", "k"), ("p", "s", "k" * 121)],
)
def test_illegal_names_touch_nothing(
    store: FilesystemStore, root: Path, p: str, s: str, k: str
) -> None:
    before = snapshot(root, beside(root))
    calls: list[Callable[[], object]] = [
        lambda: store.read(p, s, k),
        lambda: store.write(p, s, k, b"v"),
        lambda: store.remove(p, s, k),
        lambda: store.check_and_put(p, s, k, expected=None, value=b"v"),
    ]
    for call in calls:
        with pytest.raises(InvalidNameError):
            call()
    assert snapshot(root, beside(root)) == before
    store.write("p", "s", "k" * 120, b"v")
    assert snapshot(root, beside(root)) != before


def test_illegal_values_touch_nothing(store: FilesystemStore, root: Path) -> None:
    before = snapshot(root, beside(root))
    bad: Any = "text"
    calls: list[Callable[[], object]] = [
        lambda: store.write("p", "s", "k", bad),
        lambda: store.check_and_put("p", "s", "k", expected=None, value=bad),
        lambda: store.check_and_put("p", "s", "k", expected=bad, value=b""),
        lambda: store.check_and_put("p", "s", "k", expected=None, value=b"", expires_at=-1),
        lambda: store.check_and_put("p", "s", "k", expected=None, value=None, expires_at=2**63),
        lambda: store.sweep("p", bad, 1),
        lambda: store.sweep("p", 1, 0),
        lambda: store.sweep("p", 1, bad),
    ]
    for call in calls:
        with pytest.raises(InvalidValueError):
            call()
    assert snapshot(root, beside(root)) == before
    assert (
        store.check_and_put("p", "s", "k", expected=None, value=b"", expires_at=2**63 - 1) is None
    )
    assert store.sweep("p", 2**63, 1) == SweepResult(1, 1, False)


def test_unknown_settings(tmp_path: Path) -> None:
    bad: Any
    for bad in ("", b"bytes", "nul\0", None):
        with pytest.raises(ConfigError):
            FilesystemStore(bad)
    bad = "fast"
    with pytest.raises(ConfigError, match="full"):
        FilesystemStore(tmp_path / "store", durability=bad)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="mount point"):
        FilesystemStore("/")


def test_root_is_a_file(root: Path) -> None:
    root.write_bytes(b"mine")
    with pytest.raises(StoreError, match="not a folder") as caught:
        FilesystemStore(root)
    assert not isinstance(caught.value, CorruptStoreError)
    with pytest.raises(StoreError, match="is not a folder"):
        FilesystemStore(root / "below")
    assert files(root.parent) == {"store": b"mine"}
    root.unlink()
    FilesystemStore(root).close()


@pytest.mark.parametrize("name", ["manager", "monitors/key"])
def test_v1_layout_is_refused(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True)
    (root / name).write_bytes(b"v1")
    with pytest.raises(CorruptStoreError, match="v1"):
        FilesystemStore(root)
    assert [path.name for path in root.parent.iterdir()] == ["store"]
    (root / name).unlink()
    FilesystemStore(root).close()


def test_a_missing_root_is_not_made_anew(root: Path) -> None:
    FilesystemStore(root).close()
    root.rename(root.with_name("away"))
    with pytest.raises(CorruptStoreError, match="missing"):
        FilesystemStore(root)
    assert not root.exists()
    root.with_name("away").rename(root)
    FilesystemStore(root).close()


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"kvreplay filesystem 2\n", "another version"), (b"", "damaged"), (b"x" * 999, "damaged")],
)
def test_unknown_format_is_refused(root: Path, content: bytes, says: str) -> None:
    FilesystemStore(root).close()
    marker = beside(root) / "format"
    assert marker.read_bytes() == b"kvreplay filesystem 1\n"
    marker.write_bytes(content)
    with pytest.raises(CorruptStoreError, match=says):
        FilesystemStore(root)
    marker.write_bytes(b"kvreplay filesystem 1\n")
    FilesystemStore(root).close()


def test_sidecar_is_a_file(root: Path) -> None:
    beside(root).write_bytes(b"mine")
    with pytest.raises(CorruptStoreError, match="not a folder"):
        FilesystemStore(root)
    beside(root).unlink()
    FilesystemStore(root).close()


def test_mount_point_is_refused(root: Path) -> None:
    with mounted(root, "size=1m"):
        with pytest.raises(StoreError, match="mount point"):
            FilesystemStore(root)
        assert list(root.iterdir()) == []
        assert not beside(root).exists()
        FilesystemStore(root / "store").close()


def test_mount_inside_root_is_an_error_with_advice(root: Path, store: FilesystemStore) -> None:
    (root / "p").mkdir()
    with mounted(root / "p", "size=1m"):
        with pytest.raises(StoreError, match="no mount point"):
            store.write("p", "s", "k", b"v")
        store.write("q", "s", "k", b"v")
    assert index_files(root) == set()


def everything(store: FilesystemStore) -> list[Callable[[], object]]:
    return [
        lambda: store.read("p", "s", "k"),
        lambda: store.read("p", "s", "absent"),
        lambda: store.write("p", "s", "k", b"v"),
        lambda: store.remove("p", "s", "k"),
        lambda: store.remove("p", "s", "absent"),
        lambda: store.list("p", "s"),
        lambda: list(store.list_all_keys()),
        lambda: store.check_and_put("p", "s", "k", expected=b"1", value=b"v"),
        lambda: store.check_and_put("p", "s", "absent", expected=b"1", value=b"v"),
        lambda: store.sweep("p", 9, 9),
    ]


def test_closed(store: FilesystemStore, root: Path) -> None:
    store.write("p", "s", "k", b"1")
    walk = store.list_all_keys()
    store.close()
    store.close()
    for call in everything(store):
        with pytest.raises(StoreError, match="closed; nothing was done"):
            call()
    with pytest.raises(StoreError, match="closed"):
        store.list_all_keys()
    with pytest.raises(StoreError, match="closed"):
        next(walk)
    with FilesystemStore(root) as again:
        assert again.read("p", "s", "k") == b"1"


@pytest.mark.parametrize("replaced", [False, True])
def test_root_vanishes_during_use(store: FilesystemStore, root: Path, replaced: bool) -> None:
    store.write("p", "s", "k", b"1")
    away = root.with_name("away")
    root.rename(away)
    if replaced:
        root.mkdir()
    for call in everything(store):
        with pytest.raises(StoreUnavailableError, match="no longer the folder"):
            call()
    assert index_files(root) == set()
    if replaced:
        root.rmdir()  # still empty
    assert not root.exists()
    away.rename(root)
    assert store.read("p", "s", "k") == b"1"
    with pytest.raises(KeyNotFoundError):
        store.read("p", "s", "absent")


def test_sidecar_vanishes_during_use(store: FilesystemStore, root: Path) -> None:
    store.write("p", "s", "k", b"1")
    beside(root).rename(root.with_name("away"))
    with pytest.raises(StoreUnavailableError, match="is gone"):
        store.write("p", "s", "k", b"2")
    assert not beside(root).exists()
    root.with_name("away").rename(beside(root))
    store.write("p", "s", "k", b"2")


def test_sidecar_copied_without_its_empty_folders(root: Path) -> None:
    FilesystemStore(root).close()
    for name in ("tmp", "expiry", "stamps"):
        (beside(root) / name).rmdir()
    (beside(root) / "locks" / "7f").unlink()
    with FilesystemStore(root) as store:
        for n in range(300):
            put(store, f"k{n}", b"v", 5)
        assert store.sweep("p", 5, 999).removed == 300
    assert stat.S_IMODE((beside(root) / "locks" / "7f").stat().st_mode) == 0o600


@pytest.mark.parametrize("foreign", ["k", "s", "p"])
def test_something_else_lies_in_the_way(store: FilesystemStore, root: Path, foreign: str) -> None:
    path = root / "p" / "s" / "k"
    if foreign == "k":
        path.mkdir(parents=True)
    else:
        path = path.parent if foreign == "s" else path.parent.parent
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    calls: list[Callable[[], object]] = [
        lambda: store.read("p", "s", "k"),
        lambda: store.write("p", "s", "k", b"v"),
        lambda: store.remove("p", "s", "k"),
        lambda: store.check_and_put("p", "s", "k", expected=None, value=b"", expires_at=5),
    ]
    for call in calls:
        with pytest.raises(CorruptStoreError) as caught:
            call()
        assert isinstance(caught.value.__cause__, OSError)
    assert index_files(root) == set()


def test_messages_show_no_key(root: Path) -> None:
    with FilesystemStore(root) as store:
        store.write("p", "s", "secret", b"v")
        (root / "p" / "s").rename(root / "p" / "t")
        (root / "p" / "s").write_bytes(b"")
        calls: list[Callable[[], object]] = [
            lambda: store.read("p", "s", "secret"),
            lambda: store.write("p", "s", "secret", b"v"),
            lambda: store.remove("p", "s", "secret"),
        ]
        for call in calls:
            with pytest.raises(StoreError) as caught:
                call()
            assert "secret" not in messages(caught.value)
            assert str(root) in str(caught.value)


# Failures of the system.


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
        with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", 0) as filler:
            while True:
                filler.write(bytes(4096))
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


def put_old_expiring(store: FilesystemStore) -> None:
    put(store, "k", OLD, 5 * MINUTE)


def put_old(store: FilesystemStore) -> None:
    store.write("p", "s", "k", OLD)


def put_nothing(store: FilesystemStore) -> None:
    pass


def do_write(store: FilesystemStore) -> None:
    store.write("p", "s", "k", NEW)


def do_create(store: FilesystemStore) -> None:
    store.check_and_put("p", "s", "k", expected=None, value=NEW, expires_at=9 * MINUTE)


def do_update(store: FilesystemStore) -> None:
    store.check_and_put("p", "s", "k", expected=OLD, value=NEW, expires_at=9 * MINUTE)


def do_delete(store: FilesystemStore) -> None:
    store.check_and_put("p", "s", "k", expected=OLD, value=None)


def do_remove(store: FilesystemStore) -> None:
    store.remove("p", "s", "k")


def do_remove_lazily(store: FilesystemStore) -> None:
    store.remove("p", "s", "k", lazy=True)


def do_sweep(store: FilesystemStore) -> None:
    store.sweep("p", 5 * MINUTE, 10)


Action = Callable[[FilesystemStore], None]
CHANGES: list[tuple[Action, Action, bytes | None, bytes | None]] = [
    (put_nothing, do_write, None, NEW),
    (put_nothing, do_create, None, NEW),
    (put_old, do_write, OLD, NEW),
    (put_old, do_update, OLD, NEW),
    (put_old_expiring, do_write, OLD, NEW),
    (put_old_expiring, do_update, OLD, NEW),
    (put_old, do_remove, OLD, None),
    (put_old_expiring, do_delete, OLD, None),
    (put_old_expiring, do_remove, OLD, None),
    (put_old_expiring, do_remove_lazily, OLD, None),
    (put_old_expiring, do_sweep, OLD, None),
]
each_change = pytest.mark.parametrize(
    ("prepare", "change", "old", "new"),
    CHANGES,
    ids=[f"{a.__name__}-{b.__name__}" for a, b, _, _ in CHANGES],
)


def fresh(root: Path, durability: Any = "full") -> FilesystemStore:
    """An adopted store without any entry or index, as if it had never had one."""
    for folder in (root, beside(root) / "expiry", beside(root) / "stamps"):
        shutil.rmtree(folder / "p", ignore_errors=True)
    return FilesystemStore(root, durability=durability)


def value_of(store: FilesystemStore) -> bytes | None:
    try:
        return store.read("p", "s", "k")
    except KeyNotFoundError:
        return None


FAILING_STEPS = ("open", "write", "fsync", "rename", "link", "symlink", "unlink", "mkdir", "utime")


@each_change
@pytest.mark.parametrize(
    ("durability", "code"),
    [("full", errno.EIO), ("full", errno.ENOSPC), ("process", errno.ENOSPC)],
)
def test_each_step_fails(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Action,
    change: Action,
    old: bytes | None,
    new: bytes | None,
    code: int,
    durability: Any,
) -> None:
    """The n-th step fails, for every n: the error tells the truth about the value."""
    error_class = StoreFullError if code == errno.ENOSPC else StoreError
    for n in itertools.count():
        store = fresh(root, durability)
        prepare(store)
        before = index_files(root)
        steps = itertools.count()

        def failing(step: Any, steps: Iterator[int] = steps, n: int = n) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                if next(steps) == n:
                    raise OSError(code, os.strerror(code), "secret")
                return step(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in FAILING_STEPS:
                patch.setattr(os, name, failing(getattr(os, name)))
            try:
                change(store)
                outcome: StoreError | None = None
            except StoreError as error:
                outcome = error
        if outcome is None:
            assert value_of(store) == new
        elif type(outcome) is OutcomeUnknownError:
            assert value_of(store) == new
            assert durability == "full" or change is do_sweep
        else:
            assert type(outcome) is error_class
            assert value_of(store) == old
            assert index_files(root) == before
        if outcome is not None:
            assert "secret" not in messages(outcome)
            assert isinstance(outcome.__cause__, OSError)
        assert not list((beside(root) / "tmp").iterdir())
        change(store) if value_of(store) == old else None  # the store works again
        assert value_of(store) == new
        store.sweep("p", 99 * MINUTE, 10)
        assert index_files(root) <= {"stamps/p/s/k"}, "it could not be unlinked: no harm"
        store.write("p", "s", "k", b"again")
        assert index_files(root) == set()
        store.close()
        if next(steps) <= n:
            break
    assert n > 2


# Crashes.

STEPS = (*FAILING_STEPS, "close", "rmdir", "chmod", "fchmod")


def killed_at(n: int, action: Callable[[], None]) -> bool:
    """Run an action in a child that is killed at its n-th step; say whether it came to that."""
    pid = os.fork()
    if pid == 0:
        exit_code = 1
        try:
            left = iter(range(n))

            def dying(name: str, step: Any) -> Any:
                def call(*args: Any, **kwargs: Any) -> Any:
                    if next(left, None) is None:
                        if name == "write":
                            step(args[0], args[1][: len(args[1]) // 2])
                        os.kill(os.getpid(), signal.SIGKILL)
                    return step(*args, **kwargs)

                return call

            for name in STEPS:
                setattr(os, name, dying(name, getattr(os, name)))
            action()
            exit_code = 0
        finally:
            if exit_code:
                traceback.print_exc()
            os._exit(exit_code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


@each_change
def test_killed_at_each_step(
    root: Path, prepare: Action, change: Action, old: bytes | None, new: bytes | None
) -> None:
    seen = set[bytes | None]()
    for n in itertools.count():
        with fresh(root) as store:
            prepare(store)
        store = FilesystemStore(root)
        killed = killed_at(n, lambda store=store: change(store))  # type: ignore[misc]
        store.close()
        assert set(files(root)) <= {"p/s/k"}

        with FilesystemStore(root) as store:
            assert not list((beside(root) / "tmp").iterdir())
            value = value_of(store)
            assert value in (old, new)
            seen.add(value)
            # When the old value is due, the old value goes and the new one stays.
            store.sweep("p", 5 * MINUTE, 10)
            gone = value == OLD and prepare is put_old_expiring
            assert value_of(store) == (None if gone else value)
            # When the new value is due, nothing of either is left behind.
            store.sweep("p", 9 * MINUTE, 10)
            if value == NEW and change in (do_create, do_update):
                assert value_of(store) is None
            elif not gone:
                assert value_of(store) == value
            assert index_files(root) == set()
            store.write("p", "s", "k", b"again")
        if not killed:
            break
    assert n > 3
    assert value == new
    assert seen == {old, new}


def test_killed_while_adopting(tmp_path: Path) -> None:
    """At each of the first and last steps: those between make one empty lock file each."""

    def steps_of_adoption() -> int:
        counter = itertools.count()
        with pytest.MonkeyPatch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, counting(getattr(os, name), counter))
            FilesystemStore(tmp_path / "count" / "store").close()
        return next(counter)

    def counting(step: Any, counter: Iterator[int]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            next(counter)
            return step(*args, **kwargs)

        return call

    total = steps_of_adoption()
    for n in [*range(50), *range(total - 30, total + 1)]:
        root = tmp_path / str(n) / "store"
        assert killed_at(n, lambda root=root: FilesystemStore(root).close()) == (n < total)  # type: ignore[misc]
        with FilesystemStore(root) as store:
            store.write("p", "s", "k", b"v")
            assert store.read("p", "s", "k") == b"v"
        assert {path.name for path in beside(root).iterdir()} == {
            "format",
            "locks",
            "tmp",
            "expiry",
            "stamps",
        }


def test_opening_spares_the_temporary_of_a_living_writer(root: Path) -> None:
    FilesystemStore(root).close()
    stripe = Entry("p", "s", "k").stripe
    temporary = beside(root) / "tmp" / f"{stripe:02x}-{'0' * 32}.tmp"
    temporary.write_bytes(b"half")
    with flocked(lock_file(str(beside(root)), stripe)):
        FilesystemStore(root).close()
        assert temporary.exists()
    FilesystemStore(root).close()
    assert not temporary.exists()


def test_stripe_is_the_same_in_every_process() -> None:
    """Golden: another number would let two versions write one entry at once."""
    assert Entry("p", "s", "k").stripe == 0x0E
    assert Entry("", "", "manager").stripe == 0x6B


def test_interrupted_after_the_rename(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at the worst moment must not take the marker of a value that is in place."""
    rename = os.rename

    def interrupted(*args: Any) -> None:
        rename(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", interrupted)
        do_create(store)
    assert value_of(store) == NEW
    assert store.sweep("p", 9 * MINUTE, 10) == SweepResult(1, 1, False)


# What reaches the disk, and in which order.


@pytest.fixture
def trace(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps of the calls that follow, as ``"name path"``, with unique parts left out."""
    steps = list[str]()

    def shown(path: Any) -> str:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        name = os.path.relpath(path, root.parent).replace(os.sep, "/")
        if "/tmp/" in name:
            return "temporary"
        return name.split("~")[0] + "~" if "~" in name else name

    def traced(name: str, step: Any, *, of: int) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            steps.append(f"{name} {shown(args[of])}")
            return step(*args, **kwargs)

        return call

    for name, of in {"fsync": 0, "mkdir": 0, "rmdir": 0, "unlink": 0}.items():
        monkeypatch.setattr(os, name, traced(name, getattr(os, name), of=of))
    for name in ("rename", "link", "symlink"):
        monkeypatch.setattr(os, name, traced(name, getattr(os, name), of=1))
    return steps


MARKER = "store.kvreplay/expiry/p/000000000000000/s/0000000000000000005~"


def test_order_of_a_durable_write(store: FilesystemStore, trace: list[str]) -> None:
    store.check_and_put("p", "s", "k", expected=None, value=b"1", expires_at=5)
    assert trace == [
        "fsync temporary",
        "mkdir store.kvreplay/expiry/p",
        "mkdir store.kvreplay/expiry/p/000000000000000",
        "mkdir store.kvreplay/expiry/p/000000000000000/s",
        "fsync store.kvreplay/expiry/p/000000000000000",
        "fsync store.kvreplay/expiry/p",
        "fsync store.kvreplay/expiry",
        f"link {MARKER}",
        "fsync store.kvreplay/expiry/p/000000000000000/s",
        "mkdir store.kvreplay/stamps/p",
        "mkdir store.kvreplay/stamps/p/s",
        "symlink temporary",
        "mkdir store/p",
        "mkdir store/p/s",
        "fsync store/p",
        "fsync store",
        "rename store/p/s/k",
        "fsync store/p/s",
        "rename store.kvreplay/stamps/p/s/k",
    ]
    trace.clear()
    store.write("p", "s", "k", b"2")
    assert trace == [
        "fsync temporary",
        "rename store/p/s/k",
        "fsync store/p/s",
        "unlink store.kvreplay/stamps/p/s/k",
        f"unlink {MARKER}",
    ]


def test_folder_made_by_another_process_is_confirmed(
    store: FilesystemStore, root: Path, trace: list[str]
) -> None:
    (root / "p" / "s").mkdir(parents=True)
    trace.clear()
    store.write("p", "s", "k", b"1")
    assert trace.index("fsync store") < trace.index("rename store/p/s/k")


def test_order_of_a_durable_removal(store: FilesystemStore, trace: list[str]) -> None:
    put(store, "k", b"1", 5)
    trace.clear()
    store.remove("p", "s", "k")
    assert trace == [
        "unlink store/p/s/k",
        "fsync store/p/s",
        "unlink store.kvreplay/stamps/p/s/k",
        f"unlink {MARKER}",
    ]
    trace.clear()
    store.remove("p", "s", "k")
    assert "fsync store/p/s" in trace, "the earlier removal may have been lazy"


def test_a_sweep_confirms_each_folder_once_and_then_drops_the_markers(
    store: FilesystemStore, trace: list[str]
) -> None:
    for key in ("a", "b", "c"):
        put(store, key, b"1", 5)
    trace.clear()
    assert store.sweep("p", 5, 10) == SweepResult(3, 3, False)
    confirmed = trace.index("fsync store/p/s")
    assert trace.count("fsync store/p/s") == 1
    assert [i > confirmed for i, step in enumerate(trace) if step == f"unlink {MARKER}"] == [
        True
    ] * 3
    assert [i < confirmed for i, step in enumerate(trace) if "unlink store/p/s" in step] == [
        True
    ] * 3
    assert [step for step in trace if step.startswith("rmdir")] == [
        "rmdir store.kvreplay/expiry/p/000000000000000/s",
        "rmdir store.kvreplay/expiry/p/000000000000000",
    ]


def test_lazy_removal_syncs_nothing(store: FilesystemStore, trace: list[str]) -> None:
    put(store, "k", b"1", 5)
    trace.clear()
    store.remove("p", "s", "k", lazy=True)
    assert not [step for step in trace if step.startswith("fsync")]
    assert store.list("p", "s") == []
    store.write("p", "s", "k", b"2")
    assert store.read("p", "s", "k") == b"2"


def test_durability_process_syncs_values_and_no_folder(root: Path, trace: list[str]) -> None:
    with FilesystemStore(root, durability="process") as store:
        trace.clear()
        put(store, "k", b"1", 5)
        store.write("p", "s", "other", b"1")
        store.remove("p", "s", "other")
        store.sweep("p", 5, 10)
        assert [step for step in trace if step.startswith("fsync")] == ["fsync temporary"] * 2
        assert store.list("p", "s") == []


def test_a_refused_check_and_put_touches_nothing(store: FilesystemStore, root: Path) -> None:
    store.write("p", "s", "k", b"1")
    before = snapshot(root, beside(root))

    def try_it(key: str, expected: bytes | None, value: bytes | None) -> bytes | None:
        return store.check_and_put("p", "s", key, expected=expected, value=value, expires_at=5)

    assert try_it("k", None, b"2") == b"1"
    assert try_it("k", b"0", b"2") == b"1"
    assert try_it("k", b"0", None) == b"1"
    assert try_it("k", None, None) == b"1"
    assert try_it("absent", b"1", b"2") is None
    assert try_it("absent", b"1", None) is None
    assert try_it("absent", None, None) is None
    assert snapshot(root, beside(root)) == before
    assert try_it("k", b"1", b"2") == b"1"
    assert store.read("p", "s", "k") == b"2"
    assert try_it("k", b"2", None) == b"2"
    assert value_of(store) is None


# Threads and processes.

COUNT = """
import sys
from kvreplay.backends.filesystem import FilesystemStore
root, times = sys.argv[1], int(sys.argv[2])
with FilesystemStore(root, durability="process") as store:
    for _ in range(times):
        found, expected = store.read("p", "s", "n"), None
        while found != expected:
            expected = found
            value = str(int(expected) + 1).encode()
            found = store.check_and_put("p", "s", "n", expected=expected, value=value, expires_at=5)
"""


def test_check_and_put_is_atomic_over_processes(root: Path) -> None:
    with FilesystemStore(root) as store:
        store.write("p", "s", "n", b"0")
        command = [sys.executable, "-W", "error", "-c", COUNT, str(root), "150"]
        children = [subprocess.Popen(command) for _ in range(4)]
        assert [child.wait() for child in children] == [0] * 4
        assert store.read("p", "s", "n") == b"600"
        assert len(index_files(root)) == 2  # one marker, one stamp


def test_check_and_put_is_atomic_over_threads(root: Path) -> None:
    with FilesystemStore(root, durability="process") as store, ThreadPoolExecutor(8) as pool:
        store.write("p", "s", "n", b"0")
        start = threading.Barrier(8)

        def count() -> None:
            start.wait()
            for _ in range(100):
                found, expected = store.read("p", "s", "n"), None
                while found != expected:
                    expected = found
                    value = str(int(expected) + 1).encode()
                    found = (
                        store.check_and_put("p", "s", "n", expected=expected, value=value) or b""
                    )

        for future in [pool.submit(count) for _ in range(8)]:
            future.result()
        assert store.read("p", "s", "n") == b"800"
    assert index_files(root) == set()


def test_readers_and_lists_during_writes(root: Path) -> None:
    with FilesystemStore(root, durability="process") as store, ThreadPoolExecutor(4) as pool:
        store.write("p", "s", "stays", OLD)
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                assert store.read("p", "s", "stays") in (OLD, NEW)
                for names in (store.list("p", "s"), [k for _, _, k in store.list_all_keys()]):
                    assert names.count("stays") == 1
                    assert set(names) <= {"stays", "comes"}

        watchers = [pool.submit(watch) for _ in range(3)]
        try:
            for value in (OLD, NEW) * 100:
                store.write("p", "s", "stays", value)
                store.write("p", "s", "comes", value)
                store.remove("p", "s", "comes")
        finally:
            done.set()
        for watcher in watchers:
            watcher.result()


def test_writers_race_with_sweepers(root: Path) -> None:
    """Entries that are due at once: every one is removed, and once; no folder is missed."""
    with FilesystemStore(root, durability="process") as store, ThreadPoolExecutor(4) as pool:
        done = threading.Event()

        def write(name: str) -> None:
            for n in range(200):
                assert (
                    store.check_and_put(
                        "p", "s", f"{name}{n}", expected=None, value=b"v", expires_at=5
                    )
                    is None
                )

        def sweep() -> int:
            removed = 0
            while not done.is_set():
                removed += store.sweep("p", 5, 7).removed
            return removed

        sweepers = [pool.submit(sweep) for _ in range(2)]
        writers = [pool.submit(write, name) for name in "ab"]
        try:
            for writer in writers:
                writer.result()
        finally:
            done.set()
        removed = sum(sweeper.result() for sweeper in sweepers)
        assert removed + store.sweep("p", 5, 999).removed == 400
        assert store.list("p", "s") == []
    assert index_files(root) == set()
    assert list((beside(root) / "expiry" / "p").iterdir()) == []


def test_forked_child_goes_on(store: FilesystemStore) -> None:
    store.write("p", "s", "n", b"parent")
    pid = os.fork()
    if pid == 0:
        exit_code = 1
        try:
            found = store.check_and_put("p", "s", "n", expected=b"parent", value=b"child")
            exit_code = 0 if found == b"parent" else 2
        finally:
            os._exit(exit_code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.read("p", "s", "n") == b"child"


ORPHANED_LOCK = """
import os, signal, sys, threading
from kvreplay.backends.filesystem import FilesystemStore
store = FilesystemStore(sys.argv[1])
reached = threading.Event()
def stop_here(*args):
    reached.set()
    threading.Event().wait()
os.rename = stop_here
threading.Thread(target=store.write, args=("p", "s", "k", b"1"), daemon=True).start()
reached.wait()
import warnings
warnings.simplefilter("ignore")  # 3.12 warns of a fork with threads: that is the case here
if os.fork() == 0:
    os.close(1)
    os.read(0, 1)  # until the test ends
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_forked_child_does_not_keep_its_dead_parents_lock(root: Path) -> None:
    """The parent dies in the middle of a write; its child lives on."""
    with FilesystemStore(root) as store:
        child = subprocess.Popen(
            [sys.executable, "-c", ORPHANED_LOCK, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.read() == b""  # the parent is dead, the child is past the fork
            with flocked(lock_file(str(beside(root)), Entry("p", "s", "k").stripe), wait=False):
                pass
            store.write("p", "s", "k", b"2")
        assert child.returncode == -signal.SIGKILL
        assert store.read("p", "s", "k") == b"2"


def test_a_copy_of_a_lock_does_not_keep_it(root: Path) -> None:
    """Such as a child has that a C library forked, or subprocess until it executes."""
    FilesystemStore(root).close()
    lock = lock_file(str(beside(root)), 0)
    with flocked(lock):
        copies = [os.dup(fd) for fd in filesystem_layout._held_locks]
        with pytest.raises(BlockingIOError), flocked(lock, wait=False):
            pass
    with flocked(lock, wait=False):
        pass
    assert len(copies) == 1
    os.close(copies[0])


@pytest.mark.parametrize("module", [fcntl, os])
def test_a_lock_whose_release_fails_does_not_deny_the_change(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    """*No entry was changed* would be untrue; and no later call is locked out."""
    release = {fcntl: "flock", os: "close"}[module]
    original = getattr(module, release)
    lock = lock_file(str(beside(root)), Entry("p", "s", "k").stripe)
    failed = []

    def fail(fd: int, *operation: int) -> None:
        if module is os:
            ours = os.readlink(f"/proc/self/fd/{fd}") == lock
            original(fd)  # Linux gives the descriptor back whatever it reports
        else:
            ours = operation == (fcntl.LOCK_UN,)
            None if ours else original(fd, *operation)
        if ours:
            failed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(module, release, fail)
        store.write("p", "s", "k", b"1")
    assert len(failed) == 1
    with flocked(lock, wait=False):
        pass
    assert store.read("p", "s", "k") == b"1"


@pytest.mark.parametrize("durability", ["full", "process"])
def test_a_read_waits_until_what_it_returns_is_durable(
    root: Path, durability: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its rename and the folder's fsync a value can be seen, and lost to a power cut."""
    with FilesystemStore(root, durability=durability) as store:
        store.write("p", "s", "k", OLD)
        with flocked(lock_file(str(beside(root)), Entry("p", "s", "k").stripe)):
            reader = threading.Thread(target=lambda: values.append(store.read("p", "s", "k")))
            values: list[bytes] = []
            if durability == "full":
                waiting = threading.Event()
                flock = fcntl.flock

                def announce(fd: int, operation: int) -> None:
                    waiting.set()
                    flock(fd, operation)

                monkeypatch.setattr(fcntl, "flock", announce)
                reader.start()
                waiting.wait()
                assert values == []
            else:
                reader.start()
                reader.join()
                assert values == [OLD]
        reader.join()
        assert values == [OLD]


# Expiry.


def test_sweep_removes_what_is_due_and_nothing_else(store: FilesystemStore, root: Path) -> None:
    put(store, "due", b"1", 5 * MINUTE)
    put(store, "same-minute", b"2", 5 * MINUTE + 1)
    put(store, "later", b"3", 6 * MINUTE)
    put(store, "other", b"4", 5 * MINUTE, p="other")
    store.write("p", "s", "never", b"5")
    assert store.check_and_put("p", "", "empty", expected=None, value=b"6", expires_at=1) is None
    assert store.check_and_put("", "", "empty", expected=None, value=b"7", expires_at=1) is None
    assert store.sweep("p", 0, 10) == SweepResult(0, 0, False)
    assert store.sweep("p", -1, 10) == SweepResult(0, 0, False)
    assert store.sweep("p", 5 * MINUTE - 1, 10) == SweepResult(1, 1, False)
    assert sorted(store.list("p", "s")) == ["due", "later", "never", "same-minute"]
    assert store.list("p", "") == []
    assert store.sweep("p", 5 * MINUTE, 10) == SweepResult(1, 1, False)
    assert sorted(store.list("p", "s")) == ["later", "never", "same-minute"]
    assert store.read("p", "s", "later") == b"3", "an expiry hides nothing"
    assert store.sweep("unknown", 9 * MINUTE, 10) == SweepResult(0, 0, False)
    assert store.sweep("p", 9 * MINUTE, 10) == SweepResult(2, 2, False)
    assert store.list("p", "s") == ["never"]
    assert store.list("other", "s") == ["other"]
    assert store.list("", "") == ["empty"]
    assert store.sweep("", 9 * MINUTE, 10) == SweepResult(1, 1, False)
    assert store.sweep("other", 9 * MINUTE, 10) == SweepResult(1, 1, False)
    assert list(store.list_all_keys()) == [("p", "s", "never")]
    assert index_files(root) == set()


def test_sweep_is_bounded(store: FilesystemStore) -> None:
    for n in range(5):
        put(store, f"k{n}", b"v", n * MINUTE)
    assert store.sweep("p", 9 * MINUTE, 2) == SweepResult(2, 2, True)
    assert sorted(store.list("p", "s")) == ["k2", "k3", "k4"], "the oldest first"
    assert store.sweep("p", 9 * MINUTE, 2) == SweepResult(2, 2, True)
    assert store.sweep("p", 9 * MINUTE, 1) == SweepResult(1, 1, False)
    assert store.sweep("p", 9 * MINUTE, 1) == SweepResult(0, 0, False)


def test_a_bounded_sweep_looks_no_further_than_it_goes(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        put(store, f"k{n}", b"v", n * MINUTE)
    scandir, listed = os.scandir, list[str]()

    def listing(path: str) -> Any:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listing)
    assert store.sweep("p", 1, 10) == SweepResult(1, 1, False)
    assert any("/000000000000000/" in path for path in listed)
    assert not any("/000000000000001" in path for path in listed)
    assert store.sweep("p", 9 * MINUTE, 1) == SweepResult(1, 1, True)
    assert any("/000000000000001/" in path for path in listed)
    assert not any("/000000000000003" in path for path in listed)


@pytest.mark.parametrize("call", ["link", "symlink", "rename"])
def test_a_failed_change_leaves_no_marker(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "of the disk")

    put(store, "k", b"old", 9)
    before = files(root), files(beside(root))
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreError):
        put(store, "k", b"new", 5)
    monkeypatch.undo()
    assert (files(root), files(beside(root))) == before
    put(store, "k", b"new", 5)
    assert store.sweep("p", 5, 10) == SweepResult(1, 1, False)


def test_a_stamp_that_cannot_take_its_place_is_dropped(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def fail(source: str, target: str) -> None:
        if "/stamps/" in target:
            raise OSError(errno.EIO, "of the disk")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    put(store, "k", b"v", 5)
    assert list((beside(root) / "tmp").iterdir()) == []
    assert store.sweep("p", 5, 10) == SweepResult(1, 1, False)
    assert index_files(root) == set()


def test_a_sweep_that_breaks_off_says_whether_entries_are_gone(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "of the disk", "a path with a key")

    put(store, "k", b"v", 5)
    (root / "p" / "s" / "k").unlink()
    monkeypatch.setattr(store._expiry, "tidy", fail)
    with pytest.raises(StoreError) as error:
        store.sweep("p", 5, 10)
    assert not isinstance(error.value, OutcomeUnknownError), "nothing was removed"
    put(store, "due", b"v", 5)
    with pytest.raises(OutcomeUnknownError, match="removed 1 due") as outcome:
        store.sweep("p", 5, 10)
    assert isinstance(outcome.value.__cause__, OSError)
    assert outcome.value.__cause__.filename is None
    monkeypatch.undo()
    assert store.sweep("p", 5, 10) == SweepResult(2, 0, False)


def test_refreshed_entries_stay(store: FilesystemStore, root: Path) -> None:
    for key in ("later", "never", "again"):
        put(store, key, b"same", 5)
    put(store, "later", b"same", 9 * MINUTE)
    store.write("p", "s", "never", b"same")
    store.remove("p", "s", "again")
    store.write("p", "s", "again", b"same")
    assert store.sweep("p", 8 * MINUTE, 10) == SweepResult(0, 0, False)
    assert sorted(store.list("p", "s")) == ["again", "later", "never"]
    assert store.sweep("p", 9 * MINUTE, 10) == SweepResult(1, 1, False)
    assert sorted(store.list("p", "s")) == ["again", "never"]
    assert index_files(root) == set()


def test_no_overwritten_or_removed_value_lingers(store: FilesystemStore, root: Path) -> None:
    put(store, "k", b"first", 5)
    put(store, "k", b"second", 6 * MINUTE)
    assert b"first" not in files(beside(root)).values()
    assert b"second" in files(beside(root)).values()
    store.remove("p", "s", "k")
    assert index_files(root) == set()


def test_stale_markers_are_visited_and_only_unlinked(store: FilesystemStore, root: Path) -> None:
    """As another program leaves them: LDK renames over the value, or removes it."""
    put(store, "replaced", b"ours", 5)
    put(store, "removed", b"ours", 5)
    (root / "foreign").write_bytes(b"theirs")
    (root / "foreign").rename(root / "p" / "s" / "replaced")
    (root / "p" / "s" / "removed").unlink()
    put(store, "due", b"v", 5)
    assert store.sweep("p", 5, 10) == SweepResult(3, 1, False)
    assert store.read("p", "s", "replaced") == b"theirs"
    assert store.list("p", "s") == ["replaced"]
    assert index_files(root) == set()
    assert list((beside(root) / "expiry" / "p").iterdir()) == []


def test_foreign_files_in_the_index_are_left_alone(store: FilesystemStore, root: Path) -> None:
    put(store, "k", b"v", 5)
    bucket = beside(root) / "expiry" / "p" / "000000000000000"
    for path in (bucket / "s" / "README", bucket / "note", bucket.parent / "note"):
        path.write_bytes(b"mine")
    (bucket.parent / "0").mkdir()
    assert store.sweep("p", 5, 10) == SweepResult(1, 1, False)
    assert (bucket / "s" / "README").exists()
    assert (bucket.parent / "0").exists()


@pytest.mark.parametrize(
    "target",
    [
        "../victim",
        "expiry/../../victim/x",
        "expiry/p/000000000000000/s/0000000000000000005~other~" + "0" * 32,
        "expiry/p/000000000000000/s/0000000000000000005~k~" + "0" * 32 + "/below",
        "expiry/o/000000000000000/s/0000000000000000005~k~" + "0" * 32,
        "expiry/q/000000000000000/s/0000000000000000005~k~" + "0" * 32,
        "expiry/p/000000000000000/t/0000000000000000005~k~" + "0" * 32,
        "expiry/p/minute/s/0000000000000000005~k~" + "0" * 32,
        "expiry/p/000000000000000/s/below/0000000000000000005~k~" + "0" * 32,
        "expiry/p/000000000000000/0000000000000000005~k~" + "0" * 32,
        "expiry/p/000000000000000/s/README",
        "decoy/p/000000000000000/s/0000000000000000005~k~" + "0" * 32,
        "stray/p/000000000000000/s/0000000000000000005~k~" + "0" * 32,
        "README",
    ],
)
def test_a_forged_stamp_unlinks_nothing(store: FilesystemStore, root: Path, target: str) -> None:
    put(store, "k", b"v", 5)
    victim = beside(root) / target
    victim.parent.mkdir(parents=True, exist_ok=True)
    victim.write_bytes(b"mine")
    stamp = beside(root) / "stamps" / "p" / "s" / "k"
    stamp.unlink()
    stamp.symlink_to(target)
    assert store._expiry.current(Entry("p", "s", "k")) is None
    store.write("p", "s", "k", b"w")
    assert victim.read_bytes() == b"mine"
    stamp.write_bytes(b"not even a link")
    put(store, "k", b"x", 9)
    store.remove("p", "s", "k")
    assert not stamp.exists()


def test_longest_names_can_expire(store: FilesystemStore) -> None:
    name = "n" * 120
    latest = 2**63 - 1
    assert (
        store.check_and_put(name, name, name, expected=None, value=b"", expires_at=latest) is None
    )
    assert store.sweep(name, latest - 1, 1) == SweepResult(0, 0, False)
    assert store.sweep(name, latest, 1) == SweepResult(1, 1, False)


def test_an_expiry_is_filed_under_its_minute(store: FilesystemStore, root: Path) -> None:
    for at, minute in ((0, 0), (59_999, 0), (60_000, 1), (119_999, 1)):
        put(store, "k", b"v", at)
        (marker,) = (beside(root) / "expiry" / "p" / f"{minute:015d}" / "s").iterdir()
        assert marker.name.startswith(f"{at:019d}~k~")


def test_a_marker_that_is_gone_already_is_no_trouble(store: FilesystemStore, root: Path) -> None:
    store._expiry.tidy([str(root / "gone")], [str(root / "gone too")])


def test_markers_show_no_key() -> None:
    marker = DueMarker("/expiry/secret", Entry("p", "s", "secret"))
    assert "secret" not in repr(marker) + repr(Mark("/expiry/secret", "/tmp/secret"))


# The shared steps.


def test_make_directories(tmp_path: Path, trace: list[str], monkeypatch: Any) -> None:
    make_directories(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    assert trace == ["mkdir a", "mkdir a/b", "fsync a", "fsync .", "fsync a/b", "fsync a"]
    trace.clear()
    monkeypatch.chdir(tmp_path)
    make_directories("a")
    assert trace == []
    (tmp_path / "file").write_bytes(b"")
    for path in ("file", "file/below"):
        with pytest.raises(NotADirectoryError):
            make_directories(path)


def test_replace_file(tmp_path: Path, trace: list[str], monkeypatch: Any) -> None:
    path = tmp_path / "file"
    replace_file(str(path), b"1")
    replace_file(str(path), b"2", 0o640)
    assert [step.split(".")[0] for step in trace[:3]] == ["fsync file", "rename file", "fsync "]
    assert path.read_bytes() == b"2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(str(tmp_path / "folder"), b"1")
    monkeypatch.chdir(tmp_path)
    replace_file("file", b"3")
    assert path.read_bytes() == b"3"
    assert {each.name for each in tmp_path.iterdir()} == {"file", "folder"}
