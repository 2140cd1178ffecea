"""What reaches the disk, and in which order."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.durable_files import make_directories, replace_file
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.store import SweepResult
from kvreplay.testing.entries import put
from support.file_stores import beside, snapshot, value_of

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
        "rmdir store.kvreplay/stamps/p/s",
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
    store.write("p", "s", "other", b"1")
    trace.clear()
    store.remove("p", "s", "k")
    assert trace == [
        "unlink store/p/s/k",
        "rmdir store/p/s",
        "fsync store/p/s",
        "unlink store.kvreplay/stamps/p/s/k",
        "rmdir store.kvreplay/stamps/p/s",
        f"unlink {MARKER}",
    ]
    trace.clear()
    store.remove("p", "s", "k")
    assert "fsync store/p/s" in trace, "the earlier removal may have been lazy"


def test_the_last_removal_confirms_the_folder_that_is_left(
    store: FilesystemStore, root: Path, trace: list[str]
) -> None:
    names = ["unlink store/p/s/k", "rmdir store/p/s", "fsync store/p"]
    for place in (["fsync store"], []):  # the first time, where that folder is is confirmed too
        store.write("p", "s", "k", b"1")
        trace.clear()
        store.remove("p", "s", "k")
        assert trace[:-1] == names + place
        assert list((root / "p").iterdir()) == []
    trace.clear()
    store.remove("p", "s", "k")
    assert "fsync store/p" in trace, "the earlier removal may have been lazy"


def test_a_sweep_confirms_each_folder_once_and_then_drops_the_markers(
    store: FilesystemStore, trace: list[str]
) -> None:
    for key in ("a", "b", "c"):
        put(store, key, b"1", 5)
    put(store, "later", b"1", 6)
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
        "rmdir store/p/s",  # these are not empty
        "rmdir store.kvreplay/stamps/p/s",
        "rmdir store.kvreplay/expiry/p/000000000000000/s",
        "rmdir store.kvreplay/expiry/p/000000000000000",
    ]


def test_a_sweep_that_empties_folders_confirms_the_one_above(
    store: FilesystemStore, root: Path, trace: list[str]
) -> None:
    for n in range(20):
        store.check_and_put("p", f"s{n}", "k", expected=None, value=b"1", expires_at=5)
    store.write("p", "stays", "k", b"1")
    trace.clear()
    assert store.sweep("p", 5, 99) == SweepResult(20, 20, False)
    assert [step for step in trace if step.startswith("fsync")] == ["fsync store/p", "fsync store"]
    confirmed = trace.index("fsync store/p")
    for i, step in enumerate(trace):
        if step.startswith("rmdir store/"):
            assert i < confirmed
        if step.startswith("unlink store.kvreplay/expiry"):
            assert i > confirmed, (
                "no later sweep would look at an entry that a power cut brings back"
            )
    assert [each.name for each in (root / "p").iterdir()] == ["stays"]
    for name in ("stamps", "expiry"):
        assert list((beside(root) / name / "p").iterdir()) == []


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
