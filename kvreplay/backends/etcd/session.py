"""Make the requests of an operation, with blocking calls.

A connection belongs to one call at a time: it is taken out of those that are idle, and comes back
when its answer was read to the end. What an interrupt or a failure breaks off is closed, so no
answer is ever taken for that of another request. Nothing else is shared, and nobody waits for
another thread's connection.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import httpcore

from kvreplay.backends.etcd.cluster import Answer, Attempt, Cluster, NoAnswer, NotSent, TooMuch
from kvreplay.backends.etcd.links import FAILURES, Links, what_failed
from kvreplay.backends.etcd.operations import Operation
from kvreplay.backends.etcd.requests import Asked
from kvreplay.errors import StoreError

__all__ = ["Session", "drive"]

T = TypeVar("T")
Y = TypeVar("Y")
S = TypeVar("S")


def drive(steps: Generator[Y, S, T], answer: Callable[[Y], S], *thrown: type[Exception]) -> T:
    """Answer what a generator yields until it returns or raises.

    Args:
        thrown: what is thrown into it, if an answer raises it.
    """
    resume: Callable[[Any], Y] = steps.send
    told: Any = None
    while True:
        try:
            asked = resume(told)
        except StopIteration as end:
            value: T = end.value
            return value
        try:
            resume, told = steps.send, answer(asked)
        except thrown as error:
            resume, told = steps.throw, error


class Session:
    """A process's connections to one cluster.

    Args:
        keep: how many connections to a member stay open while nobody uses them.
    """

    def __init__(self, cluster: Cluster, links: Links, keep: int) -> None:
        self._cluster = cluster
        self._links = links
        self._idle = [deque[httpcore.HTTPConnection]() for _ in cluster.members]
        self._keep = keep
        self._is_closed = False

    def run(self, operation: Operation[T]) -> T:
        """Drive an operation."""
        return drive(operation, self.execute, StoreError)

    def execute(self, asked: Asked) -> dict[str, Any]:
        """Make one request."""
        return drive(self._cluster.ask(asked), self._attempt, NotSent, NoAnswer)

    def _attempt(self, attempt: Attempt) -> Answer:
        until = time.monotonic() + attempt.answer_within
        connection = self._take(attempt.member)
        try:
            answer = _exchange(connection, self._links.request(attempt), until, attempt.asked.most)
            self._give_back(attempt.member, connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, FAILURES):
                raise what_failed(error) from error
            raise
        return answer

    def _take(self, member: int) -> httpcore.HTTPConnection:
        """Return one that was used last and is still good, or a new one."""
        idle = self._idle[member]
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                origin = self._links.origin(member)
                return httpcore.HTTPConnection(origin, self._links.context)
            if not connection.has_expired():
                return connection
            connection.close()

    def _give_back(self, member: int, connection: httpcore.HTTPConnection) -> None:
        if not connection.is_idle():
            connection.close()
            return
        idle = self._idle[member]
        idle.append(connection)
        if self._is_closed or len(idle) > self._keep:
            _close_one(idle)

    def close(self) -> None:
        """Close the connections; those in use end with their calls."""
        self._is_closed = True
        for idle in self._idle:
            while idle:
                _close_one(idle)


def _close_one(idle: deque[httpcore.HTTPConnection]) -> None:
    try:
        connection = idle.pop()
    except IndexError:  # another thread has taken it
        return
    connection.close()


def _exchange(
    connection: httpcore.HTTPConnection, request: httpcore.Request, until: float, most: int | None
) -> Answer:
    response = connection.handle_request(request)
    return response.status, _body_of(response, until, most)


def _body_of(response: httpcore.Response, until: float, most: int | None) -> bytes:
    parts, size = [], 0
    for part in response.iter_stream():
        parts.append(part)
        size += len(part)
        if most is not None and size > most:
            raise TooMuch("the answer is longer than was asked for; nothing was changed")
        if time.monotonic() > until:
            raise NoAnswer("the answer did not come to its end in time")
    response.close()
    return b"".join(parts)
