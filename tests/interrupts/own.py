"""A connection of the caller's own to a store's database, with a ledger, whose transaction is joined."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from support.waiting import until

__all__ = ["OwnPostgreSQL", "OwnSQLite"]

_LEDGER: Final = "CREATE TABLE IF NOT EXISTS ledger (payment TEXT)"


class OwnSQLite:
    """A connection of sqlite3, which waits for no lock."""

    def __init__(self, path: Path) -> None:
        self.given: Any = sqlite3.connect(path, isolation_level=None, timeout=0)
        self.given.execute(_LEDGER)
        self.patience_before = self.patience()

    is_open = True

    def begin(self) -> None:
        self.given.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        assert self.given.in_transaction
        self.given.execute("COMMIT")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """A block that ends the transaction."""
        try:
            self.begin()
            yield
            self.commit()
        finally:
            self.end()

    def pay(self, payment: str) -> None:
        self.given.execute("INSERT INTO ledger VALUES (?)", (payment,))

    def end(self) -> None:
        """End the transaction, as a caller must whose block was interrupted before it could end it."""
        if self.given.in_transaction:
            self.given.execute("ROLLBACK")

    def payments(self) -> list[str]:
        """The committed ones; and no transaction may be open."""
        assert not self.given.in_transaction, "a transaction is still open"
        return [payment for (payment,) in self.given.execute("SELECT payment FROM ledger")]

    def patience(self) -> Any:
        """How long it waits for locks."""
        return self.given.execute("PRAGMA busy_timeout").fetchone()

    def close(self) -> None:
        self.given.close()


class OwnPostgreSQL:
    """A connection of psycopg, with a bound of its own for locks.

    Args:
        url: the server's.
        schema: the store's, where the ledger is.
    """

    def __init__(self, url: str, schema: str) -> None:
        import psycopg

        self._url, self._schema = url, schema
        options = f"-c search_path={schema} -c lock_timeout=7s"
        self.given: Any = psycopg.connect(url, options=options, autocommit=True)
        self.given.execute(_LEDGER)
        self._pid = self.given.info.backend_pid
        self.patience_before = self.patience()

    @property
    def is_open(self) -> bool:
        """Whether the transaction is, and not one that has failed; it may never be stuck in a statement."""
        if self.given.closed:
            return False
        status = self.given.info.transaction_status.name
        assert status in ("INERROR", "INTRANS"), f"the connection is open and {status}"
        return bool(status == "INTRANS")

    def begin(self) -> None:
        self.given.execute("BEGIN")
        self.given.execute("SET LOCAL lock_timeout = '6s'")

    def commit(self) -> None:
        assert self.given.info.transaction_status.name == "INTRANS"
        assert self.patience() == [("6s",)], "a bound of ours has come out of the block"
        self.given.execute("COMMIT")

    def transaction(self) -> Any:
        """Return psycopg's own block."""
        return self.given.transaction()

    def give_up(self) -> None:
        """Commit a transaction that has failed, which undoes it."""
        if not self.given.closed:
            assert self.given.execute("COMMIT").statusmessage == "ROLLBACK"

    def end(self) -> None:
        """Close it, as a caller must whose own BEGIN or COMMIT was interrupted: psycopg may not."""
        if not self.given.closed and self.given.info.transaction_status.name != "IDLE":
            self.given.close()

    def pay(self, payment: str) -> None:
        self.given.execute("INSERT INTO ledger VALUES (%s)", (payment,))

    def payments(self) -> list[str]:
        """The committed ones; and no lock may be left in the server."""
        until(lambda: not self._ask("SELECT 1 FROM pg_locks WHERE pid = %s", self._pid))
        return [payment for (payment,) in self._ask(f"SELECT payment FROM {self._schema}.ledger")]

    def _ask(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        from support.postgres import execute

        return execute(self._url, statement, *parameters)

    def patience(self) -> Any:
        """How long it waits for locks."""
        return self.given.execute("SHOW lock_timeout").fetchall()

    def close(self) -> None:
        self.given.close()
