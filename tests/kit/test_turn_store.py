"""The kit over a TurnStore: here, what is changed outside of a turn is a turn of its own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from kvreplay import KVTransaction
from kvreplay.backends.memory import MemoryStore
from kvreplay.ldk import TurnStore
from kvreplay.store import ThreadBound
from kvreplay.testing import StoreContract

pytestmark = pytest.mark.any_python


class EachChangeATurn(TurnStore):
    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        with self.transaction() as txn:
            txn.write(primary_namespace, secondary_namespace, key, value)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        with self.transaction() as txn:
            txn.remove(primary_namespace, secondary_namespace, key, lazy)


class EachTransactionAPart(EachChangeATurn):
    """What it calls a transaction is a part of a part of a turn."""

    def transaction(self) -> AbstractContextManager[KVTransaction]:
        self._check_open()
        return ThreadBound(self._parts())

    def _parts(self) -> Generator[KVTransaction, None, None]:
        with ExitStack() as blocks:
            for _ in range(2):
                blocks.enter_context(super().transaction())
            yield blocks.enter_context(super().transaction())


class TurnContract(StoreContract):
    durable = False
    # In its turn a thread reads what the turn has left, and may change the store itself.
    test_a_transaction_reads_its_own_changes = None
    test_the_store_itself_is_refused_inside = None
    test_children_forked_among_busy_threads_go_on = None  # the wrapped store's own affair


class TestTurns(TurnContract):
    test_histories_agree_with_a_dictionary = None  # as below, where there are more layers

    def open(self, path: Path) -> EachChangeATurn:
        return EachChangeATurn(MemoryStore())


class TestParts(TurnContract):
    def open(self, path: Path) -> EachTransactionAPart:
        return EachTransactionAPart(MemoryStore())
