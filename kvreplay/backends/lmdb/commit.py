"""Commit a batch of changes in one LMDB transaction, and see that none fails for another's sake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lmdb

from kvreplay.backends.lmdb.files import store_error
from kvreplay.backends.lmdb.group_commit import Batch, Change, Transaction
from kvreplay.errors import OutcomeUnknownError, StoreError

if TYPE_CHECKING:
    from kvreplay.backends.lmdb.environment import Environment

__all__ = ["Committer"]


class Committer:
    """Commits batches for one environment; a :class:`CommitQueue` decides when."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __call__(self, batch: Batch) -> None:
        """Let everything land that has arrived when a transaction has begun.

        What fails before it is written is run again, each change alone, so that none fails for
        another one's sake.
        """
        failure = self._try(batch.changes, batch)
        if failure is None:
            return
        batch.committing()  # what follows may take many commits
        changes = batch.changes
        if not changes:  # no transaction has even begun
            batch.fill()
        if isinstance(failure, OutcomeUnknownError):
            for change in changes:
                change.fail(_caused(OutcomeUnknownError(*failure.args), failure.__cause__))
            return
        for change in changes:
            alone = failure if len(changes) == 1 else self._try([change])
            if alone is not None:
                change.fail(self._told(alone))

    def _try(self, changes: list[Change], batch: Batch | None = None) -> Exception | None:
        """Commit the changes, and what comes to the batch they are; return why they were not."""
        while True:
            try:
                env = self._environment.gate.enter()
            except StoreError as error:
                return error
            try:
                self._change(env, env.begin(write=True), changes, batch)
                return None
            except Exception as error:  # whatever it is, the changes' own threads raise it
                failure = error
            finally:
                self._environment.gate.leave()
            try:
                if not self._environment.repair(env, failure):
                    return failure
            except StoreError as error:  # the map cannot grow
                return error

    def _change(
        self,
        env: lmdb.Environment,
        txn: Transaction,
        changes: list[Change],
        batch: Batch | None,
    ) -> None:
        """Run and commit the changes' operations: all have landed, or none has happened."""
        try:
            if batch is not None:
                batch.fill()
            for change in changes:
                assert change.operation is not None  # a place for a transaction is not taken
                change.result = change.operation(txn)
            if batch is not None:
                batch.committing()
            self._environment.commit(env, txn)
        except BaseException as error:
            if not _is_over(txn):
                self._environment.gate.quietly(txn.abort)
                raise
            if isinstance(error, Exception):
                raise  # of the commit
            _land(changes)  # an interrupt that came right after it
            raise
        _land(changes)

    def _told(self, failure: Exception) -> Exception:
        """Say in kvreplay's terms why a change did not happen; a foreign exception stays."""
        if isinstance(failure, lmdb.Error):
            return _caused(store_error(failure, self._environment.path), failure)
        return failure


def _land(changes: Sequence[Change]) -> None:
    for change in changes:
        change.landed = True


def _is_over(txn: Transaction) -> bool:
    """Whether it was committed or aborted."""
    try:
        txn.id()
    except lmdb.Error:
        return True
    return False


def _caused(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error
