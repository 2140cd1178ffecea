"""``BackupKVStore`` and ``CompactableKVStore``: a whole copy while others write; a smaller file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvreplay.errors import ConfigError
from kvreplay.store import BackupKVStore, CompactableKVStore
from kvreplay.testing.entries import content, put
from kvreplay.testing.threads import watched_by

__all__ = ["BackupTests"]

Open = Callable[[Path], Any]


class BackupTests:
    """A backup is opened as any store is, and is another one."""

    def test_a_backup_has_everything(
        self, backable: BackupKVStore, tmp_path: Path, open_at: Open
    ) -> None:
        store: Any = backable
        fill(store)
        told = told_by(store)
        store.backup(tmp_path / "folders" / "above" / "copy")
        assert told_by(store) == told
        assert told_by(open_at(tmp_path / "folders" / "above" / "copy")) == told
        store.close()
        assert told_by(open_at(tmp_path / "folders" / "above" / "copy")) == told

    def test_a_backup_is_another_store(
        self, backable: BackupKVStore, tmp_path: Path, open_at: Open
    ) -> None:
        store: Any = backable
        store.write("p", "s", "k", b"v")
        store.backup(tmp_path / "one")
        store.backup(str(tmp_path / "two"))
        one, two = open_at(tmp_path / "one"), open_at(tmp_path / "two")
        if hasattr(store, "identity"):
            assert len({each.identity for each in (store, one, two)}) == 3
        if hasattr(store, "owners_file"):
            assert len({each.owners_file for each in (store, one, two)}) == 3
        one.write("p", "s", "k", b"of one")
        store.write("p", "s", "k", b"of the store")
        store.write("p", "s", "new", b"v")
        assert content(store) == {("p", "s", "k"): b"of the store", ("p", "s", "new"): b"v"}
        assert content(one) == {("p", "s", "k"): b"of one"}
        assert content(two) == {("p", "s", "k"): b"v"}

    def test_a_backup_of_a_backup(
        self, backable: BackupKVStore, tmp_path: Path, open_at: Open
    ) -> None:
        backable.backup(tmp_path / "empty")
        empty = open_at(tmp_path / "empty")
        assert content(empty) == {}
        fill(empty)
        empty.backup(tmp_path / "full")
        assert told_by(open_at(tmp_path / "full")) == told_by(empty)

    def test_what_is_removed_lazily_is_not_in_a_backup(
        self, backable: BackupKVStore, tmp_path: Path, open_at: Open
    ) -> None:
        for key in ("stays", "goes"):
            backable.write("p", "s", key, b"v")
        backable.remove("p", "s", "goes", lazy=True)
        backable.backup(tmp_path / "copy")
        assert content(open_at(tmp_path / "copy")) == {("p", "s", "stays"): b"v"}

    @pytest.mark.parametrize("what", ["file", "folder", "full", "link", "store"])
    def test_what_is_there_is_not_replaced(
        self, backable: BackupKVStore, path: Path, tmp_path: Path, what: str
    ) -> None:
        backable.write("p", "s", "k", b"v")
        place = tmp_path / "place"
        if what == "file":
            place.write_bytes(b"something")
        elif what == "link":
            place.symlink_to(tmp_path / "nowhere")
        elif what == "store":
            place = path
        else:
            place.mkdir()
        if what == "full":
            (place / "file").write_bytes(b"something")
        before = sorted(tmp_path.iterdir())
        with pytest.raises(ConfigError, match="nothing was made"):
            backable.backup(place)
        assert sorted(tmp_path.iterdir()) == before
        if what == "file":
            assert place.read_bytes() == b"something"
        assert content(backable) == {("p", "s", "k"): b"v"}

    @pytest.mark.parametrize("place", ["", "a\0b", None, 5])
    def test_no_path(self, backable: BackupKVStore, place: Any) -> None:
        with pytest.raises(ConfigError):
            backable.backup(place)

    def test_backups_during_changes(
        self, backable: BackupKVStore, tmp_path: Path, open_at: Open
    ) -> None:
        """Each shows one moment, if the store can change two entries at once."""
        store: Any = backable
        for key in ("a", "b"):
            store.write("p", "s", key, b"0")
        number = 0

        def change() -> None:
            nonlocal number
            number += 1
            value = str(number).encode()
            if hasattr(store, "transaction"):
                with store.transaction() as txn:
                    txn.write("p", "s", "a", value)
                    txn.write("p", "s", "b", value)
            else:
                store.write("p", "s", "a", value)
                store.write("p", "s", "b", value)
            store.write("p", "t", f"{number % 50}", value * 100)
            store.remove("p", "t", f"{number % 50 - 25}")

        with watched_by(change):
            for n in range(5):
                least = number
                store.backup(tmp_path / f"copy{n}")
                copy = open_at(tmp_path / f"copy{n}")
                one, other = int(copy.read("p", "s", "a")), int(copy.read("p", "s", "b"))
                assert least - 1 <= one
                assert one == other or not hasattr(store, "transaction")
                if hasattr(copy, "check"):
                    assert list(copy.check()) == []
                copy.write("p", "s", "a", b"later")
                copy.close()

    # Compacting.

    def test_compacting_changes_no_entry(
        self, compactable: CompactableKVStore, reopen: Callable[[], Any]
    ) -> None:
        store: Any = compactable
        fill(store)
        for n in range(100):
            store.write("p", "large", f"k{n}", bytes(10_000))
        for n in range(100):
            store.remove("p", "large", f"k{n}")
        told = told_by(store)
        sizes = store.compact()
        assert 0 < sizes.after < sizes.before
        assert told_by(store) == told
        store.write("p", "s", "k", b"later")
        assert store.read("p", "s", "k") == b"later"
        store.remove("p", "s", "k")
        assert told_by(store) == told
        assert told_by(reopen()) == told

    def test_others_go_on_after_compacting(
        self, compactable: CompactableKVStore, another: Callable[[], Any]
    ) -> None:
        other = another()
        for n in range(3):
            other.write("p", "s", f"k{n}", b"v")
            compactable.compact()
            compactable.write("p", "s", f"l{n}", b"w")
        expected = {
            ("p", "s", f"{name}{n}"): value
            for name, value in (("k", b"v"), ("l", b"w"))
            for n in range(3)
        }
        assert content(other) == content(compactable) == content(another()) == expected

    def test_what_is_removed_lazily_stays_so(
        self, compactable: CompactableKVStore, reopen: Callable[[], Any]
    ) -> None:
        compactable.write("p", "s", "k", b"v")
        compactable.remove("p", "s", "k", lazy=True)
        compactable.compact()
        assert content(compactable) == content(reopen()) == {}

    def test_compacting_during_changes(self, compactable: CompactableKVStore) -> None:
        number = 0

        def change() -> None:
            nonlocal number
            number += 1
            compactable.write("p", "s", "k", str(number).encode())
            assert int(compactable.read("p", "s", "k")) == number

        with watched_by(change):
            for _ in range(5):
                compactable.compact()
        assert int(compactable.read("p", "s", "k")) == number


def fill(store: Any) -> None:
    """Put entries into several namespaces, with an expiry where the store can."""
    for n in range(60):
        store.write(f"p{n % 3}", "s" * (n % 2), f"k{n * 7 % 60}", str(n).encode() * n)
    for n in range(0, 60, 4):
        store.remove(f"p{n % 3}", "s" * (n % 2), f"k{n * 7 % 60}")
    if hasattr(store, "check_and_put"):
        for n in range(9):
            put(store, f"k{n}", b"v", 5 + n)
        put(store, "k3", b"w", 50)


def told_by(store: Any) -> list[Any]:
    """Everything that a store tells of its entries; they stay where they are."""
    told: list[Any] = [sorted(content(store).items())]
    if hasattr(store, "read_entry"):
        told.append(
            sorted((each, store.read_entry(*each).expires_at) for each in store.list_all_keys())
        )
    if hasattr(store, "list_paginated"):
        namespaces = sorted({each[:2] for each in store.list_all_keys()})
        told += [list(store.list_paginated(*each, limit=1000).keys) for each in namespaces]
    return told
