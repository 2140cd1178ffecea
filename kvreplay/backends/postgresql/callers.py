"""A caller's own connection, and what must be true of it before its transaction is joined."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any, Final

import attrs
import psycopg
from psycopg.pq import TransactionStatus

from kvreplay.backends.postgresql.opening import Place
from kvreplay.errors import ClaimLostError, ConfigError

__all__ = [
    "KINDS",
    "AsyncPsycopgCaller",
    "AsyncSQLAlchemyCaller",
    "PsycopgCaller",
    "SQLAlchemyCaller",
    "Where",
    "another_database",
    "async_caller_of",
    "caller_of",
    "driver_error",
    "ended_by_handler",
    "is_drivers",
    "where",
]

KINDS: Final = "a connection of psycopg 3, or a Connection or Session of SQLAlchemy on psycopg 3"
_numbers: Final = itertools.count()


@attrs.frozen
class Where:
    """What is true of a transaction that may be joined.

    Attributes:
        lock_timeout: the caller's own, which is put back after each of our changes.
    """

    lock_timeout: str
    sees_commits: bool


def where(lock_timeout: str, row: Sequence[Any], place: Place) -> Where:
    """Look whether a transaction can change this store.

    Raises:
        ConfigError: it is one of another database, or it cannot write.
    """
    id_, database, read_only, isolation, _, _ = map(plain, row)
    if (id_, database) != (place.id, place.database):
        raise another_database()
    if read_only == "on":
        raise ConfigError(
            "the transaction is read-only, or its server is a standby: no answer could be stored in"
            " it; nothing ran: give a connection to the primary, in a transaction that may write"
        )
    return Where(lock_timeout, isolation in ("read committed", "read uncommitted"))


def plain(told: Any) -> Any:
    """Return a text as a text: with the encoding SQL_ASCII psycopg's are bytes."""
    return told.decode() if isinstance(told, bytes) else told


def another_database() -> ConfigError:
    """Return the error for a connection to another database than the store's."""
    return ConfigError(
        "the connection is to another database than the store's, so that its transaction could not"
        " commit both; nothing ran: open the store in the database of your ledger"
    )


def ended_by_handler() -> ClaimLostError:
    """Return the error for a savepoint that is gone."""
    return ClaimLostError(
        "the transaction that was joined has been ended or undone inside the block: what was"
        " committed there stands, and no answer is stored with it; let only the caller commit and"
        " roll back"
    )


def driver_error(error: BaseException) -> psycopg.Error | None:
    """Return psycopg's own error, which SQLAlchemy wraps."""
    original = getattr(error, "orig", error)
    return original if isinstance(original, psycopg.Error) else None


def _check_usable(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Raise a ConfigError unless a transaction is open on the connection.

    Without autocommit psycopg begins one with its first statement, which may be ours.
    """
    status = connection.info.transaction_status
    if connection.closed:
        wrong, instead = "is closed", "give one that is open"
    elif connection.pgconn.pipeline_status:
        wrong, instead = "is in pipeline mode", "call this outside of `connection.pipeline()`"
    elif status == TransactionStatus.INERROR:
        wrong, instead = "is in a transaction that has failed", "roll it back, and begin it again"
    elif status == TransactionStatus.ACTIVE:
        wrong, instead = "is in use by another call", "give each thread or task its own"
    elif status == TransactionStatus.IDLE and connection.autocommit:
        wrong = "commits each statement by itself, and has no transaction open"
        instead = "call this inside `with connection.transaction():`, which commits at its end"
    else:
        return
    raise ConfigError(f"the connection {wrong}; nothing ran: {instead}")


def _unknown(connection: object, awaited: bool) -> ConfigError:
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    instead = f"give {KINDS}"
    if awaited:
        instead = (
            "give psycopg's AsyncConnection, or an AsyncConnection or AsyncSession of SQLAlchemy"
        )
    if kind.startswith("django."):
        instead = "give its own psycopg connection, connection.connection, inside of atomic()"
    elif "Async" in kind and not awaited:
        instead = "use AsyncReplay"
    elif awaited and kind.startswith(("psycopg.", "sqlalchemy.")):
        instead = "use Replay, or give an asynchronous connection"
    return ConfigError(f"the connection is a {kind}; nothing ran: {instead}")


def _check_driver(connection: Any) -> None:
    driver = connection.dialect.driver
    if driver not in ("psycopg", "psycopg_async"):
        raise ConfigError(
            f"the SQLAlchemy connection uses the driver {driver}; nothing ran: make its engine with"
            " postgresql+psycopg://"
        )


def _is_stuck(driver: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Say whether an interrupt has left a connection in the middle of a statement, for ever.

    Another thread or task that is in a statement holds the lock, and ends it.
    """
    is_active = not driver.closed and driver.info.transaction_status == TransactionStatus.ACTIVE
    return is_active and not driver.lock.locked()


class _OnPsycopg:
    """What is the same for both kinds of psycopg's connections.

    Each block has a savepoint of its own name: inside a handler there may be another block.

    Attributes:
        is_set: the savepoint is set, or may be.
    """

    def __init__(self, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        _check_usable(connection)
        self._of: Any = connection
        self.is_set = False
        savepoint = f"kvreplay_{next(_numbers)}"
        self._begin = f"SAVEPOINT {savepoint}"
        self._undo = f"ROLLBACK TO SAVEPOINT {savepoint}"
        self._release = f"RELEASE SAVEPOINT {savepoint}"

    @property
    def is_closed(self) -> bool:
        """Whether the connection is, so that the server undoes the transaction."""
        return bool(self._of.closed)

    @property
    def is_ended(self) -> bool:
        """Whether the transaction in which the block began is not open any more."""
        return bool(self._of.info.transaction_status == TransactionStatus.IDLE)

    @property
    def is_stuck(self) -> bool:
        """Whether nothing but closing the connection is left."""
        return _is_stuck(self._of)


class _OnSQLAlchemy:
    """What is the same for all kinds of SQLAlchemy's connections and sessions.

    Attributes:
        _outer: what the caller has given.
        _plain: the connection, once the block has begun; _driver: psycopg's.
        _nested: the savepoint, as SQLAlchemy's own object.
    """

    def __init__(self, connection: Any) -> None:
        self._outer = connection
        self._plain: Any = None
        self._driver: Any = None
        self._nested: Any = None

    @property
    def is_closed(self) -> bool:
        """Whether the connection is, so that the server undoes the transaction."""
        plain = self._plain
        return plain is not None and bool(plain.closed or plain.invalidated)

    @property
    def is_set(self) -> bool:
        """Whether the savepoint is set."""
        return self._nested is not None

    @property
    def is_stuck(self) -> bool:
        """Whether nothing but closing the connection is left."""
        return self._driver is not None and not self.is_closed and _is_stuck(self._driver)

    @property
    def is_ended(self) -> bool:
        """Whether the transaction in which the block began is not open any more."""
        nested = getattr(self._nested, "sync_transaction", self._nested)
        if _is_connection(self._outer):
            return not nested.is_active
        # A session's is not active either when a flush has failed; but it is still there.
        found = getattr(self._outer, "sync_session", self._outer).get_nested_transaction()
        while found is not None and found is not nested:
            found = found.parent
        return found is None


def _not_usable() -> ConfigError:
    return ConfigError(
        "SQLAlchemy cannot use the connection or session now: it is closed, has no engine, or is in"
        " a transaction that has failed; nothing ran: roll back, or give an open one"
    )


class PsycopgCaller(_OnPsycopg):
    """A connection of psycopg."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection)
        self._cursor = psycopg.Cursor(connection, row_factory=psycopg.rows.tuple_row)

    def say(self, text: str, given: dict[str, Any] | None = None) -> Sequence[tuple[Any, ...]]:
        """Make a statement, and return its rows."""
        self._cursor.execute(text, given, binary=True)
        return self._cursor.fetchall()

    def begin(self, *gate: str) -> str:
        """Set the savepoint, say what `Statements.gate` returns, and return the row of that."""
        self.is_set = True
        return self._say_all(self._begin, *gate)

    def undo(self, *gate: str) -> str:
        """Undo what was done since the savepoint, which stays, and say the same."""
        return self._say_all(self._undo, *gate)

    def _say_all(self, *statements: str) -> str:
        # In one round trip. No parameters: with them PostgreSQL takes one statement at a time.
        self._cursor.execute("; ".join(statements), {}, prepare=False)
        self._cursor.nextset()
        [(own, _)] = self._cursor.fetchall()
        return str(plain(own))

    def roll_back(self) -> None:
        """Undo it, and end the savepoint."""
        self._cursor.execute(self._undo)
        self.release()

    def close(self) -> None:
        """Close the connection: the server undoes its transaction."""
        self._of.close()

    def release(self) -> None:
        """End the savepoint, and keep what was done."""
        self._cursor.execute(self._release)


class SQLAlchemyCaller(_OnSQLAlchemy):
    """A Connection or Session of SQLAlchemy. A Session forgets its objects when it is undone."""

    def say(self, text: str, given: dict[str, Any] | None = None) -> Sequence[tuple[Any, ...]]:
        """Make a statement, and return its rows."""
        rows = self._plain.exec_driver_sql(text, given)
        return [tuple(row) for row in rows]

    def begin(self, *gate: str) -> str:
        """As :meth:`PsycopgCaller.begin`, in a round trip each."""
        if self._plain is None:
            self._plain = self._connection()
        self._nested = self._outer.begin_nested()
        self._connection()  # a session sets it when it is used
        bound, lock = gate
        [(own, _)] = self.say(bound, {})
        self._plain.exec_driver_sql(lock, {})
        return str(plain(own))

    def _connection(self) -> Any:
        """Return the connection, once it is sure that it can be used."""
        if _is_connection(self._outer) and self._plain is not None:
            return self._plain
        try:
            own = _is_connection(self._outer)
            plain = self._outer if own else self._outer.connection()
            _check_driver(plain)
            driver = plain.connection.driver_connection
        except _sqlalchemy_errors() as error:
            raise _not_usable() from error
        _check_usable(driver)
        self._driver = driver
        return plain

    def undo(self, *gate: str) -> str:
        """Undo what was done since the savepoint, and set it again."""
        self._nested.rollback()
        return self.begin(*gate)

    def roll_back(self) -> None:
        """Undo it, and end the savepoint."""
        self._nested.rollback()

    def close(self) -> None:
        """Close the connection: the server undoes its transaction."""
        if self._plain is not None:
            self._plain.invalidate()

    def release(self) -> None:
        """End the savepoint, and keep what was done."""
        self._nested.commit()


class AsyncPsycopgCaller(_OnPsycopg):
    """As :class:`PsycopgCaller`, awaited."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(connection)
        self._cursor = psycopg.AsyncCursor(connection, row_factory=psycopg.rows.tuple_row)

    async def say(
        self, text: str, given: dict[str, Any] | None = None
    ) -> Sequence[tuple[Any, ...]]:
        """As :meth:`PsycopgCaller.say`."""
        await self._cursor.execute(text, given, binary=True)
        return await self._cursor.fetchall()

    async def begin(self, *gate: str) -> str:
        """As :meth:`PsycopgCaller.begin`."""
        self.is_set = True
        return await self._say_all(self._begin, *gate)

    async def undo(self, *gate: str) -> str:
        """As :meth:`PsycopgCaller.undo`."""
        return await self._say_all(self._undo, *gate)

    async def _say_all(self, *statements: str) -> str:
        # In one round trip. No parameters: with them PostgreSQL takes one statement at a time.
        await self._cursor.execute("; ".join(statements), {}, prepare=False)
        self._cursor.nextset()
        [(own, _)] = await self._cursor.fetchall()
        return str(plain(own))

    async def roll_back(self) -> None:
        """As :meth:`PsycopgCaller.roll_back`."""
        await self._cursor.execute(self._undo)
        await self.release()

    async def close(self) -> None:
        """As :meth:`PsycopgCaller.close`."""
        await self._of.close()

    async def release(self) -> None:
        """As :meth:`PsycopgCaller.release`."""
        await self._cursor.execute(self._release)


class AsyncSQLAlchemyCaller(_OnSQLAlchemy):
    """As :class:`SQLAlchemyCaller`, awaited."""

    async def say(
        self, text: str, given: dict[str, Any] | None = None
    ) -> Sequence[tuple[Any, ...]]:
        """As :meth:`SQLAlchemyCaller.say`."""
        rows = await self._plain.exec_driver_sql(text, given)
        return [tuple(row) for row in rows]

    async def begin(self, *gate: str) -> str:
        """As :meth:`SQLAlchemyCaller.begin`."""
        if self._plain is None:
            self._plain = await self._connection()
        self._nested = await self._outer.begin_nested()
        await self._connection()  # a session sets it when it is used
        bound, lock = gate
        [(own, _)] = await self.say(bound, {})
        await self._plain.exec_driver_sql(lock, {})
        return str(plain(own))

    async def _connection(self) -> Any:
        """As that of :class:`SQLAlchemyCaller`."""
        if _is_connection(self._outer) and self._plain is not None:
            return self._plain
        try:
            own = _is_connection(self._outer)
            plain = self._outer if own else await self._outer.connection()
            _check_driver(plain)
            driver = (await plain.get_raw_connection()).driver_connection
        except _sqlalchemy_errors() as error:
            raise _not_usable() from error
        _check_usable(driver)
        self._driver = driver
        return plain

    async def undo(self, *gate: str) -> str:
        """As :meth:`SQLAlchemyCaller.undo`."""
        await self._nested.rollback()
        return await self.begin(*gate)

    async def roll_back(self) -> None:
        """As :meth:`SQLAlchemyCaller.roll_back`."""
        await self._nested.rollback()

    async def close(self) -> None:
        """As :meth:`SQLAlchemyCaller.close`."""
        if self._plain is not None:
            await self._plain.invalidate()

    async def release(self) -> None:
        """As :meth:`SQLAlchemyCaller.release`."""
        await self._nested.commit()


def _is_connection(connection: Any) -> bool:
    return hasattr(connection, "exec_driver_sql")


def _sqlalchemy_errors() -> type[Exception]:
    """Return what SQLAlchemy raises if it is used in a way that its state does not allow."""
    found: type[Exception] = sys.modules["sqlalchemy.exc"].InvalidRequestError
    return found


def is_drivers(error: BaseException) -> bool:
    """Say whether psycopg or SQLAlchemy has raised it, and not an interrupt."""
    own = (_sqlalchemy_errors(),) if "sqlalchemy.exc" in sys.modules else ()
    return driver_error(error) is not None or isinstance(error, own)


def _is_of(connection: object, module: str, *names: str) -> bool:
    """Say whether this is an object of a package that may not be installed."""
    loaded = sys.modules.get(module)
    classes = tuple(getattr(loaded, name) for name in names) if loaded is not None else ()
    return isinstance(connection, classes)


def caller_of(connection: Any) -> PsycopgCaller | SQLAlchemyCaller:
    """Return the caller's connection as one that can be spoken to.

    Raises:
        ConfigError: it is of another kind, or has no transaction open.
    """
    if isinstance(connection, psycopg.Connection):
        return PsycopgCaller(connection)
    if _is_of(connection, "sqlalchemy.orm", "scoped_session"):
        connection = connection()
    if _is_of(connection, "sqlalchemy.engine", "Connection") or _is_of(
        connection, "sqlalchemy.orm", "Session"
    ):
        return SQLAlchemyCaller(connection)
    raise _unknown(connection, awaited=False)


def async_caller_of(connection: Any) -> AsyncPsycopgCaller | AsyncSQLAlchemyCaller:
    """Do as :func:`caller_of` for a connection that is awaited."""
    if isinstance(connection, psycopg.AsyncConnection):
        return AsyncPsycopgCaller(connection)
    if _is_of(connection, "sqlalchemy.ext.asyncio", "AsyncConnection", "AsyncSession"):
        return AsyncSQLAlchemyCaller(connection)
    raise _unknown(connection, awaited=True)
