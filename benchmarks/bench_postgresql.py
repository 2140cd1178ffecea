"""What does kvreplay add to PostgreSQL's own statements?

Each row is measured in turn with the same statements through psycopg alone, on a server of this
machine, which shares its cores. So the server's own work is a large part of each. Its files are in
memory.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.types.numeric import Int8

from benchmarks.conftest import Sizes
from benchmarks.measure import Bound, calling, in_threads, in_turn
from benchmarks.workload import FAR, NAMESPACE, PARAMS, RESPONSE, SCOPE, never, request_id, respond
from kvreplay import AsyncReplay, Replay, open_store
from kvreplay.backends.postgresql import PostgreSQLStore
from kvreplay.backends.postgresql.statements import Statements

TASKS = 1000
CONNECTIONS = 10
SCHEMA = "bench"

Note = Callable[..., None]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose files are in memory."""
    from support.postgres import Server

    with Server(18, settings={"max_connections": 100}) as server:
        yield server.url


@pytest.fixture
def store(url: str) -> Iterator[PostgreSQLStore]:
    where = f"{url}&schema={SCHEMA}&pool_size={CONNECTIONS}"
    with open_store(where) as store:
        assert isinstance(store, PostgreSQLStore)
        yield store


@pytest.fixture
def bare(url: str) -> Iterator[psycopg.Connection[Any]]:
    """One connection of psycopg, without anything between."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def pool(url: str) -> Iterator[psycopg_pool.ConnectionPool[Any]]:
    with psycopg_pool.ConnectionPool(
        url, min_size=1, max_size=CONNECTIONS, open=True, kwargs={"autocommit": True}
    ) as pool:
        pool.wait()
        yield pool


class Bare:
    """The engine's own statements, through psycopg alone."""

    def __init__(self, store: PostgreSQLStore) -> None:
        self.statements = Statements(SCHEMA)
        self.turn, self.id = store._place.turn, store._place.id
        self.record = b"c" * 900

    def address(self, key: str) -> dict[str, Any]:
        return {"p": NAMESPACE, "s": SCOPE, "k": key}

    def change(self, key: str) -> dict[str, Any]:
        return {
            **self.address(key),
            "wait": "10000ms",
            "after": "0",
            "turn": self.turn,
            "commit": "on",
            "id": self.id,
        }

    def steps(self, key: str) -> list[tuple[str, dict[str, Any]]]:
        """What a first execution says: read, claim, answer."""
        claim = {"value": self.record[:600], "expires_at": None}
        answer = {"expected": claim["value"], "value": self.record, "expires_at": Int8(FAR)}
        return [
            (self.statements.read.text, self.address(key)),
            (self.statements.put_new.text, {**self.change(key), **claim}),
            (self.statements.swap.text, {**self.change(key), **answer}),
        ]


def test_hit(
    benchmark: Any,
    note: Note,
    sizes: Sizes,
    store: PostgreSQLStore,
    bare: psycopg.Connection[Any],
    pool: psycopg_pool.ConnectionPool[Any],
) -> None:
    replay, bound = Replay(store, NAMESPACE, ttl=3600), Bound()
    key = (SCOPE, request_id(1))
    replay.execute(key, PARAMS, respond)
    text, address = Bare(store).steps(key[1])[0]

    def pooled() -> object:
        with pool.connection() as connection:
            return connection.execute(text, address, binary=True).fetchone()

    own, alone, through_pool = in_turn(
        benchmark,
        bound.of(calling(lambda: replay.execute(key, PARAMS, never), sizes.calls)),
        calling(lambda: bare.execute(text, address, binary=True).fetchone(), sizes.calls),
        calling(pooled, sizes.calls),
        rounds=sizes.rounds,
    )
    note(
        "postgresql hit/Replay",
        {
            "µs": own * 1e6,
            "bare SELECT µs": alone * 1e6,
            "pooled µs": through_pool * 1e6,
            "x bare": own / alone,
            "x pooled": own / through_pool,
            "bound by": str(bound),
        },
    )


def test_first_execution(
    benchmark: Any,
    note: Note,
    sizes: Sizes,
    store: PostgreSQLStore,
    bare: psycopg.Connection[Any],
) -> None:
    replay, bound, numbers = Replay(store, NAMESPACE, ttl=3600), Bound(), count(10)
    said = Bare(store)

    def alone() -> None:
        for text, given in said.steps(f"bare-{request_id(next(numbers))}"):
            bare.execute(text, given, binary=True).fetchall()

    def first() -> object:
        return replay.execute((SCOPE, request_id(next(numbers))), PARAMS, respond)

    calls = min(sizes.calls, 100)
    own, theirs = in_turn(
        benchmark, bound.of(calling(first, calls)), calling(alone, calls), rounds=sizes.rounds
    )
    note(
        "postgresql first/one thread",
        {"µs": own * 1e6, "bare µs": theirs * 1e6, "x bare": own / theirs, "bound by": str(bound)},
    )


@pytest.mark.parametrize("threads", [1, 4, CONNECTIONS])
def test_threads(
    benchmark: Any, note: Note, sizes: Sizes, store: PostgreSQLStore, threads: int
) -> None:
    """How far one process goes: first executions and replays a second."""
    replay, numbers = Replay(store, NAMESPACE, ttl=3600), count(10**6 * (1 + threads))
    key = (SCOPE, request_id(1))
    replay.execute(key, PARAMS, respond)

    def first() -> object:
        return replay.execute((SCOPE, request_id(next(numbers))), PARAMS, respond)

    own, hits = in_turn(
        benchmark,
        lambda: in_threads(threads, sizes.seconds, first),
        lambda: in_threads(threads, sizes.seconds, lambda: replay.execute(key, PARAMS, never)),
        rounds=min(sizes.rounds, 5),
    )
    note(
        f"postgresql threads/{threads}",
        {"first executions a second": own, "replays a second": hits},
    )


def test_tasks(benchmark: Any, note: Note, sizes: Sizes, store: PostgreSQLStore, url: str) -> None:
    tasks = TASKS if sizes.rounds > 1 else 50
    with asyncio.Runner() as runner:
        runner.run(_tasks(benchmark, note, sizes, store, url, tasks, runner))


async def _tasks(
    benchmark: Any,
    note: Note,
    sizes: Sizes,
    store: PostgreSQLStore,
    url: str,
    tasks: int,
    runner: asyncio.Runner,
) -> None:
    said, numbers = Bare(store), count(10**9)
    replay = AsyncReplay(store, NAMESPACE, ttl=3600, renew=False)
    most = threading.active_count()

    async def respond_soon() -> dict[str, str]:
        return RESPONSE

    async def first(pool: Any) -> object:
        return await replay.execute((SCOPE, request_id(next(numbers))), PARAMS, respond_soon)

    async def alone(pool: Any) -> None:
        for text, given in said.steps(f"bare-{request_id(next(numbers))}"):
            async with pool.connection() as connection:
                await (await connection.execute(text, given, binary=True)).fetchall()

    async def round_of(ask: Callable[[Any], Awaitable[object]], pool: Any) -> float:
        start = time.perf_counter()
        await asyncio.gather(*(ask(pool) for _ in range(tasks)))
        return tasks / (time.perf_counter() - start)

    benchmark.pedantic(lambda: None, rounds=1)  # its rounds are made below, on the loop
    figures: dict[str, list[float]] = {"own": [], "bare": []}
    async with psycopg_pool.AsyncConnectionPool(
        url, min_size=CONNECTIONS, max_size=CONNECTIONS, open=False, kwargs={"autocommit": True}
    ) as pool:
        await pool.wait()
        for turn in range(1 + min(sizes.rounds, 9)):
            for name, ask in (("own", first), ("bare", alone)):
                figure = await round_of(ask, pool)
                if turn:  # the first warms up
                    figures[name].append(figure)
    more = threading.active_count() - most
    own, bare = (sorted(each)[len(each) // 2] for each in figures.values())
    note(
        f"postgresql tasks/AsyncReplay, {tasks} tasks",
        {
            "executions a second": own,
            "bare psycopg": bare,
            "x bare psycopg": own / bare,
            "threads more": more,
        },
    )


def test_what_is_written(
    benchmark: Any, note: Note, sizes: Sizes, store: PostgreSQLStore, bare: psycopg.Connection[Any]
) -> None:
    """Bytes in the tables and in the log, and flushes, for each record."""
    replay, executions = Replay(store, NAMESPACE, ttl=3600), 2000 if sizes.rounds > 1 else 50
    numbers = count(2 * 10**9)

    def scalar(text: str) -> Any:
        row = bare.execute(text).fetchone()
        assert row is not None
        return row[0]

    size = f"SELECT pg_total_relation_size('{SCHEMA}.kvreplay_entries')"
    wal = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
    flushes = "SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal'"
    bare.execute(f"VACUUM FULL {SCHEMA}.kvreplay_entries")
    bare.execute("CHECKPOINT")
    before = int(scalar(size)), int(scalar(wal)), int(scalar(flushes) or 0)

    def run() -> None:
        for _ in range(executions):
            replay.execute((SCOPE, request_id(next(numbers))), PARAMS, respond)

    benchmark.pedantic(run, rounds=1)
    after = int(scalar(size)), int(scalar(wal)), int(scalar(flushes) or 0)
    grown, logged, flushed = (
        (late - early) / executions for late, early in zip(after, before, strict=True)
    )
    bare.execute(f"VACUUM FULL {SCHEMA}.kvreplay_entries")
    whole = int(scalar(size)) / int(scalar(f"SELECT count(*) FROM {SCHEMA}.kvreplay_entries"))
    note(
        "postgresql written/a record",
        {
            "bytes in the tables": grown,
            "after VACUUM FULL": whole,
            "bytes in the log": logged,
            "flushes": flushed,
        },
    )
