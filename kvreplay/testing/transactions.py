"""``TransactionalKVStore``: all or nothing, for one thread only; readers never see a part."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.errors import KeyNotFoundError, StoreError
from kvreplay.store import TransactionalKVStore
from kvreplay.testing.entries import content, count_up, put
from kvreplay.testing.threads import Running, at_once, elsewhere, watched_by

__all__ = ["TransactionTests"]


class TransactionTests:
    """The store's calls inside a block, which commits at its end, or is undone if it raises."""

    def test_a_transaction_commits_as_a_whole(self, transactional: TransactionalKVStore) -> None:
        transactional.write("p", "s", "goes", b"v")
        transactional.write("p", "s", "changes", b"v")
        with transactional.transaction() as txn:
            txn.write("p", "s", "comes", b"1")
            txn.remove("p", "s", "goes")
            txn.remove("p", "s", "absent")
            assert txn.check_and_put("q", "s", "changes", expected=None, value=b"2") is None
            assert txn.check_and_put("p", "s", "changes", expected=b"v", value=b"3") == b"v"
            assert txn.check_and_put("p", "s", "changes", expected=b"v", value=b"4") == b"3"
        assert content(transactional) == {
            ("p", "s", "comes"): b"1",
            ("q", "s", "changes"): b"2",
            ("p", "s", "changes"): b"3",
        }

    def test_what_is_committed_outlives_the_store_object(
        self, transactional: TransactionalKVStore, reopen: Callable[[], Any]
    ) -> None:
        transactional.write("p", "s", "goes", b"v")
        with transactional.transaction() as txn:
            txn.write("p", "s", "comes", b"1")
            txn.remove("p", "s", "goes")
        with pytest.raises(ZeroDivisionError), transactional.transaction() as txn:
            txn.write("p", "s", "undone", b"1")
            raise ZeroDivisionError
        assert content(reopen()) == {("p", "s", "comes"): b"1"}

    @pytest.mark.parametrize(
        "error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, StoreError]
    )
    def test_a_transaction_that_raises_changes_nothing(
        self, transactional: TransactionalKVStore, error: type[BaseException]
    ) -> None:
        """It does not keep the write lock either."""
        put(transactional, "k", b"v", 5)
        with pytest.raises(error), transactional.transaction() as txn:
            txn.write("p", "s", "k", b"w")
            txn.write("p", "s", "new", b"w")
            txn.remove("p", "s", "k")
            raise error
        assert content(transactional) == {("p", "s", "k"): b"v"}
        elsewhere(lambda: transactional.write("p", "s", "later", b"1"))
        assert transactional.sweep("p", 5, 5).removed == 1
        assert content(transactional) == {("p", "s", "later"): b"1"}

    def test_a_transaction_of_nothing(self, transactional: TransactionalKVStore) -> None:
        with transactional.transaction():
            pass
        with transactional.transaction() as txn:
            assert txn.list("p", "s") == []
        assert content(transactional) == {}

    def test_a_transaction_that_is_never_entered(self, transactional: TransactionalKVStore) -> None:
        block = transactional.transaction()
        elsewhere(lambda: transactional.write("p", "s", "k", b"v"))
        with block as txn:
            assert txn.read("p", "s", "k") == b"v"

    def test_a_transaction_reads_its_own_changes(self, transactional: TransactionalKVStore) -> None:
        for key in ("a", "b"):
            transactional.write("p", "s", key, b"old")
        with transactional.transaction() as txn:
            assert sorted(txn.list("p", "s")) == ["a", "b"]
            txn.write("p", "s", "a", b"new")
            txn.write("p", "s", "c", b"new")
            txn.remove("p", "s", "b")
            assert txn.read("p", "s", "a") == b"new"
            with pytest.raises(KeyNotFoundError):
                txn.read("p", "s", "b")
            assert sorted(txn.list("p", "s")) == ["a", "c"]
            txn.remove("p", "s", "c", lazy=True)
            txn.write("p", "s", "b", b"again")
            assert sorted(txn.list("p", "s")) == ["a", "b"]
            assert txn.check_and_put("p", "s", "b", expected=b"again", value=None) == b"again"
            assert txn.list("p", "s") == ["a"]
            assert txn.list("p", "") == txn.list("q", "s") == []
            assert transactional.read("p", "s", "a") == b"old", "outside, nothing has changed yet"
            assert sorted(transactional.list("p", "s")) == ["a", "b"]
            assert len(list(transactional.list_all_keys())) == 2
        assert content(transactional) == {("p", "s", "a"): b"new"}

    def test_expiry_in_a_transaction(self, transactional: TransactionalKVStore) -> None:
        put(transactional, "kept", b"v", 5)
        put(transactional, "earlier", b"v", 500)
        with transactional.transaction() as txn:
            txn.check_and_put("p", "s", "due", expected=None, value=b"v", expires_at=5)
            txn.check_and_put("p", "s", "gone", expected=None, value=b"v", expires_at=5)
            txn.check_and_put("p", "s", "gone", expected=b"v", value=None)
            txn.check_and_put("p", "s", "late", expected=None, value=b"v", expires_at=5)
            txn.check_and_put("p", "s", "late", expected=b"v", value=b"v", expires_at=500)
            txn.write("p", "s", "kept", b"v")
            txn.check_and_put("p", "s", "earlier", expected=b"v", value=b"v", expires_at=4)
        assert transactional.sweep("p", 5, 10).removed == 2
        assert sorted(transactional.list("p", "s")) == ["kept", "late"]
        assert transactional.sweep("p", 500, 10).removed == 1

    def test_the_store_itself_is_refused_inside(self, transactional: Any) -> None:
        with transactional.transaction() as txn:
            txn.write("p", "s", "k", b"v")
            calls: list[Callable[[], object]] = [
                lambda: transactional.write("p", "s", "x", b"1"),
                lambda: transactional.remove("p", "s", "x"),
                lambda: transactional.check_and_put("p", "s", "x", expected=None, value=b"1"),
                lambda: transactional.sweep("p", 5, 1),
                lambda: transactional.transaction().__enter__(),
                lambda: transactional.close(),
            ]
            for call in calls:
                with pytest.raises(StoreError):
                    call()
            with pytest.raises(KeyNotFoundError):
                transactional.read("p", "s", "k")
        assert content(transactional) == {("p", "s", "k"): b"v"}
        transactional.write("p", "s", "x", b"1")
        assert sorted(transactional.list("p", "s")) == ["k", "x"]

    @pytest.mark.parametrize("raises", [False, True])
    def test_use_after_the_end_is_refused(
        self, transactional: TransactionalKVStore, raises: bool
    ) -> None:
        with contextlib.suppress(ZeroDivisionError), transactional.transaction() as txn:
            txn.write("p", "s", "k", b"v")
            if raises:
                raise ZeroDivisionError
        before = content(transactional)
        assert before == ({} if raises else {("p", "s", "k"): b"v"})
        for call in _calls_in(txn):
            with pytest.raises(StoreError) as caught:
                call()
            assert not isinstance(caught.value, KeyNotFoundError)
        assert content(transactional) == before

    def test_a_transaction_belongs_to_its_thread(self, transactional: TransactionalKVStore) -> None:
        block = transactional.transaction()
        txn = block.__enter__()
        txn.write("p", "s", "k", b"v")
        for call in [*_calls_in(txn), lambda: block.__exit__(None, None, None)]:
            with pytest.raises(StoreError):
                elsewhere(call)
        assert elsewhere(lambda: transactional.list("p", "s")) == []
        assert txn.read("p", "s", "k") == b"v", "it is still open where it was begun"
        block.__exit__(None, None, None)
        assert content(transactional) == {("p", "s", "k"): b"v"}
        elsewhere(lambda: transactional.write("p", "s", "other", b"v"))

    def test_readers_are_not_held_up(self, transactional: TransactionalKVStore) -> None:
        transactional.write("p", "s", "k", b"old")
        with transactional.transaction() as txn:
            txn.write("p", "s", "k", b"new")
            assert elsewhere(lambda: transactional.read("p", "s", "k")) == b"old"
            assert elsewhere(lambda: transactional.list("p", "s")) == ["k"]
            assert len(elsewhere(lambda: list(transactional.list_all_keys()))) == 1
        assert elsewhere(lambda: transactional.read("p", "s", "k")) == b"new"

    def test_readers_see_all_or_none(self, transactional: TransactionalKVStore) -> None:
        """What is read second is never older than what was read first."""
        for key in ("a", "b"):
            transactional.write("p", "s", key, b"0")

        def look(first: str, second: str) -> None:
            one = int(transactional.read("p", "s", first))
            assert one <= int(transactional.read("p", "s", second))

        with watched_by(lambda: look("a", "b"), lambda: look("b", "a")):
            for n in range(1, 200):
                with transactional.transaction() as txn:
                    txn.write("p", "s", "a", str(n).encode())
                    txn.write("p", "s", "b", str(n).encode())

    def test_a_writer_waits_for_the_transaction(self, transactional: TransactionalKVStore) -> None:
        transactional.write("p", "s", "n", b"0")
        with transactional.transaction() as txn:
            writer = Running(
                lambda: transactional.check_and_put("p", "s", "n", expected=b"1", value=b"2")
            )
            sweeper = Running(lambda: transactional.sweep("p", 5, 5))
            txn.write("p", "s", "n", b"1")
            assert not writer.over
        assert writer.result() == b"1"
        sweeper.result()
        assert transactional.read("p", "s", "n") == b"2"

    def test_threads_that_transact(self, transactional: TransactionalKVStore) -> None:
        """Transactions and single changes count up together, and no count is lost."""
        transactional.write("p", "s", "n", b"0")

        def transact() -> None:
            for _ in range(25):
                with transactional.transaction() as txn:
                    txn.write("p", "s", "n", str(int(txn.read("p", "s", "n")) + 1).encode())

        at_once(transact, transact, lambda: count_up(transactional, 25))
        assert transactional.read("p", "s", "n") == b"75"

    def test_closing_waits_for_another_threads_transaction(self, transactional: Any) -> None:
        with transactional.transaction() as txn:
            closing = Running(transactional.close)
            txn.write("p", "s", "k", b"v")
        closing.result()
        with pytest.raises(StoreError):
            transactional.read("p", "s", "k")

    def test_a_transaction_that_closing_waited_for_is_kept(
        self, transactional: Any, reopen: Callable[[], Any]
    ) -> None:
        with transactional.transaction() as txn:
            closing = Running(transactional.close)
            txn.write("p", "s", "k", b"v")
        closing.result()
        assert content(reopen()) == {("p", "s", "k"): b"v"}


def _calls_in(txn: Any) -> list[Callable[[], object]]:
    return [
        lambda: txn.read("p", "s", "k"),
        lambda: txn.write("p", "s", "k", b"w"),
        lambda: txn.remove("p", "s", "k"),
        lambda: txn.list("p", "s"),
        lambda: txn.check_and_put("p", "s", "k", expected=b"v", value=b"w"),
        lambda: txn.check_and_put("p", "s", "k", expected=b"x", value=b"w"),
    ]
