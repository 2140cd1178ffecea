"""LDK's own folder and ldk-node's database as sources: each is a store that is only read."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvreplay._migration.ldk_database import LdkDatabase
from kvreplay._migration.ldk_files import LdkFiles
from kvreplay.errors import (
    CorruptStoreError,
    InvalidValueError,
    KeyNotFoundError,
    StoreError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from support.migrations import LDK, ldk_files, node_file

KINDS = ["ldk-v1", "ldk-v2", "ldk-node"]


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "ldk-node":
        node_file(tmp_path / "file", 3)
        store: Any = LdkDatabase(str(tmp_path / "file"))
    else:
        ldk_files(tmp_path / "root", request.param)
        store = LdkFiles(str(tmp_path / "root"), request.param)
    with contextlib.closing(store):
        yield store


def test_it_reads_and_lists(source: Any) -> None:
    assert sorted(source.list_all_keys()) == sorted(LDK)
    for address, value in LDK.items():
        assert source.read(*address) == value
        assert source.list(*address[:2]) == [address[2]]
        page = source.list_paginated_with_values(*address[:2])
        assert list(page.entries) == [(address[2], value)]
        assert list(source.list_paginated(*address[:2]).keys) == [address[2]]
    assert source.list("nowhere", "s") == []
    assert list(source.list_paginated("nowhere", "s").keys) == []
    with pytest.raises(KeyNotFoundError):
        source.read("monitors", "", "absent")
    with pytest.raises(InvalidValueError):
        source.list_paginated("monitors", "", "no token")


def test_pages_go_on_where_the_one_before_ended(tmp_path: Path) -> None:
    node_file(tmp_path / "file", 3)
    with contextlib.closing(sqlite3.connect(tmp_path / "file")) as db:
        for number in range(5):
            db.execute(
                "INSERT INTO ldk_node_data VALUES ('p', 's', ?, ?, ?)",
                (f"k{number}", b"v", 100 + number),
            )
        db.commit()
    with contextlib.closing(LdkDatabase(str(tmp_path / "file"))) as source:
        first = source.list_paginated("p", "s", limit=3)
        rest = source.list_paginated("p", "s", first.next_page_token, limit=3)
    assert [*first.keys, *rest.keys] == ["k4", "k3", "k2", "k1", "k0"]
    assert rest.next_page_token is None


def test_what_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        LdkDatabase(str(tmp_path / "none"))
    with pytest.raises(StoreNotFoundError):
        LdkFiles(str(tmp_path / "none"), "ldk-v1")
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_no_bytes_is_refused(tmp_path: Path) -> None:
    node_file(tmp_path / "file", 3)
    with contextlib.closing(sqlite3.connect(tmp_path / "file")) as db:
        db.execute("UPDATE ldk_node_data SET value = 'text' WHERE key = 'manager'")
        db.commit()
    with contextlib.closing(LdkDatabase(str(tmp_path / "file"))) as source:
        with pytest.raises(CorruptStoreError, match="holds a str"):
            source.read("", "", "manager")
        assert source.read("monitors", "", "a_0") == b"2"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="nothing was changed"):
        LdkDatabase(str(tmp_path / "file"))


def folder(path: Path) -> None:
    path.mkdir()


def to_nothing(path: Path) -> None:
    path.symlink_to("not-mounted")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


ODD = [folder, to_nothing, circle, os.mkfifo]


@pytest.mark.parametrize("make", ODD)
def test_what_is_no_file_in_the_place_of_an_entry_is_refused(tmp_path: Path, make: Any) -> None:
    """It is neither absent nor a reason to show nothing; and nobody waits for it."""
    ldk_files(tmp_path / "root", "ldk-v2")
    make(tmp_path / "root" / "monitors" / "[empty]" / "odd")
    with contextlib.closing(LdkFiles(str(tmp_path / "root"), "ldk-v2")) as source:
        for call in (
            lambda: source.read("monitors", "", "odd"),
            lambda: source.list("monitors", ""),
            lambda: source.list_paginated("monitors", ""),
            lambda: list(source.list_all_keys()),
        ):
            with pytest.raises(StoreError) as caught:
                call()
            assert not isinstance(caught.value, KeyNotFoundError)
        assert source.read("monitors", "", "a_0") == LDK["monitors", "", "a_0"]


@pytest.mark.parametrize("layout", ["ldk-v1", "ldk-v2"])
@pytest.mark.parametrize("make", [to_nothing, circle])
def test_a_folder_that_cannot_be_reached_is_not_empty(
    tmp_path: Path, layout: Any, make: Any
) -> None:
    root = tmp_path / "root"
    ldk_files(root, layout)
    with contextlib.closing(LdkFiles(str(root), layout)) as source:
        (root / "monitors").rename(tmp_path / "kept")
        make(root / "monitors")
        for call in (
            lambda: source.read("monitors", "", "a_0"),
            lambda: source.list("monitors", ""),
            lambda: list(source.list_all_keys()),
        ):
            with pytest.raises(StoreError) as caught:
                call()
            assert not isinstance(caught.value, KeyNotFoundError)
        (root / "monitors").unlink()
        (tmp_path / "kept").rename(root / "monitors")
        assert sorted(source.list_all_keys()) == sorted(LDK)


@pytest.mark.parametrize("layout", ["ldk-v1", "ldk-v2"])
def test_a_root_that_has_gone_is_not_empty(tmp_path: Path, layout: Any) -> None:
    """Its disk may have been unmounted: a migration of nothing would seem to go well."""
    root = tmp_path / "root"
    ldk_files(root, layout)
    with contextlib.closing(LdkFiles(str(root), layout)) as source:
        root.rename(tmp_path / "kept")
        for call in (
            lambda: source.read("monitors", "", "a_0"),
            lambda: source.list("monitors", ""),
            lambda: source.list_paginated_with_values("monitors", ""),
            lambda: list(source.list_all_keys()),
        ):
            with pytest.raises(StoreUnavailableError, match="gone"):
                call()
        (tmp_path / "kept").rename(root)
        assert sorted(source.list_all_keys()) == sorted(LDK)


@pytest.mark.parametrize(
    ("column", "name"),
    [
        *(("key", name) for name in ("a.b", "a\0b", "ключ", "N" * 121, b"blob")),
        *(("secondary_namespace", name) for name in ("a.b", b"blob")),
        ("primary_namespace", "a b"),
    ],
)
def test_a_foreign_name_in_the_table_is_refused(tmp_path: Path, column: str, name: object) -> None:
    """It may be data that would be left behind."""
    node_file(tmp_path / "file", 3)
    with contextlib.closing(sqlite3.connect(tmp_path / "file")) as db:
        db.execute(f"UPDATE ldk_node_data SET {column} = ? WHERE key = 'a_0'", (name,))
        db.commit()
    with contextlib.closing(LdkDatabase(str(tmp_path / "file"))) as source:
        calls: list[Callable[[], object]] = [lambda: list(source.list_all_keys())]
        if column == "key":
            calls += [
                lambda: source.list("monitors", ""),
                lambda: source.list_paginated("monitors", ""),
                lambda: source.list_paginated_with_values("monitors", ""),
            ]
        for call in calls:
            with pytest.raises(CorruptStoreError, match="name") as caught:
                call()
            assert str(name) not in str(caught.value)
        assert source.list("", "") == ["manager"]


def test_a_name_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    node_file(tmp_path / "file", 3)
    with contextlib.closing(sqlite3.connect(tmp_path / "file")) as db:
        db.execute("UPDATE ldk_node_data SET key = CAST(x'ff' AS TEXT) WHERE key = 'a_0'")
        db.commit()
    with contextlib.closing(LdkDatabase(str(tmp_path / "file"))) as source:
        for call in (lambda: list(source.list_all_keys()), lambda: source.list("monitors", "")):
            with pytest.raises(CorruptStoreError, match="name"):
                call()


def test_a_file_that_cannot_be_looked_at_is_not_called_absent(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(StoreError) as caught:
        LdkDatabase(str(tmp_path / "circle"))
    assert not isinstance(caught.value, StoreNotFoundError)
    with pytest.raises(StoreError) as caught:
        LdkFiles(str(tmp_path / "circle"), "ldk-v2")
    assert not isinstance(caught.value, StoreNotFoundError)
