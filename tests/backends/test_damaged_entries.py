"""Entries with a legal name that another program has damaged: told of, and never taken for absent."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb.entries import digest_of
from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.errors import CorruptStoreError
from kvreplay.store import Change, Entry

Damage = Callable[[Path], None]


def row(value: object, put: str = "?") -> Damage:
    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"UPDATE ldk_node_data SET value = {put} WHERE key = 'k'", (value,))
            db.commit()

    return damage


def stored(value: bytes) -> Damage:
    def damage(path: Path) -> None:
        with (
            lmdb.open(str(path), max_dbs=8, map_size=2**34, lib_version=0) as env,
            env.begin(write=True) as txn,
        ):
            txn.put(b"p\0s\0k", value, db=env.open_db(b"entries", txn, create=False))

    return damage


DAMAGED: list[tuple[Any, Damage]] = [
    *((SQLiteStore, row(value)) for value in (None, "v", 5, 0.5)),
    (SQLiteStore, row(b"hidden\xff", "CAST(? AS TEXT)")),
    *((LMDBStore, stored(value)) for value in (b"", b"short", bytes(8), bytes(15))),
]


@pytest.mark.parametrize("heals", ["write", "remove", "transaction"])
@pytest.mark.parametrize(("engine", "damage"), DAMAGED)
def test_it_is_told_and_not_taken_for_absent(
    engine: Any, damage: Damage, heals: str, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    with engine(path) as store:
        for key in ("good", "k"):
            store.check_and_put("p", "s", key, expected=None, value=b"v", expires_at=5)
    damage(path)
    with engine(path) as store:
        assert sorted(store.list("p", "s")) == ["good", "k"]
        assert ("p", "s", "k") in [*store.list_all_keys()]

        def in_a_transaction(act: Callable[[Any], object]) -> None:
            with store.transaction() as txn:
                act(txn)

        calls: list[Callable[[], object]] = [
            lambda: store.read("p", "s", "k"),
            lambda: store.read_entry("p", "s", "k"),
            lambda: store.list_paginated_with_values("p", "s"),
            lambda: store.check_and_put("p", "s", "k", expected=None, value=b"w"),
            lambda: store.check_and_put("p", "s", "k", expected=b"", value=b"w"),
            lambda: store.check_and_put("p", "s", "k", expected=None, value=None),
            lambda: in_a_transaction(lambda txn: txn.read("p", "s", "k")),
            lambda: in_a_transaction(
                lambda txn: txn.check_and_put("p", "s", "k", expected=None, value=b"w")
            ),
        ]
        for call in calls:
            with pytest.raises(CorruptStoreError, match="nothing was changed") as caught:
                call()
            assert str(path) in str(caught.value)
            assert "hidden" not in str(caught.value)
        told = []
        with pytest.raises(CorruptStoreError, match="1 of the entries of .*nothing was changed"):
            for address, entry in store.scan():
                told.append((address, entry))
        assert told == [(("p", "s", "good"), Entry(b"v", 5))], "all others were told first"
        assert list(store.scan("other")) == []
        changes = [Change("p", "s", key, None, b"w") for key in ("k", "new")]
        refused, made = store.check_and_put_each(changes)
        assert isinstance(refused, CorruptStoreError)
        assert made is None, "the neighbour in its commit"
        assert store.read("p", "s", "good") == b"v"
        if heals == "write":
            store.write("p", "s", "k", b"anew")
        elif heals == "remove":
            store.remove("p", "s", "k")
        else:
            in_a_transaction(lambda txn: txn.write("p", "s", "k", b"anew"))
        if heals == "remove":
            assert store.check_and_put("p", "s", "k", expected=None, value=b"anew") is None
        assert store.read("p", "s", "k") == b"anew"
        assert sorted(store.list_paginated("p", "s").keys) == ["good", "k", "new"]
        assert store.sweep("p", 5, 10).removed == 1
        assert store.read("p", "s", "k") == b"anew", "it has no expiry"


def test_a_page_of_lmdb_shows_no_entry_that_another_program_has_removed(tmp_path: Path) -> None:
    with LMDBStore(tmp_path / "store") as store:
        for key in ("a", "b", "c"):
            store.write("p", "s", key, b"v")
    with lmdb.open(str(tmp_path / "store"), max_dbs=8, map_size=2**34, lib_version=0) as env:
        with env.begin(write=True) as txn:
            assert txn.delete(b"p\0s\0b", db=env.open_db(b"entries", txn, create=False))
            created = env.open_db(b"created", txn, create=False)
            txn.put(digest_of(b"p\0s") + b"\x7f" + bytes(7), b"never", db=created)
    with LMDBStore(tmp_path / "store") as store:
        assert list(store.list_paginated("p", "s").keys) == ["c", "a"]
        assert [key for key, _ in store.list_paginated_with_values("p", "s").entries] == ["c", "a"]


@pytest.mark.parametrize("order", ["text", b"blob", 2**63 - 1, 2**62])
def test_creation_numbers_that_leave_no_room_are_refused(tmp_path: Path, order: object) -> None:
    """Else no entry could be made: the next number is one more than the greatest."""
    path = tmp_path / "store"
    with SQLiteStore(path) as store:
        store.write("p", "s", "k", b"v")
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE ldk_node_data SET sort_order = ?", (order,))
        db.commit()
    with pytest.raises(CorruptStoreError, match="sort_order"):
        SQLiteStore(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE ldk_node_data SET sort_order = ?", (2**62 - 1,))
        db.commit()
    with SQLiteStore(path) as store:
        store.write("p", "s", "new", b"v")
        assert list(store.list_paginated("p", "s").keys) == ["new", "k"]


@pytest.mark.parametrize("order", [-1, 0.5])
def test_a_page_cannot_end_at_what_is_no_creation_number(tmp_path: Path, order: object) -> None:
    path = tmp_path / "store"
    with SQLiteStore(path) as store:
        for key in ("a", "b", "c"):
            store.write("p", "s", key, b"v")
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE ldk_node_data SET sort_order = ? WHERE key IN ('a', 'b')", (order,))
        db.commit()
    with SQLiteStore(path) as store:
        assert list(store.list_paginated("p", "s", limit=1).keys) == ["c"]
        assert sorted(store.list_paginated("p", "s").keys) == ["a", "b", "c"]
        with pytest.raises(CorruptStoreError, match="sort_order"):
            store.list_paginated("p", "s", limit=2)
