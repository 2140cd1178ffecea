"""Lazy removals: a process remembers them, and its next write transaction makes them.

What is always true:

* A removal is remembered with the *identity* of the entry that stood there: a value that no other
  state of that entry ever has, whoever writes it. Only an entry that still has it is hidden, or
  removed. So a later write is never lost, even one of the same bytes by another process.
* Who reads looks at what is pending first, and only then at the store. If a commit comes in
  between, the entry that it has removed, or put, has not the identity that was noted.
* A write transaction of this process first makes the removals that are pending when it *boards*
  them. They are forgotten once it is committed. Until then, and if it is undone, they are pending.
  To forget them late does no harm, since their identity is gone.
* No write fails because of a lazy removal. A transaction that fails is tried again without those of
  entries that it does not change. They stay pending.
* A removal is never remembered while a transaction of this process is under way that may read or
  change its entry and has not boarded it: neither would be the first then. It is made at once
  instead, as a change of its own. A thread is *coming* from before it looks at the entry until it
  has noted what it found. A transaction that boards meanwhile turns it away.
* The lock is held for moments, and nobody waits for anything else while it holds it.

No payload is kept. A process that ends without closing its store loses what is pending: the entries
are simply still there. A forked child has none, since it makes its own of all this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from kvreplay.backends._support import caused
from kvreplay.errors import OutcomeUnknownError, StoreError

__all__ = ["EVERYWHERE", "MOST", "LazyRemovals", "not_removed"]

MOST: Final = 1000
"""How many are pending at most. One more is made at once, and its commit makes the others too."""


class Write(Protocol):
    """A write of a transaction."""

    address: Any
    """Of the only entry that it reads and changes; ``None``: it may be any."""


class _Anywhere:
    address = None


EVERYWHERE: Final = (_Anywhere(),)
"""The writes of a transaction that may read and change any entry."""


# Loops of what is done under the lock are functions of their own, as in group_commit.py.


def _changes(writes: Sequence[Write], address: Any) -> bool:
    return any(write.address is None or write.address == address for write in writes)


def _may_change(flying: Mapping[object, Sequence[Write]], address: Any) -> bool:
    return any(_changes(writes, address) for writes in list(flying.values()))


def _turn_away(coming: dict[object, Any], writes: Sequence[Write]) -> None:
    for own, address in list(coming.items()):
        if _changes(writes, address):
            coming.pop(own, None)


def _forget(pending: dict[Any, Any], made: Mapping[Any, Any]) -> None:
    for address, identity in made.items():
        if address in pending and pending[address] == identity:
            del pending[address]


class LazyRemovals:
    """The lazy removals of one store that this process has promised and not made yet.

    Args:
        make: ``make(address, identity, txn)`` removes an entry in a transaction of the engine's,
            if it is there with that identity.
    """

    __slots__ = ("_coming", "_lock", "_make", "flying", "pending")

    def __init__(self, make: Callable[[Any, Any, Any], object]) -> None:
        self.pending: dict[Any, Any] = {}  # the identity at each address
        self.flying: dict[object, Sequence[Write]] = {}  # the transactions under way
        self._coming: dict[object, Any] = {}  # the address that each thread looks at
        self._lock = threading.RLock()
        self._make = make

    # Who removes.

    def remember(
        self, address: Any, identity_at: Callable[[Any], Any], closing: Sequence[bool]
    ) -> bool:
        """Remember to remove what stands at an address; say if it must be done at once instead.

        Args:
            identity_at: looks at the store; ``None`` if nothing stands there.
            closing: not empty if the caller's store is being closed; see :meth:`seal`.

        Returns:
            Whether it is remembered, or nothing stands there.
        """
        own = object()
        try:
            return self._come(own, address) and self._note(
                own, address, identity_at(address), closing
            )
        finally:
            self._coming.pop(own, None)

    def _come(self, own: object, address: Any) -> bool:
        with self._lock:
            if len(self.pending) >= MOST or _may_change(self.flying, address):
                return False
            self._coming[own] = address
            return True

    def _note(self, own: object, address: Any, identity: Any, closing: Sequence[bool]) -> bool:
        with self._lock:
            if own not in self._coming or closing:
                return False
            if identity is not None:
                self.pending[address] = identity
            return True

    def seal(self, closing: list[bool]) -> None:
        """Remember nothing more for the store that is being closed."""
        with self._lock:
            closing.append(True)

    # Who commits.

    def board(
        self, own: object, writes: Sequence[Write], *, own_only: bool = False
    ) -> dict[Any, Any]:
        """Return what a transaction that has begun must make first.

        The transaction is among ``flying`` from now on, under ``own``. Whoever has boarded takes it
        out by one C call, once it is committed or undone.

        Args:
            writes: what is in it.
            own_only: take only the removals of entries that it changes.
        """
        with self._lock:
            self.flying[own] = writes
            if self._coming:
                _turn_away(self._coming, writes)
            boarded = self.pending.copy()
        if own_only:
            return {each: boarded[each] for each in boarded if _changes(writes, each)}
        return boarded

    def make(self, boarded: Mapping[Any, Any], txn: Any) -> None:
        """Make them in a transaction."""
        for address, identity in boarded.items():
            self._make(address, identity, txn)

    def forget(self, boarded: Mapping[Any, Any]) -> None:
        """Forget what is committed."""
        with self._lock:
            _forget(self.pending, boarded)


def not_removed(removals: LazyRemovals, failure: StoreError) -> StoreError:
    """Return the error of a store that was closed, and could not make its lazy removals first."""
    still = "may still be" if isinstance(failure, OutcomeUnknownError) else "are still"
    count = len(removals.pending)
    return caused(
        type(failure)(
            f"the store is closed, but {count} entries that were removed lazily {still} there:"
            " they could not be removed, and nothing else was changed; open the store and remove"
            f" them again ({failure})"
        ),
        failure,
    )
