"""One round of an LDK node's messages and events is one transaction: a *turn*.

LDK writes its monitors, its manager and its payments in calls of their own. A node that is killed
between two of them comes back with a manager that is older than a monitor, and force-closes the
channel. So let everything durable that one round causes be one commit, and let what the node says
to its peers leave after it::

    store = TurnStore(open_store("lmdb:///var/lib/node/data"))
    # LDK's persisters are given ``store`` as their KVStoreSync.
    with store.turn():
        peer_manager.read_event(descriptor, data)  # LDK writes; what it wants to send is queued:
        store.after_commit(partial(connection.sendall, answer))
        handle_events()
        persist_manager()
    # Here all of it is stored, and then sent. After a kill all of it is there, or none.

After a restart LDK repeats events. ``Replay(store, "events", ttl=...)`` answers them from the
store: inside a turn ``execute_in_transaction`` commits with the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from os import getpid
from threading import get_ident
from typing import Any, Final, cast

from kvreplay.errors import ConfigError, KeyNotFoundError, StoreError
from kvreplay.store import (
    Closing,
    ExpiringKVStore,
    KVTransaction,
    SweepResult,
    ThreadBound,
    TransactionalKVStore,
    check_change,
    check_name,
    check_value,
    missing_methods,
)
from kvreplay.store.locks import require_room

__all__ = ["TurnStore"]

Action = Callable[[], object]
Actions = list[Action]
Address = tuple[str, str, str]
Logged = list[Callable[[KVTransaction], object]]

_ROOM: Final = 24  # frames of the stack


class TurnStore(Closing):
    """A store whose changes are made in turns: give it to the node, and to its ``Replay``.

    A turn belongs to the thread that began it, so do not await in one. Another thread is outside of
    it: it waits to begin a turn of its own, and reads what is committed.

    Outside of a turn ``write`` and ``remove`` are refused, since a change that is apart from the
    others is what a turn is there to prevent. ``check_and_put`` is not: it is one durable step by
    itself, and ``Replay.execute`` makes its claim and its answer by it.

    A forked child is outside of its parent's turn, and cannot commit it.

    What ``Replay`` answers inside a turn lasts if the turn commits. Until then no other thread is
    given it; ``on_event`` is told at once. A request inside a turn waits for no other run of its
    key, since none could end meanwhile: it is refused with ``InFlightError``.

    Args:
        inner: a :class:`~kvreplay.TransactionalKVStore`. It stays open when this one is closed.

    Raises:
        ConfigError: the store has no transactions.
    """

    def __init__(self, inner: ExpiringKVStore) -> None:
        if missing := missing_methods(inner, TransactionalKVStore):
            raise ConfigError(
                "TurnStore needs a store that is TransactionalKVStore, and"
                f" {type(inner).__name__} has no {', no '.join(missing)}"
            )
        self._inner = cast(TransactionalKVStore, inner)
        self._turns: dict[int, _Turn] = {}  # by thread; a store with one write lock has one

    def __repr__(self) -> str:
        return f"<TurnStore over {type(self._inner).__name__}>"

    @property
    def identity(self) -> Any:
        """Equal to that of the wrapped store; of one that has none, different from all others."""
        return getattr(self._inner, "identity", None) or id(self._inner)

    @property
    def owners_file(self) -> str | None:
        """That of the wrapped store, if it has one; see :mod:`kvreplay.store.contract`."""
        return getattr(self._inner, "owners_file", None)

    @property
    def reads_are_local(self) -> bool:
        """Whether the wrapped store says so; see :mod:`kvreplay.store.contract`."""
        return bool(getattr(self._inner, "reads_are_local", False))

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is in a turn; see :mod:`kvreplay.store.contract`."""
        return self._own_turn() is not None

    # Turns.

    def turn(self) -> AbstractContextManager[KVTransaction]:
        """Let all that this thread changes in the block be one commit, at its end.

        The block holds the write lock of the wrapped store, so it must not wait for the network.
        If it raises, or if the commit fails, all is undone, and nothing of :meth:`after_commit`
        runs. The error comes out.

        Once the commit has returned and the lock is free, what :meth:`after_commit` was given runs
        on this thread, in order. The commit has happened by then, so all of it runs, even if one
        raises. The error comes out afterwards: one as it is, several as an ``ExceptionGroup``. Only
        what is no ``Exception`` ends it at once, and so may an exception out of a signal handler.
        A killed process may have run a part of it, or nothing.

        Raises:
            StoreError: this thread is in a turn already; or the wrapped store's own. Nothing was
                changed.
            OutcomeUnknownError: the commit may or may not have happened; nothing of
                :meth:`after_commit` has run.
        """
        return ThreadBound(self._begin_turn())

    def transaction(self) -> AbstractContextManager[KVTransaction]:
        """Outside of a turn: a turn, as :meth:`turn`. Inside: a part of the turn.

        A part is undone alone if its block raises, with what it gave to :meth:`after_commit`.
        Otherwise it is kept if the turn commits. Parts may have parts; they end in reverse order.
        While a part is open, the calls of this store go to it, and the transactions around it
        refuse theirs.

        A part's changes join those around it at its end. So what only the wrapped store can refuse,
        such as a change for which the disk has no room, is refused there. If that happens, or an
        interrupt comes in that very moment, the turn can no longer be committed.
        """
        return ThreadBound(self._begin_transaction())

    def after_commit(self, action: Action) -> None:
        """Run this after the turn's commit, in the order of these calls; see :meth:`turn`.

        Where ``Replay.execute_in_transaction`` is the turn, what this raises comes out of it. The
        answer is stored by then, and a retry gets it.

        Args:
            action: called without arguments, on the thread of the turn. It is outside of the turn.

        Raises:
            StoreError: this thread is in no turn. What a node says then would tell of something
                that is not stored.
        """
        level = self._level()
        if level is None:
            raise StoreError(
                "this thread is in no turn, so there is no commit to wait for: nothing was queued;"
                " call it inside of `with store.turn():`, or run the action yourself"
            )
        level.queue(action)

    # The store's calls.

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value, in a turn as it has left it; see :meth:`kvreplay.KVStoreSync.read`."""
        return (self._level() or self._inner).read(primary_namespace, secondary_namespace, key)

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace, with the turn's commit; refused outside of a turn."""
        self._inside().write(primary_namespace, secondary_namespace, key, value)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present, with the turn's commit; refused outside of a turn."""
        self._inside().remove(primary_namespace, secondary_namespace, key, lazy)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the keys, in a turn as it has left them; see :meth:`kvreplay.KVStoreSync.list`."""
        return (self._level() or self._inner).list(primary_namespace, secondary_namespace)

    def list_all_keys(self) -> Iterator[Address]:
        """Walk the wrapped store; refused inside a turn, whose changes it would not show."""
        self._refuse_inside("walk the store")
        return self._inner.list_all_keys()

    def check_and_put(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        key: str,
        *,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None = None,
    ) -> bytes | None:
        """Outside of a turn: one durable step of the wrapped store. Inside: a change of the turn.

        Raises:
            StoreError: inside a turn, a put without ``expires_at`` is refused. It is how ``Replay``
                claims a key before the handler runs, and such a claim would not be durable by then.
        """
        level = self._level()
        if level is not None and value is not None and expires_at is None:
            raise StoreError(
                "a claim, or another check-and-put without expires_at, cannot be made durable"
                " inside a turn; nothing was changed: use Replay.execute_in_transaction there, or"
                " execute outside of the turn"
            )
        return (level or self._inner).check_and_put(
            primary_namespace,
            secondary_namespace,
            key,
            expected=expected,
            value=value,
            expires_at=expires_at,
        )

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """Sweep the wrapped store, in commits of its own; refused inside a turn."""
        self._refuse_inside("sweep")
        return self._inner.sweep(primary_namespace, now, limit)

    def close(self) -> None:
        """Refuse every further call. A turn of another thread that is open goes on to its end.

        Raises:
            StoreError: this thread is in a turn; nothing was closed.
        """
        if self._own_turn() is not None:
            self._refuse_inside("close the store")
        super().close()

    # Where this thread is.

    def _own_turn(self) -> _Turn | None:
        """Return this thread's turn; a forked child has none, whatever its parent has."""
        turn = self._turns.get(get_ident())
        return turn if turn is not None and turn.is_mine else None

    def _level(self) -> _Level | None:
        """Return what this thread's calls go to; ``None``: it is outside of a turn."""
        turn = self._own_turn()
        if turn is None:
            self._check_open()
            return None
        return turn.innermost

    def _inside(self) -> _Level:
        level = self._level()
        if level is None:
            raise StoreError(
                "this thread is in no turn, and a node whose changes are not in one commit may"
                " come back from a kill with only some of them: nothing was changed; do it inside"
                " of `with store.turn():`"
            )
        return level

    def _refuse_inside(self, what: str) -> None:
        if self._level() is not None:
            raise StoreError(
                f"this thread is in a turn, inside of which it cannot {what}: nothing was done; do"
                " it before the turn or after it"
            )

    # The blocks. Each begins with operators, and gives back by operators.

    def _begin_turn(self) -> Generator[KVTransaction, None, None]:
        if self._level() is not None:
            raise StoreError(
                "this thread is in a turn already: nothing was begun; take transaction() for a part"
                " of it"
            )
        yield from self._whole()

    def _begin_transaction(self) -> Generator[KVTransaction, None, None]:
        level = self._level()
        yield from self._whole() if level is None else _part_of(level)

    def _whole(self) -> Generator[KVTransaction, None, None]:
        require_room(_ROOM)  # to undo it, through the blocks of both stores
        turn = _Turn()
        with self._inner.transaction() as transaction:
            whole = _Level(turn, transaction)
            try:
                turn.innermost = whole
                self._turns[turn.thread] = turn
                yield whole
                turn.check(whole)
            finally:
                whole.ended = True
                turns = self._turns
                if turn.thread in turns and turns[turn.thread] is turn:
                    del turns[turn.thread]
        _run_all(whole.actions)


class _Turn:
    """The turn of one thread of one process."""

    def __init__(self) -> None:
        self.thread = get_ident()
        self._pid = getpid()
        self.innermost: _Level | None = None
        self.is_broken = False  # a part is only half in what is around it

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread began it, in this process."""
        return self.thread == get_ident() and self._pid == getpid()

    def check(self, level: _Level) -> None:
        """Raise a StoreError if this level cannot be used here and now."""
        if not self.is_mine:
            raise StoreError(
                "a turn belongs to the thread that began it, and not to a forked child; nothing was"
                " changed"
            )
        if level.ended:
            raise StoreError("this transaction has ended; nothing was done")
        if self.is_broken:
            raise StoreError(
                "a part of this turn could not be joined to it, so the turn cannot go on: leave its"
                " block, and nothing of it is committed"
            )
        if self.innermost is not level:
            raise StoreError(
                "a part of this transaction is open: end it first, or change the store through it;"
                " nothing was done"
            )


class _Level:
    """What a block is given: the calls of a turn or of a part of it, while it is the innermost."""

    def __init__(self, turn: _Turn, calls: KVTransaction) -> None:
        self.turn = turn
        self.calls = calls
        self.actions: Actions = []
        self.ended = False

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        self.turn.check(self)
        return self.calls.read(primary_namespace, secondary_namespace, key)

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        self.turn.check(self)
        self.calls.write(primary_namespace, secondary_namespace, key, value)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        self.turn.check(self)
        self.calls.remove(primary_namespace, secondary_namespace, key, lazy)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        self.turn.check(self)
        return self.calls.list(primary_namespace, secondary_namespace)

    def check_and_put(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        key: str,
        *,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None = None,
    ) -> bytes | None:
        self.turn.check(self)
        return self.calls.check_and_put(
            primary_namespace,
            secondary_namespace,
            key,
            expected=expected,
            value=value,
            expires_at=expires_at,
        )

    def queue(self, action: Action) -> None:
        """Keep this for after the commit."""
        self.turn.check(self)
        self.actions += [action]


def _part_of(level: _Level) -> Generator[KVTransaction, None, None]:
    """Hold a part of a level; its changes and actions join the level's at its end."""
    turn = level.turn
    turn.check(level)
    overlay = _Overlay(level.calls)
    part = _Level(turn, overlay)
    try:
        turn.innermost = part
        yield part
        turn.check(part)
        turn.is_broken = True  # until all of it is there
        overlay.join()
        level.actions += part.actions
        turn.is_broken = False
    finally:
        part.ended = True
        if turn.innermost is part:
            turn.innermost = level
        else:  # a part of it has not ended
            turn.is_broken = True


class _Overlay:
    """Changes over a transaction, which knows nothing of them until they join it."""

    def __init__(self, below: KVTransaction) -> None:
        self._below = below
        self._changes: dict[Address, bytes | None] = {}
        self._log: Logged = []  # written first, by one operator, and then ``_changes`` by another

    def join(self) -> None:
        """Make the same calls below, in the same order."""
        for change in self._log:
            change(self._below)

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        found = self._find(primary_namespace, secondary_namespace, key)
        if found is None:
            raise KeyNotFoundError("no entry under that name")
        return found

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        address = (primary_namespace, secondary_namespace, key)
        self._log += [lambda below: below.write(*address, value)]
        self._changes[address] = value

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        check_name(primary_namespace, secondary_namespace, key)
        address = (primary_namespace, secondary_namespace, key)
        self._log += [lambda below: below.remove(*address, lazy)]
        self._changes[address] = None

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        keys = dict.fromkeys(self._below.list(primary_namespace, secondary_namespace))
        for (primary, secondary, key), value in self._changes.items():
            if (primary, secondary) == (primary_namespace, secondary_namespace):
                if value is None:
                    keys.pop(key, None)
                else:
                    keys[key] = None
        return [*keys]

    def check_and_put(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        key: str,
        *,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None = None,
    ) -> bytes | None:
        check_name(primary_namespace, secondary_namespace, key)
        check_change(expected, value, expires_at)
        address = (primary_namespace, secondary_namespace, key)
        found = self._find(*address)
        if found == expected:
            self._log += [
                lambda below: below.check_and_put(
                    *address, expected=expected, value=value, expires_at=expires_at
                )
            ]
            self._changes[address] = value
        return found

    def _find(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes | None:
        check_name(primary_namespace, secondary_namespace, key)
        address = (primary_namespace, secondary_namespace, key)
        if address in self._changes:
            return self._changes[address]
        try:
            return self._below.read(*address)
        except KeyNotFoundError:
            return None


def _run_all(actions: Sequence[Action]) -> None:
    """Run each, whatever the others raise; then raise that."""
    errors: list[Exception] = []
    try:
        for action in actions:
            try:
                action()
            except Exception as error:  # the caller's own, whatever it is
                errors.append(error)
        if len(errors) > 1:
            raise ExceptionGroup(
                f"the turn is committed; {len(errors)} of {len(actions)} actions that were to run"
                " after the commit raised",
                errors,
            )
        if errors:
            raise errors[0]
    finally:
        del errors  # their tracebacks hold this frame
