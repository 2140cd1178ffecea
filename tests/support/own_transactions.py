"""A caller's own transaction on PostgreSQL, by each library that it can be made with: one blocking face for all.

A handler is written once, as a coroutine function of this face: with a blocking library its coroutine never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import psycopg

from kvreplay import AsyncReplay, Replay

__all__ = ["ASYNC_KINDS", "KINDS", "Own", "Replays", "driver_error", "sqlalchemy_url"]

T = TypeVar("T")

KINDS = ("psycopg", "connection", "session", "psycopg async", "async connection", "async session")
"""psycopg's connections, and SQLAlchemy's connections and sessions."""
ASYNC_KINDS = KINDS[3:]


class Replays:
    """The same replay for blocking and for awaited calls."""

    def __init__(self, store: Any, name: str = "pay", **settings: Any) -> None:
        settings = {"ttl": 60, **settings}
        self.plain: Any = Replay(store, name, **settings)
        self.awaited: Any = AsyncReplay(store, name, **settings)


class Own:
    """One connection; its transaction begins with its first statement.

    Args:
        kind: one of ``KINDS``.
        url: libpq's.
        options: of ``psycopg.connect``, or of ``create_engine``.
    """

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self.kind = kind
        self._runner = asyncio.Runner() if kind in ASYNC_KINDS else None
        self._engine: Any = None
        self._drivers: list[Any] = []  # what SQLAlchemy has opened
        self.given: Any = self.run(self._open(url, options))
        """What the caller gives as ``connection=``."""

    async def _open(self, url: str, options: dict[str, Any]) -> Any:
        if self.kind == "psycopg":
            return psycopg.connect(url, **options)
        if self.kind == "psycopg async":
            return await psycopg.AsyncConnection.connect(url, **options)
        import sqlalchemy
        from sqlalchemy import event, orm
        from sqlalchemy.ext import asyncio as aio

        url = sqlalchemy_url(url)
        if self._runner is None:
            self._engine = sqlalchemy.create_engine(url, **options)
            event.listen(self._engine, "connect", self._note)
            if self.kind == "connection":
                return self._engine.connect()
            return orm.Session(self._engine)
        self._engine = aio.create_async_engine(url, **options)
        event.listen(self._engine.sync_engine, "connect", self._note)
        if self.kind == "async connection":
            return await self._engine.connect()
        return aio.AsyncSession(self._engine)

    def _note(self, _: object, record: Any) -> None:
        self._drivers.append(record.driver_connection)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, from outside of a handler."""
        if self._runner is not None:
            return self._runner.run(coroutine)
        try:
            coroutine.send(None)
        except StopIteration as end:
            value: T = end.value
            return value
        raise AssertionError("it waits")

    def joined(
        self,
        replays: Replays,
        handler: Callable[[Own], Awaitable[Any]],
        key: tuple[str, str] = ("payer", "payment-1"),
        params: Any = 1000,
        **options: Any,
    ) -> Any:
        """Make the request in this transaction; the handler is given this face."""

        def blocking(connection: Any) -> Any:
            assert connection is self.given
            return self.run(handler(self))  # type: ignore[arg-type]

        async def awaited(connection: Any) -> Any:
            assert connection is self.given
            return await handler(self)

        options["connection"] = self.given
        if self._runner is None:
            return replays.plain.execute_in_transaction(key, params, blocking, **options)
        return self.run(replays.awaited.execute_in_transaction(key, params, awaited, **options))

    # What a handler awaits, and the test calls by ``run``.

    async def ask(self, statement: str) -> list[tuple[Any, ...]]:
        """Make a statement, and return its rows."""
        if self.kind.startswith("psycopg"):
            cursor = psycopg.AsyncCursor if self._runner else psycopg.Cursor
            asked: Any = cursor(self.given, row_factory=psycopg.rows.tuple_row)
            await _done(asked.execute(statement))
            return list(await _done(asked.fetchall())) if asked.description else []
        from sqlalchemy import text

        result = await _done(self.given.execute(text(statement)))
        return [tuple(row) for row in result] if result.returns_rows else []

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """A savepoint by the library's own means, undone if the block raises."""
        psycopgs = self.kind.startswith("psycopg")
        block = self.given.transaction() if psycopgs else self.given.begin_nested()
        if self._runner is not None:
            async with block:
                yield
        else:
            with block:
                yield

    async def commits(self) -> None:
        await _done(self.given.commit())

    async def rolls_back(self) -> None:
        await _done(self.given.rollback())

    # For the test.

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        return self.run(self.ask(statement))

    def commit(self) -> None:
        self.run(self.commits())

    def rollback(self) -> None:
        self.run(self.rolls_back())

    def close(self) -> None:
        self.run(self._close())
        if self._runner is not None:
            self._runner.close()

    async def _close(self) -> None:
        await _done(self.given.close())
        if self._engine is not None:
            await _done(self._engine.dispose())
        # One that psycopg has given up before it was closed is left open by SQLAlchemy.
        for each in self._drivers:
            each.pgconn.finish()


async def _done(value: Any) -> Any:
    return await value if hasattr(value, "__await__") else value


def sqlalchemy_url(url: str) -> str:
    """The same for SQLAlchemy, which has the driver in the scheme."""
    return urlunsplit(urlsplit(url)._replace(scheme="postgresql+psycopg"))


def driver_error(error: BaseException) -> BaseException:
    """psycopg's error, which SQLAlchemy wraps."""
    own: BaseException = getattr(error, "orig", error)
    return own
