"""What is refused: names and values, and folders and files that are not what they should be."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.errors import (
    ConfigError,
    CorruptStoreError,
    InvalidNameError,
    InvalidValueError,
    KeyNotFoundError,
    StoreError,
    StoreUnavailableError,
)
from kvreplay.store import SweepResult
from kvreplay.testing.entries import every_call, put
from support.disks import mounted
from support.file_stores import beside, files, index_files, snapshot
from support.told import told


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
    [
        (b"kvreplay filesystem 2\n", "another version"),
        (b"kvreplay filesystem 1\n", "another version"),
        (b"", "damaged"),
        (b"x" * 999, "damaged"),
    ],
)
def test_unknown_format_is_refused(root: Path, content: bytes, says: str) -> None:
    FilesystemStore(root).close()
    marker = beside(root) / "format"
    before = marker.read_bytes()
    marker.write_bytes(content)
    with pytest.raises(CorruptStoreError, match=says):
        FilesystemStore(root)
    marker.write_bytes(before)
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


def test_closed(store: FilesystemStore, root: Path) -> None:
    store.write("p", "s", "k", b"1")
    walk = store.list_all_keys()
    store.close()
    store.close()
    for call in every_call(store):
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
    for call in every_call(store):
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
            assert "secret" not in told(caught.value)
            assert str(root) in str(caught.value)
