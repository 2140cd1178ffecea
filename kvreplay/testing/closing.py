"""Closing: it may be called twice, no call works after it, and it loses nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.errors import KeyNotFoundError, OutcomeUnknownError, StoreError
from kvreplay.store import MigratableKVStore
from kvreplay.testing.entries import content, every_call
from kvreplay.testing.threads import at_once

__all__ = ["ClosingTests"]


class ClosingTests:
    """A closed store raises ``StoreError`` at every call, whatever it holds."""

    def test_closed(self, store: Any) -> None:
        store.write("p", "s", "k", b"v")
        store.close()
        for call in every_call(store):
            with pytest.raises(StoreError) as caught:
                call()
            assert not isinstance(caught.value, KeyNotFoundError | OutcomeUnknownError)
        store.close()
        repr(store)

    def test_closed_keeps_what_is_durable(self, store: Any, reopen: Callable[[], Any]) -> None:
        store.write("p", "s", "k", b"v")
        store.close()
        for call in every_call(store):
            with pytest.raises(StoreError):
                call()
        assert content(reopen()) == {("p", "s", "k"): b"v"}

    def test_closed_during_a_walk(self, walkable: MigratableKVStore) -> None:
        """The walk does not end as if it had shown everything."""
        for p in ("a", "b", "c"):
            walkable.write(p, "s", "k", b"v")
        walk = walkable.list_all_keys()
        next(walk)
        walkable.close()  # type: ignore[attr-defined]  # every store has it
        seen = 1
        with contextlib.suppress(StoreError):
            for _ in walk:
                seen += 1
            assert seen == 3

    def test_context_manager(self, store: Any) -> None:
        with store as entered:
            assert entered is store
            store.write("p", "s", "k", b"v")
        with pytest.raises(StoreError):
            store.read("p", "s", "absent")

    def test_context_manager_lets_exceptions_through(self, store: Any) -> None:
        with pytest.raises(ZeroDivisionError), store:
            raise ZeroDivisionError
        with pytest.raises(StoreError):
            store.list("p", "s")

    def test_threads_that_close_at_once(self, open_again: Callable[[], Any]) -> None:
        for _ in range(20):
            store = open_again()
            store.write("p", "s", "k", b"v")
            at_once(store.close, store.close, store.close)

    def test_closing_one_object_leaves_the_others_open(
        self, store: Any, another: Callable[[], Any]
    ) -> None:
        other = another()
        store.write("p", "s", "k", b"v")
        store.close()
        assert other.read("p", "s", "k") == b"v"
        other.write("p", "s", "k", b"w")
        assert content(other) == {("p", "s", "k"): b"w"}
        third = another()
        other.close()
        assert content(third) == {("p", "s", "k"): b"w"}
