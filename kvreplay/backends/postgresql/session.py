"""Say the statements of an operation to the server, with blocking calls."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Final, TypeVar

import psycopg
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from kvreplay.backends.driving import drive
from kvreplay.backends.postgresql.clock import ServerClock, ticks
from kvreplay.backends.postgresql.errors import (
    failure,
    is_conflict,
    no_connection,
    unconfirmed,
)
from kvreplay.backends.postgresql.kept import Kept, Lease
from kvreplay.backends.postgresql.links import Bounded, Link
from kvreplay.backends.postgresql.opening import Place, greeted
from kvreplay.backends.postgresql.operations import Operation, Rows
from kvreplay.backends.postgresql.pooling import OwnPool, Pool
from kvreplay.backends.postgresql.statements import Asked, milliseconds
from kvreplay.backends.postgresql.timeline import Timeline
from kvreplay.store import closed_error

__all__ = ["Refusal", "Session", "asked_with"]

T = TypeVar("T")

POOL: Final[dict[str, Any]] = {
    "min_size": 1,
    "max_lifetime": 3600.0,
    "max_idle": 600.0,
    "reconnect_timeout": 0.5,  # then it is asked again, so that it never waits longer
    "num_workers": 1,
    "open": False,
}


def asked_with(
    asked: Asked, wait: float | None, after: str, link: Bounded, place: Place
) -> dict[str, Any]:
    """Return a change's parameters with its bounds.

    Args:
        wait: how many seconds it may wait for locks; ``None``: without a limit.
        after: the ``lock_timeout`` of the transaction afterwards.
    """
    return {
        "wait": milliseconds(wait),
        "after": after,
        "turn": place.turn,
        "id": place.id,
        "commit": "off" if place.durability == "process" else link.synchronous_commit,
        **asked[1],
    }


class Refusal:
    """Why the latest connection could not be made.

    Args:
        lasts: seconds; older ones are no reason for what a call waits for now.
    """

    def __init__(self, lasts: float) -> None:
        self._lasts = lasts
        self._latest: tuple[Exception, float] | None = None

    @property
    def why(self) -> Exception | None:
        """The error of the latest attempt, unless that is old, or one has succeeded since."""
        latest = self._latest
        if latest is None or time.monotonic() - latest[1] > self._lasts:
            return None
        return latest[0]

    def note(self, why: Exception) -> None:
        """Note that an attempt has failed."""
        self._latest = why, time.monotonic()

    def forget(self) -> None:
        """Note that an attempt has succeeded."""
        self._latest = None


class Session:
    """A process's connections to one store.

    Args:
        place: where the store is.
        clock: what is told the server's time.
        timeline: what is told the timelines of its servers.
    """

    def __init__(self, place: Place, clock: ServerClock, timeline: Timeline) -> None:
        self.place = place
        self.clock = clock
        self.timeline = timeline
        self._kept: Kept[Link] = Kept(timeline)
        self._refused = Refusal(place.lock_timeout + place.reply_timeout)
        self._pool = Pool(self._opened_pool)

    def _opened_pool(self) -> OwnPool:
        pool = OwnPool(
            self.place.conninfo,
            connection_class=Link,
            kwargs={"autocommit": True, "failed": self._refused.note},
            max_size=self.place.pool_size,
            configure=self._configure,
            reconnect_failed=self._go_on,
            **POOL,
        )
        pool.open()
        return pool

    def _configure(self, link: Link) -> None:
        """Look whether a new connection leads to the store, before anybody uses it."""
        try:
            link.answer_within = self.place.reply_timeout
            asked_at = ticks()
            with link.cursor() as cursor:
                row = cursor.execute(*self.place.greeting(link)).fetchone()
            greeted(link, row, self.place, self.timeline)
            self.clock.told(row[-1], asked_at)  # type: ignore[index]  # greeted() has looked
            self._refused.forget()
        except BaseException as error:
            link.pgconn.finish()  # after an interrupt the pool does not
            if isinstance(error, Exception):
                self._refused.note(error)
            raise

    def _go_on(self, pool: ConnectionPool[Link]) -> None:
        """Let the pool go on trying to connect, if somebody waits for that."""
        if self._kept.waiting:
            pool.check()  # there are none in it

    def lease(self, limit: float) -> Lease[Link]:
        """Take a connection, and wait for one as long as this (seconds)."""
        lease: Lease[Link] = Lease()
        try:
            if not self._kept.take(lease):
                self._ask_pool(lease, limit)
        except BaseException:
            lease.end()
            raise
        return lease

    def _ask_pool(self, lease: Lease[Link], limit: float) -> None:
        self.give_back()
        waiting = object()
        try:
            self._kept.waiting.add(waiting)
            if self._kept.let_go():  # one came back meanwhile
                self.give_back()
            self._fill(lease, time.monotonic() + limit)
        except PoolTimeout:
            why = self._refused.why
            raise no_connection(limit, why) from why
        except PoolClosed:
            raise closed_error() from None
        finally:
            self._kept.waiting.discard(waiting)

    def _fill(self, lease: Lease[Link], until: float) -> None:
        lend = partial(self._kept.lend, lease)
        while True:
            self._pool.get(until - time.monotonic(), lend)
            if self._kept.is_good(lease):
                return
            self.give_back()

    def keep(self, lease: Lease[Link]) -> None:
        """Take a connection back. The caller ends the lease then, which its traceback has."""
        if self._kept.keep(lease):
            self.give_back()

    def give_back(self) -> None:
        """Give the pool the connections that nobody has any more."""
        if not self._pool.is_busy:  # else the call that this one interrupts does it
            while self._pool.put(self._kept.lost):
                pass

    def run(self, operation: Operation[T]) -> T:
        """Drive an operation, each statement of which is a transaction of its own."""
        return drive(operation, self.execute)

    def execute(self, asked: Asked) -> Rows:
        """Make one statement, again if the server undid it in favour of another."""
        place, statement = self.place, asked[0]
        until = time.monotonic() + place.lock_timeout
        while True:
            lease = self.lease(max(0.0, until - time.monotonic()))
            try:
                left = max(0.0, until - time.monotonic())
                return say(lease, asked, left, "0", place, self.clock)
            except psycopg.Error as error:
                lost = lease.link.closed
                again = is_conflict(error) or (lost and not statement.changes)
                if not again or time.monotonic() >= until:
                    raise failure(error, changing=statement.changes, lost=lost) from error
            finally:
                try:
                    self.keep(lease)
                finally:
                    lease.end()

    def close(self) -> None:
        """Close all connections."""
        while self._kept.let_go():
            pass
        self._pool.close()
        self.give_back()


def say(
    lease: Lease[Link],
    asked: Asked,
    wait: float | None,
    after: str,
    place: Place,
    clock: ServerClock,
) -> Rows:
    """Make one statement on a connection, and return its rows."""
    link, (statement, given) = lease.link, asked
    link.answer_within, link.unconfirmed = place.reply_timeout, False
    asked_at = ticks()
    if statement.changes:
        link.answer_within += wait or 0.0
        given = asked_with(asked, wait, after, link, place)
    rows: Rows = lease.cursor.execute(statement.text, given).fetchall()
    if link.unconfirmed:
        raise unconfirmed()
    if statement.changes and rows:  # a trigger may keep a row away
        clock.told(rows[0][-1], asked_at)
    return rows
