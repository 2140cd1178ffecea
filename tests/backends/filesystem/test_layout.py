"""The layout: that of LDK, and nothing foreign below the root."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.store import InspectableKVStore, TransactionalKVStore
from kvreplay.testing.entries import put
from support.file_stores import beside, files
from support.programs import run_code


def test_is_an_expiring_store_without_transactions(store: FilesystemStore, root: Path) -> None:
    typed: InspectableKVStore = store
    assert isinstance(typed, InspectableKVStore)
    assert not isinstance(typed, TransactionalKVStore)
    found = root.stat()
    name, store_id, *inode = store.identity
    assert (name, inode) == ("filesystem", [found.st_dev, found.st_ino])
    assert (beside(root) / "format").read_text() == f"kvreplay filesystem 1 {store_id}\n"
    assert store.reads_are_local
    assert repr(store) == f"FilesystemStore({str(root)!r}, durability='full')"
    assert FilesystemStore.LOCATION == "path"
    assert FilesystemStore.OPTIONS == {
        "create": "boolean",
        "durability": ("full", "process"),
        "lock_timeout": "duration",
    }


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
    done = run_code(script, root)
    assert done.returncode == 0, done.stderr
    # "[empty]" is where a file that does not exist is moved to, to see if a mount is in the way.
    assert done.stdout.strip() == "['[empty]', 'p', 'p/s', 'p/s/key']"
    assert [path.name for path in root.rglob("*")] == ["p"]


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
