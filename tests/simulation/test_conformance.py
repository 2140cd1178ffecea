"""The engines' stores answer as the simulated one does, whose schedules are all walked."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.memory import MemoryStore
from simulation.played import Stage, Undoing
from support.engines import Engine

SCHEDULES = 100
ALWAYS = {
    *("read nothing", "read an entry", "put won", "put lost", "removal won", "crash", "sweep"),
    *("an outcome lost after it", "an outcome lost before it", "a renewal"),
}
ONLY_IN_TRANSACTIONS = {
    *("transaction committed", "transaction undone", "put undone"),
    *("joined, and committed", "joined, and undone"),
}
"""What the schedules must have met."""


@contextlib.contextmanager
def on_sqlite(store: Any, path: Path) -> Iterator[Any]:
    """Join a transaction of a caller's own, who commits even if what was joined is undone."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        try:
            with store.join(connection, lock_timeout=10) as joined:
                yield joined
        finally:
            connection.execute("COMMIT")


@contextlib.contextmanager
def on_postgresql(store: Any) -> Iterator[Any]:
    """Do as :func:`on_sqlite`."""
    import psycopg

    from support.shared_postgres import shared_server

    with psycopg.connect(shared_server().url) as connection:
        connection.execute("SELECT 1")  # begins a transaction
        try:
            with store.join(connection, lock_timeout=10) as joined:
                yield joined
        finally:
            connection.commit()


def test_a_real_store_answers_as_the_simulated_one(
    engine: Engine, tell: Callable[[str], None]
) -> None:
    def restarted(store: Any) -> Any:
        if engine.durable:
            store.close()
        return engine.open()

    joining: Any = {"sqlite": partial(on_sqlite, path=engine.path), "postgresql": on_postgresql}
    stage = Stage(
        {process: engine.open() for process in range(3)},
        restarted,
        engine.transactional,
        joining.get(engine.name),
    )
    stage.play(SCHEDULES)
    tell(f"{SCHEDULES} schedules, {stage.met.total():,} steps")
    assert stage.met.keys() == ALWAYS | (ONLY_IN_TRANSACTIONS if engine.transactional else set())


def in_memory(store: MemoryStore) -> Stage:
    return Stage(dict.fromkeys(range(3), store), restarted=lambda store: store)


class LoserWrites(MemoryStore):
    """A check-and-put that tells what it found, and puts in any case."""

    def check_and_put(
        self, *address: str, expected: Any, value: Any, expires_at: Any = None
    ) -> Any:
        put = super().check_and_put
        found = put(*address, expected=expected, value=value, expires_at=expires_at)
        if found != expected:
            put(*address, expected=found, value=value, expires_at=expires_at)
        return found


class WinnerIsNotTold(MemoryStore):
    """A check-and-put whose loser is told that nothing was there."""

    def check_and_put(self, *address: str, **change: Any) -> Any:
        found = super().check_and_put(*address, **change)
        return found if found == change["expected"] else None


class ForgetsExpiry(MemoryStore):
    """A replacement whose expiry is forgotten."""

    def check_and_put(
        self, *address: str, expected: Any, value: Any, expires_at: Any = None
    ) -> Any:
        kept = expires_at if expected is None else None
        return super().check_and_put(*address, expected=expected, value=value, expires_at=kept)


class SweepsEverything(MemoryStore):
    """A sweep that does not look at the time."""

    def sweep(self, primary_namespace: str, now: int, limit: int) -> Any:
        return super().sweep(primary_namespace, 2**62, limit)


class SweepsLate(MemoryStore):
    """A sweep that leaves what is due in this very millisecond."""

    def sweep(self, primary_namespace: str, now: int, limit: int) -> Any:
        return super().sweep(primary_namespace, now - 1, limit)


class CommitsAnyway(MemoryStore):
    """A transaction that keeps what it should undo."""

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        failed = None
        with super().transaction() as inner:
            try:
                yield inner
            except Undoing as error:
                failed = error
        if failed is not None:
            raise failed


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        (LoserWrites, "another entry, or expiry, is there"),
        (WinnerIsNotTold, "a check-and-put found another entry"),
        (ForgetsExpiry, "another entry, or expiry, is there"),
        (SweepsEverything, "a sweep removed what was not due"),
        (SweepsLate, "a sweep left what was due"),
        (CommitsAnyway, "the entry is gone|another entry, or expiry, is there"),
    ],
)
def test_a_wrong_store_is_found(wrong: type[MemoryStore], seen: str) -> None:
    with wrong() as store, pytest.raises(AssertionError, match=seen):
        in_memory(store).play(SCHEDULES)
    with MemoryStore() as store:
        in_memory(store).play(SCHEDULES)
