"""Connections that are taken from psycopg's pool and kept between calls.

A pool hands a connection out and takes it back with a lock and some bookkeeping each: more than a
read of a warm row takes. So a connection stays here for the next call. It goes back to the pool
when somebody waits for one, and after some seconds, so that the pool may retire it.

A connection that the server has ended while nobody used it is not used again: after a restart of
the server, or a failover, the next call does not fail.

What is lent is a :class:`Lease`. If an interrupt loses one, nobody has its hold any more, and its
connection is found in :meth:`Kept.lost`. The hold is an object apart, since the traceback of an
error that somebody keeps has the lease for as long.
"""

from __future__ import annotations

import select
import time
import weakref
from collections import deque
from typing import Any, Final, Generic, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from kvreplay.backends.postgresql.links import AsyncLink, Link
from kvreplay.backends.postgresql.timeline import Timeline

__all__ = ["Kept", "Lease"]

L = TypeVar("L", Link, AsyncLink)

_KEEP: Final = 5.0  # seconds


class Hold(Generic[L]):
    """Whoever has it has the connection. It is in no variable, where a traceback would keep it."""

    __slots__ = ("__weakref__", "cursor", "link", "since", "socket")

    def __init__(self, link: L) -> None:
        self.link: L = link
        self.cursor: Any = link.cursor(binary=True)
        self.since = time.monotonic()
        self.socket = select.poll()
        self.socket.register(link.pgconn.socket, select.POLLIN)


class Lease(Generic[L]):
    """A place for a connection and its cursor, made before it is filled."""

    __slots__ = ("cursor", "hold", "link")

    link: L
    cursor: Any

    def __init__(self) -> None:
        self.hold: Any = None

    def end(self) -> None:
        """Have the connection no more: unless it is kept, it is found in :meth:`Kept.lost`."""
        self.hold = None

    @property
    def is_over(self) -> bool:
        """Whether the pool should have it back: it also ends what an interrupt has left open."""
        is_idle = self.link.pgconn.transaction_status == TransactionStatus.IDLE
        return not is_idle or time.monotonic() - self.hold.since > _KEEP

    def is_alive(self) -> bool:
        """Say whether the server has not ended the connection while nobody used it."""
        for _ in range(3):
            if not self.hold.socket.poll(0):
                return not self.link.closed
            try:
                self.link.pgconn.consume_input()  # a notice, a ticket of TLS, or the end
            except psycopg.Error:
                return False
        return False


class Kept(Generic[L]):
    """The connections that are kept for the next call.

    Attributes:
        waiting: something for each call that waits for the pool.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.waiting: set[object] = set()
        self._timeline = timeline
        self._idle: deque[Hold[L]] = deque()
        self._lent: dict[weakref.ref[Hold[L]], L] = {}

    @property
    def lent(self) -> int:
        """How many connections of the pool are here or in use."""
        return len(self._lent)

    def take(self, lease: Lease[L]) -> bool:
        """Fill in the good one that was used last; false: ask the pool."""
        while True:
            try:
                lease.hold = self._idle.pop()
            except IndexError:
                return False
            lease.link, lease.cursor = lease.hold.link, lease.hold.cursor
            if self.is_good(lease):
                return True

    def is_good(self, lease: Lease[L]) -> bool:
        """Say whether a lease is alive, and its server on the latest timeline; else end it."""
        if lease.link.timeline == self._timeline.latest and lease.is_alive():
            return True
        lease.link.pgconn.finish()
        lease.end()
        return False

    def lend(self, lease: Lease[L], link: L) -> None:
        """Fill in a connection of the pool."""
        lease.hold = Hold(link)
        lease.link, lease.cursor = link, lease.hold.cursor
        self._lent[weakref.ref(lease.hold)] = link

    def keep(self, lease: Lease[L]) -> bool:
        """Keep a lease's connection for the next call; say whether one is now in :meth:`lost`.

        The lease has it no more: the traceback of an error that somebody keeps may hold the lease.
        """
        if lease.is_over:
            lease.end()
            return True
        self._idle.append(lease.hold)
        lease.end()
        # Whoever waits has looked here before.
        return bool(self.waiting) and self.let_go()

    def let_go(self) -> bool:
        """Let one that is idle be found in :meth:`lost`; say whether there was one."""
        try:
            self._idle.pop()
        except IndexError:
            return False
        return True

    def lost(self) -> L | None:
        """Return a connection that must be given back to the pool."""
        for hold, link in list(self._lent.items()):
            # Only one call finds it. No callback of the reference does: an interrupt could end it.
            if hold() is None and self._lent.pop(hold, None) is not None:
                return link
        return None
