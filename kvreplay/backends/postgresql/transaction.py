"""A transaction of the store's own, on a connection of its pool."""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg

from kvreplay.backends._support import OwnTransaction
from kvreplay.backends.driving import drive
from kvreplay.backends.postgresql.calls import Calls
from kvreplay.backends.postgresql.errors import failure, unconfirmed
from kvreplay.backends.postgresql.kept import Lease
from kvreplay.backends.postgresql.links import Link
from kvreplay.backends.postgresql.operations import Operation, Operations, Rows
from kvreplay.backends.postgresql.session import Session, asked_with, say
from kvreplay.backends.postgresql.statements import BEGIN, Asked, milliseconds
from kvreplay.errors import StoreError

__all__ = ["Transaction", "swallowed"]

T = TypeVar("T")


def swallowed() -> StoreError:
    """Return the error for a transaction that should commit after one of its statements failed."""
    return StoreError(
        "a statement of this transaction failed, and its error was swallowed: the transaction was"
        " undone, and nothing was changed"
    )


class Transaction(Calls):
    """The store's calls inside a transaction of the store's own."""

    def __init__(
        self, lease: Lease[Link], own: OwnTransaction, operations: Operations, session: Session
    ) -> None:
        super().__init__(operations)
        self._lease = lease
        self._own = own
        self._session = session

    def begin(self) -> None:
        """Begin it, and take the store's turn alone."""
        place, link = self._session.place, self._lease.link
        try:
            self._say(BEGIN)
            alone = self._operations.statements.alone, dict[str, Any]()
            given = asked_with(alone, place.lock_timeout, "0", link, place)
            self._say(alone[0].text, given)
        except psycopg.Error as error:
            raise failure(error, changing=False, lost=link.closed) from error

    def commit(self) -> None:
        """Commit it, unless one of its statements has failed."""
        link = self._lease.link
        if link.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
            raise swallowed()
        try:
            self._say("COMMIT")
        except psycopg.Error as error:
            raise failure(error, changing=True, lost=link.closed) from error
        if link.unconfirmed:
            raise unconfirmed()

    def roll_back(self) -> None:
        """Undo it, as far as there is a connection; without one the server does so."""
        link = self._lease.link
        if not link.closed and link.info.transaction_status:
            try:
                self._say("ROLLBACK")
            except psycopg.Error:
                link.close()

    def _say(self, text: str, given: dict[str, Any] | None = None) -> None:
        place, link = self._session.place, self._lease.link
        link.answer_within = place.lock_timeout + place.reply_timeout
        link.unconfirmed = False
        self._lease.cursor.execute(text, given, prepare=False)

    def _run(self, operation: Operation[T]) -> T:
        self._own.check_usable()
        return drive(operation, self._execute)

    def _execute(self, asked: Asked) -> Rows:
        place, clock = self._session.place, self._session.clock
        wait = place.lock_timeout
        try:
            return say(self._lease, asked, wait, milliseconds(wait), place, clock)
        except psycopg.Error as error:
            lost = self._lease.link.closed
            raise failure(error, changing=False, lost=lost) from error
