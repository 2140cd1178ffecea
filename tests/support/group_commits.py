"""Changes that wait for LMDB's group commit, in an order that a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from kvreplay import Change
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.errors import KeyNotFoundError
from kvreplay.store import ThreadBound
from support.lmdb_stores import environment_of
from support.replaying import Caller
from support.waiting import PATIENCE, until

__all__ = ["change", "found", "leading", "putting", "queue_of", "queued", "together", "waiting"]


def queue_of(store: LMDBStore) -> Any:
    """The queue of the changes that wait."""
    return environment_of(store)._queue


def leading(store: LMDBStore) -> ThreadBound[None]:
    """A block in which this thread leads, and nobody else commits; there is no transaction."""

    def block() -> Generator[None, None, None]:
        yield

    return ThreadBound(queue_of(store).alone(block(), bound=PATIENCE))


def waiting(store: LMDBStore) -> int:
    return len(queue_of(store)._waiting)


def queued(store: LMDBStore, *calls: Callable[[], Any]) -> list[Caller]:
    """Make each call on a thread of its own, and have them wait in this order.

    For a block in which this thread holds the writer's turn.
    """
    callers = []
    for call in calls:
        before = waiting(store)
        callers.append(Caller(call))
        until(lambda before=before: waiting(store) == before + 1)  # type: ignore[misc]
    return callers


def together(store: LMDBStore, *calls: Callable[[], Any]) -> list[Caller]:
    """Make the calls so that one batch holds them all; their results are there afterwards."""
    with store.transaction():
        callers = queued(store, *calls)
    for caller in callers:
        caller.end()
    return callers


def putting(store: LMDBStore, key: str, expected: bytes | None, value: bytes | None) -> Any:
    """A call that checks and puts."""
    return lambda: store.check_and_put("p", "s", key, expected=expected, value=value)


def change(key: str, expected: bytes | None, value: bytes | None) -> Change:
    return Change("p", "s", key, expected, value)


def found(store: Any, key: str) -> bytes | None:
    try:
        value: bytes = store.read("p", "s", key)
    except KeyNotFoundError:
        return None
    return value
