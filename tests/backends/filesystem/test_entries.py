"""``read_entry``: value and expiry belong to one change, whatever happens beside it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.filesystem.expiry import ExpiryIndex
from kvreplay.errors import KeyNotFoundError, StoreUnavailableError
from kvreplay.store import Entry
from kvreplay.testing.entries import put
from support.file_stores import MINUTE, NEW, OLD, beside


def stamp_of(root: Path) -> Path:
    return beside(root) / "stamps" / "p" / "s" / "k"


def begin(change: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let another thread begin a change, which waits before it replaces the value of ``k``.

    Until it ends it has the entry's lock.

    Returns:
        What lets it end.
    """
    rename, waiting, may_go_on = os.rename, threading.Event(), threading.Event()

    def wait_first(source: str, target: str) -> None:
        if os.path.basename(target) == "k":
            waiting.set()
            assert may_go_on.wait(30)
        rename(source, target)

    def end() -> None:
        may_go_on.set()
        writer.join()

    monkeypatch.setattr(os, "rename", wait_first)
    writer = threading.Thread(target=change)
    writer.start()
    assert waiting.wait(30)
    return end


def test_an_expiry_is_told_without_its_stamp(store: FilesystemStore, root: Path) -> None:
    """As a crash leaves it: the value and its marker are in place, the stamp is not."""
    for n in range(3):  # other minutes, other keys, another namespace
        put(store, f"k{n}", OLD, n * MINUTE)
        store.check_and_put(
            "p", "t", "k", expected=None if n == 0 else OLD, value=OLD, expires_at=n
        )
    put(store, "k", OLD, 7 * MINUTE + 3)
    stamp_of(root).unlink()
    assert store.read_entry("p", "s", "k") == Entry(OLD, 7 * MINUTE + 3)
    assert store.sweep("p", 7 * MINUTE + 2, 99).removed == 4
    assert store.read_entry("p", "s", "k") == Entry(OLD, 7 * MINUTE + 3)
    assert store.sweep("p", 7 * MINUTE + 3, 99).removed == 1


def test_a_stamp_of_the_value_before_is_not_believed(store: FilesystemStore, root: Path) -> None:
    put(store, "k", OLD, 5)
    old = os.readlink(stamp_of(root))
    keep = beside(root) / "kept"
    os.link(beside(root) / old, keep)
    put(store, "k", NEW, 9)
    os.link(keep, beside(root) / old)  # a crash may leave the old marker too
    stamp_of(root).unlink()
    stamp_of(root).symlink_to(old)
    assert store.read_entry("p", "s", "k") == Entry(NEW, 9)
    store.write("p", "s", "k", OLD)
    stamp_of(root).parent.mkdir(exist_ok=True)
    stamp_of(root).symlink_to(old)
    assert store.read_entry("p", "s", "k") == Entry(OLD, None)


def test_another_program_s_link_is_no_expiry(store: FilesystemStore, root: Path) -> None:
    """As of a backup that is made of hard links."""
    store.write("p", "s", "k", OLD)
    put(store, "other", OLD, 5)
    os.link(root / "p" / "s" / "k", root.parent / "backup")
    assert store.read_entry("p", "s", "k") == Entry(OLD, None)
    put(store, "k", NEW, 5)
    os.link(root / "p" / "s" / "k", root.parent / "another")
    assert store.read_entry("p", "s", "k") == Entry(NEW, 5)


def test_what_is_no_marker_of_the_entry_is_no_expiry(store: FilesystemStore, root: Path) -> None:
    """A sweep would not remove the entry by it, either."""
    put(store, "k", OLD, 5)
    (marker,) = (beside(root) / "expiry" / "p").rglob("*~k~*")
    value = root / "p" / "s" / "k"
    foreign = beside(root) / "expiry" / "p" / "note" / "s"
    foreign.mkdir(parents=True)
    for place, key in ((foreign, "k"), (marker.parent, "a"), (marker.parent, "z")):
        os.link(value, place / marker.name.replace("~k~", f"~{key}~"))
    assert store.read_entry("p", "s", "k") == Entry(OLD, 5)
    marker.unlink()  # the stamp names it still
    assert store.read_entry("p", "s", "k") == Entry(OLD, None)
    store.sweep("p", 5, 9)
    assert store.read_entry("p", "s", "k") == Entry(OLD, None)


def test_a_copy_without_hard_links_has_no_expiry(store: FilesystemStore, root: Path) -> None:
    put(store, "k", OLD, 5)
    (root.parent / "copy").write_bytes(OLD)
    (root.parent / "copy").rename(root / "p" / "s" / "k")
    assert store.read_entry("p", "s", "k") == Entry(OLD, None)


def test_what_is_read_during_changes_belongs_together(root: Path) -> None:
    """Each value goes with its own expiry, and some with none."""
    with FilesystemStore(root, durability="process") as store:
        expiries = [None, *(n * MINUTE for n in range(1, 6))]
        put(store, "k", b"0", None)
        done = threading.Event()
        wrong: list[Entry] = []
        seen = set[bytes]()

        def watch() -> None:
            while not done.is_set():
                try:
                    entry = store.read_entry("p", "s", "k")
                except KeyNotFoundError:
                    continue
                seen.add(entry.value)
                if entry.expires_at != expiries[int(entry.value)]:
                    wrong.append(entry)

        watchers = [threading.Thread(target=watch) for _ in range(2)]
        for watcher in watchers:
            watcher.start()
        try:
            for turn in range(150):
                n = turn % len(expiries)
                if turn % 10 == 9:
                    store.remove("p", "s", "k")
                put(store, "k", b"%d" % n, expiries[n])
        finally:
            done.set()
            for watcher in watchers:
                watcher.join()
        assert wrong == []
        assert len(seen) > 1


def test_a_change_between_both_looks_is_noticed(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "k", OLD, 5)
    expiry_of = ExpiryIndex.expiry_of
    changes = [begin(lambda: put(store, "k", NEW, 9), monkeypatch)]

    def change_first(index: ExpiryIndex, *args: Any, **options: Any) -> int | None:
        if changes:
            changes.pop()()
        return expiry_of(index, *args, **options)

    monkeypatch.setattr(ExpiryIndex, "expiry_of", change_first)
    assert store.read_entry("p", "s", "k") == Entry(NEW, 9)
    assert changes == []


@pytest.mark.parametrize("stamped", [True, False])
def test_the_count_of_links_is_not_believed_during_a_change(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch, stamped: bool
) -> None:
    """Linux lowers it, and only then does the name lead elsewhere. A crash may have left no stamp."""
    put(store, "k", OLD, 5)
    if not stamped:
        stamp_of(root).unlink()
    end, fstat = begin(lambda: store.write("p", "s", "k", NEW), monkeypatch), os.fstat
    value = os.stat(root / "p" / "s" / "k")

    def lowered(fd: int) -> os.stat_result:
        found = fstat(fd)
        return os.stat_result((*found[:3], 1, *found[4:])) if found == value else found

    monkeypatch.setattr(os, "fstat", lowered)
    try:
        assert store.read_entry("p", "s", "k") == Entry(OLD, 5)
    finally:
        end()
    assert store.read_entry("p", "s", "k") == Entry(NEW, None)


def test_an_entry_without_expiry_is_told_during_a_change(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "other", OLD, 5)
    store.write("p", "s", "k", OLD)
    end = begin(lambda: put(store, "k", NEW, 9), monkeypatch)
    try:
        assert store.read_entry("p", "s", "k") == Entry(OLD, None)
    finally:
        end()
    assert store.read_entry("p", "s", "k") == Entry(NEW, 9)


def test_without_a_change_no_minutes_are_listed(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "k", OLD, 5)
    store.write("p", "s", "lasting", OLD)
    monkeypatch.setattr(os, "listdir", lambda _: pytest.fail("a folder was listed"))
    assert store.read_entry("p", "s", "lasting") == Entry(OLD, None)
    assert store.read_entry("p", "s", "k") == Entry(OLD, 5)


def test_an_entry_that_is_changed_again_and_again_is_told_so(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "k", OLD, 5)
    monkeypatch.setattr(os.path, "samestat", lambda one, other: False)
    with pytest.raises(StoreUnavailableError, match="again and again"):
        store.read_entry("p", "s", "k")


def test_an_entry_that_goes_while_it_is_read(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "k", OLD, 5)
    expiry_of = ExpiryIndex.expiry_of

    def remove_first(index: ExpiryIndex, *args: Any, **options: Any) -> int | None:
        (root / "p" / "s" / "k").unlink()
        return expiry_of(index, *args, **options)

    monkeypatch.setattr(ExpiryIndex, "expiry_of", remove_first)
    with pytest.raises(KeyNotFoundError):
        store.read_entry("p", "s", "k")
