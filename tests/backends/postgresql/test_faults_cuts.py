"""The connection breaks at each byte of each trip, in both directions: no answer is ever wrong.

Each round has a key of its own, so that a change which comes to its end late disturbs no other round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import psycopg
import pytest

from kvreplay.backends.postgresql import PostgreSQLStore, links
from kvreplay.errors import (
    KeyNotFoundError,
    OutcomeUnknownError,
    StoreError,
    StoreUnavailableError,
)
from support.cutting_proxy import Connection, CuttingProxy, Direction
from support.postgres_faults import FACES, Opener, rows_of, until_idle
from support.waiting import until

pytestmark = pytest.mark.any_python

OLD, NEW = b"old", b"new"
PUTS = {"new": (None, NEW), "swap": (OLD, NEW), "drop": (OLD, None)}
LAST = 40  # bytes of a request that are cut one by one in any case: its end is what matters
EACH = [
    pytest.param(direction, 1, marks=pytest.mark.exhaustive)
    for direction in ("to client", "to server")
]
MOST = ("to server", 24)  # most of a request is the text of a statement
ONE_TRIP = pytest.mark.parametrize(("direction", "step"), [("to client", 1), MOST, EACH[1]])
TRIPS = pytest.mark.parametrize(("direction", "step"), [("to client", 4), MOST, *EACH])


@pytest.fixture
def proxy(postgres: Any) -> Iterator[CuttingProxy]:
    with CuttingProxy(f"{postgres.tcp_url}&application_name={postgres.name}") as proxy:
        yield proxy


@attrs.frozen
class Round:
    """One call, and what came of it."""

    key: str
    answer: Any = None
    error: Exception | None = None


def rounds(
    proxy: CuttingProxy,
    watcher: psycopg.Connection[Any],
    way: tuple[Direction, int],
    connect: Callable[[], int],
    call: Callable[[str], Any],
) -> list[Round]:
    """Make a call again and again, each time on a new connection, and cut that at another byte each time.

    Args:
        connect: returns the pid of the connection's backend.
    """
    direction, step = way

    def connected() -> Connection:
        """Not one of those that the pool may be making meanwhile."""
        port = "SELECT client_port FROM pg_stat_activity WHERE pid = %s"
        while True:
            ports = watcher.execute(port, [connect()]).fetchall()
            for each in proxy.connections:
                if each.is_open and (each.server_port,) in ports:
                    return each

    def passed(on: Connection) -> int:
        return on.passed.to_server if direction == "to server" else on.passed.to_client

    on = connected()
    before = passed(on)
    made = [Round("k0000", call("k0000"))]
    total = passed(on) - before
    for after in sorted({*range(0, total, step), *range(total - LAST, total + 1)}):
        on, cuts, key = connected(), proxy.cuts, f"k{len(made):04}"
        proxy.cut(direction, after=after, how="close" if after % 2 else "reset", only=on)
        try:
            made.append(Round(key, call(key)))
        except (StoreError, psycopg.Error) as error:
            made.append(Round(key, error=error))
        until(lambda on=on: not on.is_open)  # type: ignore[misc]
        assert proxy.cuts == cuts + 1
    connect()
    return made


def reading(store: Any, postgres: Any, watcher: psycopg.Connection[Any]) -> Callable[[], int]:
    """Read what is not there: the store works, and the next call takes the same connection."""
    last = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND query LIKE %s"
        " ORDER BY query_start DESC LIMIT 1"
    )

    def read() -> int:
        with pytest.raises(KeyNotFoundError):
            store.read("p", "s", "absent")
        ((pid,),) = watcher.execute(last, [postgres.name, "SELECT value FROM%"]).fetchall()
        return int(pid)

    return read


@pytest.fixture
def watcher(postgres: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.server.url, autocommit=True) as watcher:
        yield watcher


def prepare(postgres: Any, value: bytes | None) -> None:
    """Put a value under the key of each round."""
    if value is not None:
        postgres.server.execute(
            f"INSERT INTO {postgres.name}.kvreplay_entries"
            " (primary_namespace, secondary_namespace, key, value)"
            " SELECT 'p', 's', 'k' || lpad(n::text, 4, '0'), %s FROM generate_series(0, 3000) AS n",
            value,
        )


@ONE_TRIP
def test_a_read(
    postgres: Any,
    proxy: CuttingProxy,
    watcher: Any,
    opened: Opener,
    direction: Direction,
    step: int,
) -> None:
    store = opened(proxy.url)
    prepare(postgres, OLD)
    made = rounds(
        *(proxy, watcher, (direction, step), reading(store, postgres, watcher)),
        lambda key: store.read("p", "s", key),
    )
    assert {each.answer for each in made} == {OLD}


@ONE_TRIP
@pytest.mark.parametrize("put", PUTS)
def test_a_check_and_put(
    postgres: Any,
    proxy: CuttingProxy,
    watcher: Any,
    opened: Opener,
    direction: Direction,
    step: int,
    put: str,
) -> None:
    store = opened(proxy.url)
    expected, value = PUTS[put]
    prepare(postgres, expected)
    made = rounds(
        *(proxy, watcher, (direction, step), reading(store, postgres, watcher)),
        lambda key: store.check_and_put("p", "s", key, expected=expected, value=value),
    )
    until_idle(postgres)
    there = rows_of(postgres)
    unknown = set()
    for each in made:
        has_happened = there.get(each.key) == value
        assert has_happened or there.get(each.key) == expected
        if each.error is None:
            assert each.answer == expected and has_happened
        else:
            assert isinstance(each.error, OutcomeUnknownError)
            unknown.add(has_happened)
    assert unknown >= {direction == "to client"}


@TRIPS
def test_a_transaction(
    postgres: Any,
    proxy: CuttingProxy,
    watcher: Any,
    opened: Opener,
    direction: Direction,
    step: int,
) -> None:
    """Both of its changes, or none: and it is unknown which only once the commit was asked for."""
    store = opened(proxy.url)
    prepare(postgres, OLD)

    def change(key: str) -> None:
        with store.transaction() as transaction:
            transaction.write("p", "s", key, NEW)
            transaction.write("p", "s", f"{key}-too", NEW)

    made = rounds(proxy, watcher, (direction, step), reading(store, postgres, watcher), change)
    until_idle(postgres)
    there = rows_of(postgres)
    kinds = set()
    for each in made:
        has_happened = there.get(each.key) == NEW
        assert (f"{each.key}-too" in there) == has_happened
        kinds.add((type(each.error), has_happened))
    assert kinds >= {
        (type(None), True),
        (StoreUnavailableError, False),
        (OutcomeUnknownError, True),
    }
    assert kinds <= {
        *((type(None), True), (StoreUnavailableError, False)),
        *((OutcomeUnknownError, True), (OutcomeUnknownError, False)),
    }


class Caller:
    """Who commits, on a connection of its own, what the store changed in the caller's transaction."""

    def __init__(self, store: Any, url: str, runner: asyncio.Runner | None) -> None:
        self._store, self._url, self._runner = store, url, runner
        self._connection: Any = None
        self.committing = set[str]()
        """The keys for which it has asked the server to commit."""

    def connect(self) -> int:
        """Return the pid of its backend."""
        self.close()
        if self._runner is None:
            self._connection = psycopg.connect(self._url)
        else:
            self._connection = self._runner.run(psycopg.AsyncConnection.connect(self._url))
        return int(self._connection.pgconn.backend_pid)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.pgconn.finish()

    def change(self, key: str) -> None:
        if self._runner is not None:
            self._runner.run(self._change(key))
            return
        with self._store.join(self._connection, lock_timeout=30) as joined:
            joined.check_and_put("p", "s", key, expected=OLD, value=NEW)
        self.committing.add(key)
        self._connection.commit()

    async def _change(self, key: str) -> None:
        async with self._store.awaited.join(self._connection, lock_timeout=30) as joined:
            await joined.check_and_put("p", "s", key, expected=OLD, value=NEW)
        self.committing.add(key)
        await self._connection.commit()


@TRIPS
@pytest.mark.parametrize("face", FACES)
def test_a_joined_transaction(
    postgres: Any, proxy: CuttingProxy, watcher: Any, face: str, direction: Direction, step: int
) -> None:
    """The commit is the caller's, and so is its doubt. Before it, nothing has happened."""
    url = proxy.url.replace(f"&schema={postgres.name}", "")
    with PostgreSQLStore(url, schema=postgres.name) as store, asyncio.Runner() as runner:
        prepare(postgres, OLD)
        caller = Caller(store, url, runner if face == "awaited" else None)
        made = rounds(proxy, watcher, (direction, step), caller.connect, caller.change)
        caller.close()
    until_idle(postgres)
    there = rows_of(postgres)
    kinds = set()
    for each in made:
        has_happened = there[each.key] == NEW
        if each.error is None:
            assert has_happened
        elif each.key in caller.committing:
            kinds.add(has_happened)
            assert isinstance(each.error, psycopg.OperationalError)  # the caller's own
        else:
            assert isinstance(each.error, StoreError)
            assert not has_happened
    assert kinds >= {direction == "to client"}


@pytest.mark.parametrize("put", PUTS)
def test_the_driver_gives_a_connection_up_before_it_is_closed(
    postgres: Any, opened: Opener, put: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg does so if it is told of an error a moment before the end: too rare to wait for it."""
    store = opened(postgres.url)
    expected, value = PUTS[put]
    prepare(postgres, expected)
    assert store.list("p", "s") == [] or put != "new"
    wait, wait_async = links.waiting.wait, links.waiting.wait_async

    def given_up(*args: Any) -> Any:
        wait(*args)
        raise psycopg.OperationalError("connection socket closed")

    async def given_up_async(*args: Any) -> Any:
        await wait_async(*args)
        raise psycopg.OperationalError("connection socket closed")

    with monkeypatch.context() as patched, pytest.raises(OutcomeUnknownError):
        patched.setattr(links.waiting, "wait", given_up)
        patched.setattr(links.waiting, "wait_async", given_up_async)
        store.check_and_put("p", "s", "k0000", expected=expected, value=value)
    assert rows_of(postgres).get("k0000") == value
    assert store.check_and_put("p", "s", "k0000", expected=value, value=expected) == value
