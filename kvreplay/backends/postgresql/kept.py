"""Connections that are taken from psycopg's pool and kept between calls.

A pool hands a connection out and takes it back with a lock and some bookkeeping each: more than a
read of a warm row takes. So a connection stays here for the next call. It goes back to the pool
when somebody waits for one, and after some seconds, so that the pool may retire it.

A connection that the server has ended while nobody used it is not used again: after a restart of
the server, or a failover, the next call does not fail.

What is lent is a :class:`Lease`. A connection that must go back to the pool is found in
:meth:`Kept.lost`; so is that of a lease which an interrupt lost, and which nobody holds any more.
"""

from __future__ import annotations

import select
import time
import weakref
from collections import deque
from typing import Any, Final, Generic, TypeVar

import psycopg

from kvreplay.backends.postgresql.links import AsyncLink, Link
from kvreplay.backends.postgresql.timeline import Timeline

__all__ = ["Kept", "Lease"]

L = TypeVar("L", Link, AsyncLink)

_KEEP: Final = 5.0  # seconds


class Lease(Generic[L]):
    """A connection of the pool, and its cursor."""

    __slots__ = ("__weakref__", "_since", "_socket", "cursor", "link")

    def __init__(self, link: L) -> None:
        self.link: L = link
        self.cursor: Any = link.cursor(binary=True)
        self._since = time.monotonic()
        self._socket = select.poll()
        self._socket.register(link.pgconn.socket, select.POLLIN)

    @property
    def is_over(self) -> bool:
        """Whether the pool should have it back."""
        return self.link.closed or time.monotonic() - self._since > _KEEP

    def is_alive(self) -> bool:
        """Say whether the server has not ended the connection while nobody used it."""
        for _ in range(3):
            if not self._socket.poll(0):
                return not self.link.closed
            try:
                self.link.pgconn.consume_input()  # a notice, a ticket of TLS, or the end
            except psycopg.Error:
                return False
        return False


class Kept(Generic[L]):
    """The connections that are kept for the next call.

    Attributes:
        waiting: an item for each call that waits for the pool.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.waiting: list[None] = []
        self._timeline = timeline
        self._idle: deque[Lease[L]] = deque()
        self._lent: dict[weakref.ref[Lease[L]], L] = {}
        self._lost: deque[L] = deque()

    def take(self) -> Lease[L] | None:
        """Return the good one that was used last; ``None``: ask the pool."""
        while True:
            try:
                lease = self._idle.pop()
            except IndexError:
                return None
            if self.is_good(lease):
                return lease

    def is_good(self, lease: Lease[L]) -> bool:
        """Say whether a lease is alive, and its server on the latest timeline; else end it."""
        if lease.link.timeline == self._timeline.latest and lease.is_alive():
            return True
        lease.link.pgconn.finish()
        self._lose(weakref.ref(lease))
        return False

    def lend(self, link: L) -> Lease[L]:
        """Return a connection of the pool as a lease."""
        lease = Lease(link)
        self._lent[weakref.ref(lease, self._lose)] = link
        return lease

    def _lose(self, reference: weakref.ref[Lease[L]]) -> None:
        # One call, which no interrupt divides.
        self._lost.extend(map(self._lent.pop, (reference,)))

    def keep(self, lease: Lease[L]) -> None:
        """Keep a lease for the next call, or let it be found in :meth:`lost`."""
        if lease.is_over:
            # Not by its end: the traceback of an error may hold it for long.
            self._lose(weakref.ref(lease))
            return
        self._idle.append(lease)
        if self.waiting:  # whoever waits has looked here before
            self.let_go()

    def let_go(self) -> bool:
        """Let a lease that is idle be found in :meth:`lost`; say whether there was one."""
        try:
            lease = self._idle.pop()
        except IndexError:
            return False
        self._lose(weakref.ref(lease))
        return True

    def lost(self) -> L | None:
        """Return a connection that must be given back to the pool."""
        try:
            return self._lost.popleft()
        except IndexError:
            return None
