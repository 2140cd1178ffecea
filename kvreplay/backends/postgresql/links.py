"""Single connections: psycopg's, on which no wait for an answer is without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import pq, waiting
from psycopg.abc import PQGen
from psycopg.errors import Diagnostic
from psycopg.pq import TransactionStatus

__all__ = ["AsyncLink", "Link"]

_INTERVAL: Final = 0.1  # seconds, between two looks for signals


def _is_answer(error: BaseException) -> bool:
    """Say whether the server has said this; else nobody knows what it has done."""
    return isinstance(error, psycopg.Error) and error.sqlstate is not None


class Bounded:
    """What both kinds of connections have.

    Attributes:
        answer_within: seconds, within which the server must answer; else the connection is closed.
        synchronous_commit: the setting that makes a change of this session durable.
        timeline: the one that its server writes; 0: it does not tell.
        unconfirmed: the latest commit's wait for a synchronous standby was broken off.
    """

    answer_within: float = 10.0
    synchronous_commit: str = "on"
    timeline: int = 0
    unconfirmed: bool = False

    def noticed(self, diagnostic: Diagnostic) -> None:
        """Note what the server warns of."""
        if diagnostic.source_function == "SyncRepWaitForLSN":
            self.unconfirmed = True


class Link(Bounded, psycopg.Connection[Any]):
    """A blocking connection."""

    def __init__(self, pgconn: pq.abc.PGconn, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        self.add_notice_handler(self.noticed)

    @classmethod
    def connect(  # type: ignore[override]  # of psycopg's it takes what its pool gives
        cls, conninfo: str = "", *, failed: Callable[[Exception], None] | None = None, **of: Any
    ) -> Link:
        """Connect. The pool keeps to itself why it cannot, so ``failed`` is told."""
        try:
            return super().connect(conninfo, **of)
        except Exception as error:
            if failed is not None:
                failed(error)
            raise

    def wait(
        self, gen: PQGen[Any], interval: float = _INTERVAL, timeout: float | None = None
    ) -> Any:
        """Wait for the server's answer, with the bound. Whatever breaks it off ends the connection.

        What is known of the server's end would not be: psycopg would wait for a cancellation.
        """
        limit = self.answer_within if timeout is None else timeout
        try:
            return waiting.wait(gen, self.pgconn.socket, interval, limit)
        except BaseException as error:
            if not _is_answer(error):
                self.pgconn.finish()
            raise


class AsyncLink(Bounded, psycopg.AsyncConnection[Any]):
    """An asynchronous connection."""

    def __init__(self, pgconn: pq.abc.PGconn, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        self.add_notice_handler(self.noticed)

    @classmethod
    async def connect(  # type: ignore[override]  # likewise
        cls, conninfo: str = "", *, failed: Callable[[Exception], None] | None = None, **of: Any
    ) -> AsyncLink:
        """As :meth:`Link.connect`."""
        try:
            return await super().connect(conninfo, **of)
        except Exception as error:
            if failed is not None:
                failed(error)
            raise

    async def wait(
        self, gen: PQGen[Any], interval: float = _INTERVAL, timeout: float | None = None
    ) -> Any:
        """As :meth:`Link.wait`; but who is cancelled waits for the end of what was said.

        So a change does not happen after its call has come back.
        """
        limit = self.answer_within if timeout is None else timeout
        try:
            try:
                return await waiting.wait_async(gen, self.pgconn.socket, interval, limit)
            except asyncio.CancelledError:
                await waiting.wait_async(gen, self.pgconn.socket, interval, limit)
                raise
        except asyncio.CancelledError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()  # it was cancelled again
            raise
        except BaseException as error:
            if not _is_answer(error):
                self.pgconn.finish()
            raise
