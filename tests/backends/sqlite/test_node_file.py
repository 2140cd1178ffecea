"""A file of ldk-node's own: it opens, is used, and is still what ldk-node expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.errors import CorruptStoreError
from kvreplay.store import Entry
from kvreplay.testing.entries import content, put
from support.sqlite_stores import NODE_INDEX, NODE_TABLE, file_of_a_node, raw


@pytest.fixture
def node_file(root: Path) -> Path:
    return file_of_a_node(root)


def schema_of(connection: Any) -> dict[str, str]:
    return dict(
        connection.execute("SELECT name, sql FROM sqlite_master WHERE tbl_name = 'ldk_node_data'")
    )


def test_it_opens_and_shows_what_the_node_wrote(node_file: Path) -> None:
    with SQLiteStore(node_file, create=False) as store:
        assert content(store) == {
            (primary, secondary, key): key.encode() * 3
            for primary, secondary, key in [
                ("", "", "manager"),
                ("", "", "graph"),
                ("monitors", "", "b_0"),
                ("monitors", "", "a_1"),
            ]
        }
        assert list(store.list_paginated("", "").keys) == ["graph", "manager"]
        assert list(store.list_paginated("monitors", "").keys) == ["a_1", "b_0"]
        assert store.read_entry("", "", "graph") == Entry(b"graphgraphgraph", None)


def test_its_node_finds_its_own_table_again(node_file: Path) -> None:
    """With what was written here, and creation numbers that go on where the node's ended."""
    with raw(node_file) as node:
        before = schema_of(node)
    with SQLiteStore(node_file) as store:
        store.write("monitors", "", "a_1", b"updated")
        store.write("monitors", "", "new", b"v")
        put(store, "record", b"v", 5)
        store.remove("", "", "graph")
    with raw(node_file) as node:
        assert schema_of(node) == before
        assert before["ldk_node_data"] == NODE_TABLE
        assert before["idx_ldk_node_data_paginated"] == NODE_INDEX
        assert node.execute("PRAGMA user_version").fetchone() == (3,)
        assert node.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = node.execute(
            "SELECT primary_namespace, key, value, sort_order FROM ldk_node_data ORDER BY 4"
        ).fetchall()
        # What ldk-node itself does: an upsert that keeps the number, and a new one from MAX + 1.
        node.execute(
            "INSERT INTO ldk_node_data VALUES ('', '', 'manager', x'01', 9) ON CONFLICT"
            " (primary_namespace, secondary_namespace, key) DO UPDATE SET value = excluded.value"
        )
        node.execute(
            "INSERT INTO ldk_node_data SELECT '', '', 'peers', x'02', max(sort_order) + 1"
            " FROM ldk_node_data"
        )
    assert rows == [
        ("", "manager", b"manager" * 3, 1),
        ("monitors", "b_0", b"b_0" * 3, 2),
        ("monitors", "a_1", b"updated", 3),
        ("monitors", "new", b"v", 5),
        ("p", "record", b"v", 6),
    ]
    with SQLiteStore(node_file) as store:
        store.write("", "", "last", b"v")
        assert list(store.list_paginated("", "").keys) == ["last", "peers", "manager"]
        assert store.read("", "", "manager") == b"\1"
        assert store.sweep("p", 5, 5).removed == 1


def test_a_table_made_here_is_the_nodes_too(root: Path) -> None:
    """The words of the statements are the same, whatever the blanks between them."""
    SQLiteStore(root).close()
    with raw(root) as node:
        made = {name: sql and " ".join(sql.split()) for name, sql in schema_of(node).items()}
        assert made["ldk_node_data"] == " ".join(NODE_TABLE.split())
        assert made["idx_ldk_node_data_paginated"] == NODE_INDEX
        assert node.execute("PRAGMA user_version").fetchone() == (3,)


def test_an_expiry_does_not_pass_to_what_the_node_makes_anew(root: Path) -> None:
    with SQLiteStore(root) as store:
        put(store, "k", b"v", 5)
        put(store, "due", b"v", 5)
    with raw(root) as node:
        node.execute("DELETE FROM ldk_node_data WHERE key = 'k'")
        node.execute("INSERT INTO ldk_node_data VALUES ('p', 's', 'k', x'01', 77)")
    with SQLiteStore(root) as store:
        assert store.read_entry("p", "s", "k") == Entry(b"\1", None)
        assert store.sweep("p", 5, 5).removed == 1
        assert store.list("p", "s") == ["k"]
        assert store.sweep("p", 5, 5).visited == 0


@pytest.mark.parametrize("version", [0, 1, 2, 4, 99])
def test_another_version_is_refused_by_its_number(node_file: Path, version: int) -> None:
    with raw(node_file) as node:
        node.execute(f"PRAGMA user_version = {version}")
        before = node.execute("SELECT * FROM sqlite_master").fetchall()
    with pytest.raises(CorruptStoreError, match=f"version {version}"):
        SQLiteStore(node_file)
    with raw(node_file) as node:
        assert node.execute("SELECT * FROM sqlite_master").fetchall() == before
        assert node.execute("PRAGMA journal_mode").fetchone() == ("delete",)


VERSION_1 = """CREATE TABLE ldk_node_data (
    namespace TEXT NOT NULL,
    key TEXT NOT NULL CHECK (key <> ''),
    value BLOB,
    PRIMARY KEY ( namespace, key )
)"""
VERSION_2 = """CREATE TABLE ldk_node_data (
    primary_namespace TEXT NOT NULL,
    secondary_namespace TEXT DEFAULT "" NOT NULL,
    key TEXT NOT NULL CHECK (key <> ''),
    value BLOB,
    PRIMARY KEY ( primary_namespace, secondary_namespace, key )
)"""


@pytest.mark.parametrize(("version", "table"), [(1, VERSION_1), (2, VERSION_2)])
def test_an_older_table_is_refused_until_a_node_has_migrated_it(
    root: Path, version: int, table: str
) -> None:
    """The error says so. The file stays as it was, byte for byte, and nothing is made beside it."""
    names = "namespace" if version == 1 else "primary_namespace"
    with raw(root) as node:
        node.execute(table)
        node.execute(
            f"INSERT INTO ldk_node_data ({names}, key, value) VALUES ('monitors', 'a_1', x'07')"
        )
        node.execute(f"PRAGMA user_version = {version}")
    before = root.read_bytes()
    for create in (True, False):
        with pytest.raises(CorruptStoreError, match=f"version {version} .*ldk-node open it once"):
            SQLiteStore(root, create=create)
    assert root.read_bytes() == before
    assert [each.name for each in root.parent.iterdir()] == [root.name]
    with raw(root) as node:  # what a present ldk-node does when it opens the file
        node.execute("ALTER TABLE ldk_node_data RENAME TO old")
        node.execute(NODE_TABLE)
        node.execute(
            "INSERT INTO ldk_node_data (primary_namespace, key, value, sort_order)"
            f" SELECT {names}, key, value, 1 FROM old"
        )
        node.execute("DROP TABLE old")
        node.execute(NODE_INDEX)
        node.execute("PRAGMA user_version = 3")
    with SQLiteStore(root, create=False) as store:
        assert content(store) == {("monitors", "", "a_1"): b"\7"}
        assert list(store.list_paginated("monitors", "").keys) == ["a_1"]


def test_a_table_or_an_index_that_is_another(node_file: Path) -> None:
    with raw(node_file) as node:
        node.execute("ALTER TABLE ldk_node_data ADD COLUMN more TEXT")
    with pytest.raises(CorruptStoreError, match="another table"):
        SQLiteStore(node_file)
    with raw(node_file) as node:
        node.execute("ALTER TABLE ldk_node_data DROP COLUMN more")
        node.execute("DROP INDEX idx_ldk_node_data_paginated")
    with pytest.raises(CorruptStoreError, match="lost the index"):
        SQLiteStore(node_file)


def test_a_value_that_is_no_blob(node_file: Path) -> None:
    with raw(node_file) as node:
        node.execute("UPDATE ldk_node_data SET value = 'text' WHERE key = 'graph'")
    with SQLiteStore(node_file) as store:
        for call in (
            lambda: store.read("", "", "graph"),
            lambda: store.read_entry("", "", "graph"),
            lambda: store.list_paginated_with_values("", ""),
        ):
            with pytest.raises(CorruptStoreError, match="holds a str"):
                call()
        assert store.read("", "", "manager") == b"manager" * 3
