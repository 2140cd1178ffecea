"""Make the requests of an operation, with blocking calls.

A connection belongs to one call at a time: it is taken out of those that are idle, and comes back
when its answer was read to the end. What an interrupt or a failure breaks off is closed, so no
answer is ever taken for that of another request. Nothing else is shared, and nobody waits for
another thread's connection.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from typing import Any, TypeVar

from kvreplay.backends.driving import drive
from kvreplay.backends.etcd.cluster import Answer, Attempt, Cluster, NoAnswer, NotSent
from kvreplay.backends.etcd.links import Link, connected
from kvreplay.backends.etcd.operations import Operation
from kvreplay.backends.etcd.requests import Asked

__all__ = ["Session"]

T = TypeVar("T")


class Session:
    """A process's connections to one cluster.

    Args:
        context: how TLS is spoken; ``None``: it is not.
        keep: how many connections to a member stay open while nobody uses them.
    """

    def __init__(self, cluster: Cluster, context: ssl.SSLContext | None, keep: int) -> None:
        self._cluster = cluster
        self._context = context
        self._idle: list[deque[Link]] = [deque() for _ in cluster.members]
        self._keep = keep
        self._is_closed = False

    def run(self, operation: Operation[T]) -> T:
        """Drive an operation."""
        return drive(operation, self._execute)

    def _execute(self, asked: Asked) -> dict[str, Any]:
        """Make one request."""
        return drive(self._cluster.ask(asked), self._attempt, (NotSent, NoAnswer))

    def _attempt(self, attempt: Attempt) -> Answer:
        until = time.monotonic() + attempt.answer_within
        link = self._take(attempt)
        try:
            answer = link.ask(attempt, until)
        except BaseException as error:
            link.close()
            if isinstance(error, NoAnswer):  # the others may have gone silent too
                _close_all(self._idle[attempt.member])
            raise
        self._keep_or_close(attempt.member, link)  # from here on it may be another thread's
        return answer

    def _take(self, attempt: Attempt) -> Link:
        """Return the connection that was used last, if it is still good, or a new one."""
        idle = self._idle[attempt.member]
        while True:
            try:
                link = idle.pop()
            except IndexError:
                member = self._cluster.members[attempt.member]
                return connected(member, self._context, attempt.connect_within)
            if link.is_good():
                return link
            link.close()

    def _keep_or_close(self, member: int, link: Link) -> None:
        if not link.can_go_on():
            link.close()
            return
        idle = self._idle[member]
        idle.append(link)
        if self._is_closed or len(idle) > self._keep:
            _close_one(idle)

    def close(self) -> None:
        """Close the connections; those in use end with their calls."""
        self._is_closed = True
        for idle in self._idle:
            _close_all(idle)


def _close_all(idle: deque[Link]) -> None:
    while idle:
        _close_one(idle)


def _close_one(idle: deque[Link]) -> None:
    try:
        link = idle.pop()
    except IndexError:  # another thread has taken it
        return
    link.close()
