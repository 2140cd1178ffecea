"""Expiry: what a sweep removes, what it visits, and what it leaves alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.filesystem.expiry import DueMarker, Mark
from kvreplay.backends.filesystem.layout import EntryFile
from kvreplay.errors import OutcomeUnknownError, StoreError
from kvreplay.store import SweepResult
from kvreplay.testing.entries import put
from support.file_stores import MINUTE, beside, files, index_files


def test_sweep_removes_what_is_due_and_nothing_else(store: FilesystemStore, root: Path) -> None:
    put(store, "due", b"1", 5 * MINUTE)
    put(store, "same-minute", b"2", 5 * MINUTE + 1)
    put(store, "later", b"3", 6 * MINUTE)
    put(store, "other", b"4", 5 * MINUTE, primary="other")
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
    listdir, listed = os.listdir, list[str]()

    def listing(path: str) -> Any:
        listed.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", listing)
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
    assert store._expiry.current(EntryFile("p", "s", "k")) is None
    store.write("p", "s", "k", b"w")
    assert victim.read_bytes() == b"mine"
    stamp.parent.mkdir(parents=True, exist_ok=True)
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
    marker = DueMarker("/expiry/secret", EntryFile("p", "s", "secret"))
    assert "secret" not in repr(marker) + repr(Mark("/expiry/secret", "/tmp/secret"))
