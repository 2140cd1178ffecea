"""LDK's own folder and ldk-node's database as sources: each is a store that is only read."""

from __future__ import annotations

import contextlib
import sqlite3
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


def test_a_folder_in_the_place_of_an_entry_is_no_entry(tmp_path: Path) -> None:
    ldk_files(tmp_path / "root", "ldk-v2")
    (tmp_path / "root" / "monitors" / "[empty]" / "folder").mkdir()
    with contextlib.closing(LdkFiles(str(tmp_path / "root"), "ldk-v2")) as source:
        with pytest.raises(KeyNotFoundError):
            source.read("monitors", "", "folder")
        with pytest.raises(CorruptStoreError, match="folder"):
            source.list("monitors", "")
