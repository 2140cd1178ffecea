"""How LMDB's writes are committed: what the queue of a store commits by.

It is given a handle, which opens, checks and repairs the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import lmdb

from kvreplay.backends._support import OwnTransaction, caused
from kvreplay.backends.lazy_removals import LazyRemovals
from kvreplay.backends.lmdb import entries
from kvreplay.backends.lmdb.errors import store_error
from kvreplay.backends.lmdb.handle import Handle, Transaction
from kvreplay.backends.pending import UNKNOWN, Batch
from kvreplay.errors import OutcomeUnknownError, StoreError

__all__ = ["Committer"]

_FAILURES: Final = (lmdb.Error, StoreError)
"""What an operation raises. Anything else comes from outside: an interrupt of the leader."""


class Committer:
    """Commits to one environment; see :class:`kvreplay.backends.group_commit.Committer`."""

    is_untidy: Final = False

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._turn = handle.turn
        self.lead = handle.turn.lead
        self.busy: dict[int, bool] = {}
        self.what = handle.turn.what
        self.removals = LazyRemovals(partial(entries.delete_if, handle))

    @property
    def block(self) -> OwnTransaction | None:
        """The caller's transaction that is open, if there is one."""
        return self._handle.block

    def held_by_another(self) -> str:
        """Return which other process has the turn, for a message."""
        return self._turn.held_by_another()

    def take_turn(self, until: float, bound: float, before_waiting: Callable[[], None]) -> None:
        """Take the lock among processes, and look whether the store is still there."""
        lost = self._handle.drop_lost
        if not self._turn.take(until, bound, before_waiting=before_waiting, when_lost=lost):
            self._handle.confirm()

    def give_back(self, *, brief: bool = False) -> None:
        """Give the turn back, if it was taken."""
        self._turn.give_back(brief=brief)

    def commit(
        self, batch: Batch, run: Callable[[Any], None], until: float
    ) -> tuple[Exception | None, bool]:
        """Commit what ``run`` does; it may be tried again after a repair, or a reopening."""
        handle = self._handle
        try:
            env = handle.opened()
            with handle.gate.own():
                if handle.gate.handle is not env:
                    return None, True
                failure = self._commit(env, batch, run)
            return failure, failure is not None and handle.repair(env, failure)
        except StoreError as error:  # it cannot be opened, or its map cannot grow
            return error, False

    def _commit(
        self, env: lmdb.Environment, batch: Batch, run: Callable[[Transaction], None]
    ) -> Exception | None:
        try:
            txn = env.begin(write=True)
        except lmdb.Error as error:
            return error
        failure: Exception | None = None
        try:
            self._handle.check(env, txn)
            run(txn)
            try:
                self._handle.commit(txn)
                batch.fate.committed = True
            except _FAILURES as error:
                failure = UNKNOWN  # until more is known
                failure = self._handle.failed_commit(env, error)
        except _FAILURES as error:  # an operation's
            failure = error
        except BaseException:
            if failure is None:  # perhaps it came right after the commit
                batch.fate.committed = _is_over(txn)
            raise
        finally:
            if isinstance(failure, OutcomeUnknownError):
                batch.fate.unknown = failure
            if not batch.fate.committed:
                try:
                    self._handle.gate.quietly(txn.abort)
                except BaseException:
                    txn.abort()
                    raise
        return failure

    def explained(self, failure: Exception) -> Exception:
        """Say in kvreplay's terms why a write did not happen."""
        if isinstance(failure, lmdb.Error):
            return caused(store_error(failure, self._handle.path), failure)
        return failure

    def tidy(self) -> None:
        """Do nothing: LMDB reuses its pages by itself."""

    def close(self) -> None:
        """Close the file of the lock among processes; the next write opens it again."""
        try:
            if self.lead.acquire(blocking=False):  # else a write is under way, which needs it
                self._turn.close()
        finally:
            try:
                self.lead.release()
            except RuntimeError:
                pass  # it was not taken


def _is_over(txn: Transaction) -> bool:
    """Whether it was committed or aborted."""
    try:
        txn.id()
    except lmdb.Error:
        return True
    return False
