"""What an administrator may set for a role: read-only, fewer rights, an isolation, a time limit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvreplay.errors import OutcomeUnknownError, StoreError, StoreUnavailableError
from kvreplay.testing.threads import Running, at_once
from support.postgres import Schema
from support.postgres_faults import Opener, held, rows_of
from support.waiting import until

pytestmark = pytest.mark.any_python

K = ("p", "s", "k")


def transaction(store: Any) -> None:
    with store.transaction() as held:
        held.write(*K, b"w")


CHANGES: dict[str, Callable[[Any], Any]] = {
    "write": lambda store: store.write(*K, b"w"),
    "remove": lambda store: store.remove(*K),
    "new": lambda store: store.check_and_put("p", "s", "new", expected=None, value=b"w"),
    "swap": lambda store: store.check_and_put(*K, expected=b"v", value=b"w"),
    "drop": lambda store: store.check_and_put(*K, expected=b"v", value=None),
    "sweep": lambda store: store.sweep("p", 10, 10),
    "transaction": transaction,
}


class Role:
    """A role that has a store, and what is set for it from its next connection on."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self.name = f"r_{schema.name}"
        self.url = schema.url.replace("postgres@", f"{self.name}@")
        self.execute("CREATE ROLE {role} LOGIN")
        self.execute("CREATE SCHEMA {schema} AUTHORIZATION {role}")

    def execute(self, statement: str) -> None:
        filled = statement.format(
            role=self.name,
            schema=self._schema.name,
            entries=f"{self._schema.name}.kvreplay_entries",
        )
        self._schema.server.execute(filled)

    def set(self, setting: str) -> None:
        self.execute(f"ALTER ROLE {{role}} SET {setting}")
        self.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = '{role}'"
        )

    def drop(self) -> None:
        self.execute("DROP OWNED BY {role} CASCADE")
        self.execute("DROP ROLE {role}")


@pytest.fixture
def role(schema: Schema) -> Iterator[Role]:
    role = Role(schema)
    yield role
    role.drop()


@pytest.fixture
def store(role: Role, opened: Opener) -> Any:
    store = opened(role.url, lock_timeout="2s")
    store.write(*K, b"v")
    store.check_and_put("p", "s", "due", expected=None, value=b"v", expires_at=5)
    return store


UNCHANGED = {"k": b"v", "due": b"v"}


@pytest.mark.parametrize("change", CHANGES)
def test_a_role_that_only_reads_by_default(
    schema: Schema, role: Role, store: Any, change: str
) -> None:
    role.set("default_transaction_read_only = on")
    assert store.read(*K) == b"v"
    with pytest.raises(StoreUnavailableError, match="only reads.*nothing was changed"):
        CHANGES[change](store)
    assert rows_of(schema) == UNCHANGED
    role.set("default_transaction_read_only = off")
    CHANGES[change](store)
    assert rows_of(schema) != UNCHANGED


@pytest.mark.parametrize("change", CHANGES)
def test_a_role_without_the_right(schema: Schema, role: Role, store: Any, change: str) -> None:
    role.execute("REVOKE INSERT, UPDATE, DELETE ON {entries} FROM {role}")
    assert store.read(*K) == b"v"
    with pytest.raises(StoreError, match="permission denied.*nothing was changed") as raised:
        CHANGES[change](store)
    assert type(raised.value) is StoreError
    assert rows_of(schema) == UNCHANGED
    role.execute("GRANT INSERT, UPDATE, DELETE ON {entries} TO {role}")
    CHANGES[change](store)
    assert rows_of(schema) != UNCHANGED


@pytest.mark.parametrize("change", CHANGES)
def test_a_time_limit_for_statements(schema: Schema, role: Role, store: Any, change: str) -> None:
    role.set("statement_timeout = '100ms'")
    if change == "sweep":  # it waits for nobody
        assert CHANGES[change](store).removed == 1
        return
    lock = f"LOCK TABLE {schema.name}.kvreplay_entries"
    with (
        held(schema.server, lock),
        pytest.raises(StoreUnavailableError, match="statement timeout.*nothing was changed"),
    ):
        CHANGES[change](store)
    assert rows_of(schema) == UNCHANGED
    CHANGES[change](store)
    assert rows_of(schema) != UNCHANGED


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_stricter_isolation(schema: Schema, role: Role, store: Any, level: str) -> None:
    """What the server undoes in favour of another is made again, and nothing is swapped out twice."""
    role.set(f"default_transaction_isolation = '{level}'")
    store.write("p", "s", "n", b"0")

    def count_up() -> list[bytes]:
        swapped = list[bytes]()
        seen = store.read("p", "s", "n")
        while len(swapped) < 25:
            found = store.check_and_put("p", "s", "n", expected=seen, value=b"%d" % (int(seen) + 1))
            if found == seen:
                swapped.append(seen)
                seen = b"%d" % (int(seen) + 1)
            else:
                seen = found
        return swapped

    swapped = itertools.chain(*at_once(*[count_up] * 4))
    assert sorted(swapped, key=int) == [b"%d" % n for n in range(100)]
    assert rows_of(schema)["n"] == b"100"


@pytest.mark.parametrize(
    ("end", "change"),
    [
        *(("cancelled", each) for each in CHANGES if each != "sweep"),
        *(("given up", each) for each in ("swap", "transaction")),
    ],
)
def test_a_standby_that_never_comes(
    schema: Schema, role: Role, opened: Opener, change: str, end: str
) -> None:
    """However the wait for it ends: the change may be there, and here it is."""
    server = schema.server
    reply = "60s" if end == "cancelled" else "0.5s"
    store = opened(role.url, lock_timeout="0.5s", reply_timeout=reply)
    store.write(*K, b"v")
    waits = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = %s"
    server.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    server.execute("SELECT pg_reload_conf()")
    try:
        until(lambda: server.execute("SHOW synchronous_standby_names") == [("nobody",)])
        changing = Running(lambda: CHANGES[change](store))
        until(lambda: server.execute(waits, role.name) or changing.over)
        assert not changing.over
        if end == "cancelled":
            server.execute(f"SELECT pg_cancel_backend(pid) FROM ({waits}) AS waits", role.name)
        said = "standby was broken off" if end == "cancelled" else "did not answer in time"
        with pytest.raises(OutcomeUnknownError, match=said):
            changing.result()
    finally:
        server.execute("ALTER SYSTEM RESET synchronous_standby_names")
        server.execute("SELECT pg_reload_conf()")
    until(lambda: rows_of(schema) != {"k": b"v"})
    store.write(*K, b"later")
    assert store.read(*K) == b"later"
