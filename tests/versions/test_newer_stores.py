"""A store of a newer format, as only a later kvreplay makes it, is refused, and nothing of it is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import lmdb
import pytest

from kvreplay import CorruptStoreError, migrate
from kvreplay.backends.memory import MemoryStore
from support.engines import Engine
from support.migrations import content
from versions.kept import Version, schema_of


def lmdb_marker(engine: Engine) -> None:
    _replace(engine.path / "kvreplay.format", b"kvreplay lmdb 2\n", b"kvreplay lmdb 3\n")


def lmdb_meta(engine: Engine) -> None:
    with closing(lmdb.open(str(engine.path), max_dbs=8, lib_version=0)) as env:
        meta = env.open_db(b"meta", create=False)
        with env.begin(write=True) as txn:
            assert txn.replace(b"format", b"3", db=meta) == b"2"


def sqlite_meta(engine: Engine) -> None:
    _in_sqlite(engine.path, "UPDATE kvreplay_meta SET value = 2 WHERE name = 'format'")


def sqlite_node(engine: Engine) -> None:
    _in_sqlite(engine.path, "PRAGMA user_version = 4")


def filesystem(engine: Engine) -> None:
    marker = engine.path.with_name(f"{engine.path.name}.kvreplay") / "format"
    _replace(marker, b"kvreplay filesystem 1 ", b"kvreplay filesystem 2 ")


def postgresql(engine: Engine) -> None:
    _in_postgresql(engine, "UPDATE {}.kvreplay_meta SET value = '2' WHERE name = 'format'")


NEWER = [
    pytest.param("lmdb", lmdb_marker, id="lmdb, its marker"),
    pytest.param("lmdb", lmdb_meta, id="lmdb, in its database"),
    pytest.param("sqlite", sqlite_meta, id="sqlite"),
    pytest.param("sqlite", sqlite_node, id="sqlite, the table of ldk-node"),
    pytest.param("filesystem", filesystem, id="filesystem"),
    pytest.param("postgresql", postgresql, id="postgresql", marks=pytest.mark.any_python),
]


def _replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def _in_sqlite(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)


def _in_postgresql(engine: Engine, statement: str) -> list[tuple[object, ...]]:
    from support.shared_postgres import shared_server

    assert engine.server is not None
    return shared_server().execute(statement.format(schema_of(engine.server)))


def all_of(engine: Engine) -> object:
    """Everything that a store is made of."""
    if engine.server is not None:
        tables = "kvreplay_entries", "kvreplay_meta"
        return [
            _in_postgresql(engine, f"SELECT * FROM {{}}.{each} ORDER BY 1, 2") for each in tables
        ]
    return {path: path.read_bytes() for path in engine.path.parent.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "make_newer"), NEWER)
def test_a_newer_store_is_refused_and_not_changed(
    name: str,
    make_newer: Callable[[Engine], None],
    keep: Callable[[str], Engine],
    held: Version,
) -> None:
    engine = keep(name)
    with engine.open() as store:  # as it is, it is welcome
        assert content(store) == held.content
    make_newer(engine)
    before = all_of(engine)
    for create in (True, False):
        with pytest.raises(CorruptStoreError, match="nothing was changed") as caught:
            engine.open(create=create)
        assert "another format" in str(caught.value) or "version" in str(caught.value)
    with MemoryStore() as other:
        for source, destination in ((engine.url, other), (other, engine.url)):
            with pytest.raises(CorruptStoreError):
                migrate(source, destination)
        assert content(other) == {}
    assert all_of(engine) == before
