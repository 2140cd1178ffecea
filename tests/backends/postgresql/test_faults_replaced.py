"""The tables go, or others take their place, under a store that is open: it acknowledges nothing more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvreplay import open_store
from kvreplay.backends.postgresql import kept
from kvreplay.errors import CorruptStoreError
from support.postgres_faults import Opener, rows_of

pytestmark = pytest.mark.any_python

K = ("p", "s", "k")


def transaction(store: Any) -> None:
    with store.transaction() as held:
        held.write(*K, b"w")


CHANGES: dict[str, Callable[[Any], Any]] = {
    "write": lambda store: store.write(*K, b"w"),
    "remove": lambda store: store.remove(*K),
    "new": lambda store: store.check_and_put(*K, expected=None, value=b"w"),
    "swap": lambda store: store.check_and_put(*K, expected=b"v", value=b"w"),
    "drop": lambda store: store.check_and_put(*K, expected=b"v", value=None),
    "sweep": lambda store: store.sweep("p", 10, 10),
    "transaction": transaction,
}


@pytest.fixture
def store(postgres: Any, opened: Opener) -> Any:
    store = opened(postgres.url, lock_timeout="1s")
    store.write(*K, b"v")
    return store


@pytest.mark.parametrize("change", CHANGES)
def test_the_schema_is_dropped(postgres: Any, store: Any, change: str) -> None:
    postgres.server.execute(f"DROP SCHEMA {postgres.name} CASCADE")
    for call in (CHANGES[change], lambda store: store.read(*K)):
        with pytest.raises(CorruptStoreError, match="are gone.*nothing was changed"):
            call(store)
    open_store(postgres.url).close()  # an empty one, which is another store
    with pytest.raises(CorruptStoreError, match="another store"):
        CHANGES[change](store)
    assert rows_of(postgres) == {}


@pytest.mark.parametrize(
    ("connection", "change"), [*(("open", change) for change in CHANGES), ("new", "swap")]
)
def test_another_store_is_in_its_place(
    postgres: Any, store: Any, change: str, connection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if connection == "new":
        monkeypatch.setattr(kept, "_KEEP", 0.0)
    meta = f"{postgres.name}.kvreplay_meta"
    other = "00000000-0000-0000-0000-000000000000"
    ((own,),) = postgres.server.execute(f"SELECT value FROM {meta} WHERE name = 'id'")
    setting = f"UPDATE {meta} SET value = %s WHERE name = 'id'"
    postgres.server.execute(setting, other)
    if connection == "new":
        postgres.server.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
            " WHERE query LIKE %s AND pid <> pg_backend_pid()",
            f"%{postgres.name}%",
        )
    with pytest.raises(CorruptStoreError, match="another store"):
        CHANGES[change](store)
    assert rows_of(postgres) == {"k": b"v"}
    postgres.server.execute(setting, own)
    CHANGES[change](store)
    assert rows_of(postgres) != {"k": b"v"} or change in ("new", "sweep")


def test_tables_of_a_newer_version(postgres: Any, store: Any) -> None:
    meta = f"{postgres.name}.kvreplay_meta"
    postgres.server.execute(f"UPDATE {meta} SET value = '2' WHERE name = 'format'")
    with pytest.raises(CorruptStoreError, match="another version.*nothing was changed"):
        open_store(postgres.url)
    postgres.server.execute(f"UPDATE {meta} SET value = '1' WHERE name = 'format'")
    with open_store(postgres.url) as again:  # type: ignore[attr-defined]
        assert again.read(*K) == b"v"
