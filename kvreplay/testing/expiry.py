"""``ExpiringKVStore``: a sweep removes what is due, and nothing that was refreshed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from kvreplay.store import ExpiringKVStore, SweepResult
from kvreplay.testing.entries import content, put
from kvreplay.testing.threads import at_once, watched_by

__all__ = ["ExpiryTests"]

T = TypeVar("T")

LAST = 2**63 - 1

NEVER_DUE = ("without an expiry", "by a write")
UNTIL_500 = (
    *("by another value", "by an equal value", "after a removal", "after a deletion"),
    "after an earlier expiry",
)


class ExpiryTests:
    """An entry's last change says when it is due. It is visible until a sweep removes it."""

    def test_a_sweep_removes_what_is_due_and_nothing_else(self, expiring: ExpiringKVStore) -> None:
        for at in (0, 1, 99, 100, 101, 10**13, LAST):
            put(expiring, f"at-{at}", b"v", at)
        expiring.write("p", "s", "never", b"v")
        put(expiring, "never-too", b"v", None)
        put(expiring, "at-0", b"v", 0, primary="q")
        assert expiring.sweep("p", -1, 10) == SweepResult(0, 0, False)
        assert expiring.sweep("p", 100, 10) == SweepResult(4, 4, False)
        late = {"at-101", f"at-{10**13}", f"at-{LAST}", "never", "never-too"}
        assert set(expiring.list("p", "s")) == late
        assert expiring.list("q", "s") == ["at-0"]
        assert expiring.sweep("p", 100, 10) == SweepResult(0, 0, False)
        assert expiring.sweep("p", LAST - 1, 10) == SweepResult(2, 2, False)
        assert expiring.sweep("p", LAST, 10) == SweepResult(1, 1, False)
        assert expiring.sweep("p", 2**70, 10) == SweepResult(0, 0, False)
        assert sorted(expiring.list("p", "s")) == ["never", "never-too"]
        assert expiring.sweep("q", 0, 10) == SweepResult(1, 1, False)
        assert expiring.sweep("unknown", LAST, 10) == SweepResult(0, 0, False)

    def test_a_sweep_of_the_empty_namespace(self, expiring: ExpiringKVStore) -> None:
        expiring.check_and_put("", "", "k", expected=None, value=b"v", expires_at=5)
        put(expiring, "k", b"v", 5)
        assert expiring.sweep("", 5, 10) == SweepResult(1, 1, False)
        assert content(expiring) == {("p", "s", "k"): b"v"}

    def test_a_sweep_crosses_secondary_namespaces(self, expiring: ExpiringKVStore) -> None:
        for s in ("", "a", "b"):
            expiring.check_and_put("p", s, "k", expected=None, value=b"v", expires_at=5)
        assert expiring.sweep("p", 5, 10) == SweepResult(3, 3, False)
        assert content(expiring) == {}

    def test_read_never_hides_an_entry(self, expiring: ExpiringKVStore) -> None:
        put(expiring, "k", b"v", 0)
        assert expiring.read("p", "s", "k") == b"v"
        assert expiring.list("p", "s") == ["k"]
        assert content(expiring) == {("p", "s", "k"): b"v"}
        assert expiring.check_and_put("p", "s", "k", expected=None, value=b"w") == b"v"

    def test_a_sweep_is_bounded(self, expiring: ExpiringKVStore) -> None:
        for n in range(7):
            put(expiring, f"due-{n}", b"v", n)
        put(expiring, "live", b"v", 1000)
        for left in (4, 1):
            assert expiring.sweep("p", 100, 3) == SweepResult(3, 3, True)
            assert len(expiring.list("p", "s")) == left + 1
        assert expiring.sweep("p", 100, 3) == SweepResult(1, 1, False)
        assert expiring.list("p", "s") == ["live"]

    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 1000])
    def test_a_sweep_in_steps_comes_to_an_end(self, expiring: ExpiringKVStore, limit: int) -> None:
        for n in range(6):
            put(expiring, f"due-{n}", b"v", 5)
        removed, steps, more = 0, 0, True
        while more:
            result = expiring.sweep("p", 5, limit)
            assert result.removed <= result.visited <= limit
            removed, steps, more = removed + result.removed, steps + 1, result.more
        assert removed == 6
        assert steps <= -(-6 // limit) + 1
        assert content(expiring) == {}

    @pytest.mark.parametrize("how", [*NEVER_DUE, *UNTIL_500])
    def test_a_refreshed_entry_stays(self, expiring: ExpiringKVStore, how: str) -> None:
        put(expiring, "k", b"v", 5)
        put(expiring, "due", b"v", 5)
        _refresh(expiring, how)
        assert expiring.sweep("p", 499, 10).removed == 1
        assert expiring.list("p", "s") == ["k"]
        assert expiring.sweep("p", 499, 10).removed == 0
        assert expiring.sweep("p", 500, 10).removed == (how in UNTIL_500)
        assert expiring.list("p", "s") == ([] if how in UNTIL_500 else ["k"])

    def test_an_equal_value_may_get_an_earlier_expiry(self, expiring: ExpiringKVStore) -> None:
        put(expiring, "k", b"v", 500)
        put(expiring, "k", b"v", 5)
        assert expiring.sweep("p", 5, 10).removed == 1
        put(expiring, "never", b"v", None)
        put(expiring, "never", b"v", 5)
        assert expiring.sweep("p", 5, 10).removed == 1
        assert content(expiring) == {}

    def test_a_refused_change_moves_no_expiry(self, expiring: ExpiringKVStore) -> None:
        put(expiring, "due", b"v", 5)
        put(expiring, "late", b"v", 500)
        for key, expires_at in [("due", 500), ("due", None), ("late", 5)]:
            for expected in (b"x", None):
                found = expiring.check_and_put(
                    "p", "s", key, expected=expected, value=b"v", expires_at=expires_at
                )
                assert found == b"v"
        assert expiring.sweep("p", 5, 10).removed == 1
        assert expiring.list("p", "s") == ["late"]

    def test_a_removed_entry_leaves_nothing_due(self, expiring: ExpiringKVStore) -> None:
        for how in ("remove", "remove lazily", "delete"):
            put(expiring, "k", b"v", 5)
            if how == "delete":
                put(expiring, "k", None)
            else:
                expiring.remove("p", "s", "k", lazy=how == "remove lazily")
            expiring.write("p", "s", "k", b"another")
            assert expiring.sweep("p", LAST, 10).removed == 0
            assert expiring.read("p", "s", "k") == b"another"

    def test_an_expiry_outlives_the_store_object(
        self, expiring: ExpiringKVStore, reopen: Callable[[], Any]
    ) -> None:
        put(expiring, "due", b"v", 5)
        put(expiring, "refreshed", b"v", 5)
        put(expiring, "late", b"v", 500)
        again = reopen()
        put(again, "refreshed", b"v", 500)
        again = reopen()
        assert again.sweep("p", 5, 10).removed == 1
        assert sorted(again.list("p", "s")) == ["late", "refreshed"]
        again = reopen()
        assert sorted(again.list("p", "s")) == ["late", "refreshed"]
        assert again.sweep("p", 500, 10).removed == 2
        assert content(reopen()) == {}

    def test_a_sweep_costs_what_is_due_and_not_what_is_stored(
        self, expiring: ExpiringKVStore
    ) -> None:
        """The cost is a count of function calls: other load on the machine does not change it."""
        costs = []
        for live in (5, 80):
            for n in range(live):
                put(expiring, f"live-{live}-{n}", b"v", 10**13 + n)
                expiring.write("p", "s", f"never-{live}-{n}", b"v")
            for n in range(3):
                put(expiring, f"due-{n}", b"v", n)
            calls, result = _counting_calls(lambda: expiring.sweep("p", 100, 10))
            assert result == SweepResult(3, 3, False)
            costs.append(calls)
        assert costs[1] <= costs[0] * 1.2, f"{costs[0]} calls became {costs[1]}"

    def test_threads_that_refresh_what_another_sweeps(self, expiring: ExpiringKVStore) -> None:
        """Each entry is either swept or refreshed: none is refreshed and then gone."""
        for n in range(20):
            put(expiring, f"k{n}", b"v", 5)

        def refresh() -> list[int]:
            kept = []
            for n in range(20):
                found = expiring.check_and_put(
                    "p", "s", f"k{n}", expected=b"v", value=b"w", expires_at=500
                )
                if found == b"v":
                    kept.append(n)
            return kept

        def sweep() -> list[int]:
            return [expiring.sweep("p", 5, 1).removed for _ in range(25)]

        kept, removed = at_once(refresh, sweep)
        assert len(kept) + sum(removed) == 20
        assert sorted(expiring.list("p", "s")) == sorted(f"k{n}" for n in kept)
        assert all(expiring.read("p", "s", f"k{n}") == b"w" for n in kept)

    def test_walks_and_lists_during_sweeps(self, expiring: ExpiringKVStore) -> None:
        stays = {f"stays-{n}" for n in range(5)}
        for key in stays:
            put(expiring, key, b"v", 500)

        def look() -> None:
            for keys in (expiring.list("p", "s"), [k for _, _, k in expiring.list_all_keys()]):
                assert len(keys) == len(set(keys))
                assert stays <= set(keys) <= stays | {"goes"}

        with watched_by(look, look):
            for _ in range(30):
                put(expiring, "goes", b"v", 5)
                assert expiring.sweep("p", 5, 10).removed == 1

    def test_threads_that_sweep_at_once(self, expiring: ExpiringKVStore) -> None:
        """Each due entry is removed, and counted, once."""
        for n in range(40):
            put(expiring, f"k{n}", b"v", 5)

        def sweep() -> int:
            removed = 0
            while True:
                result = expiring.sweep("p", 5, 3)
                removed += result.removed
                if not result.more:
                    return removed

        assert sum(at_once(sweep, sweep, sweep)) == 40
        assert content(expiring) == {}


def _refresh(store: ExpiringKVStore, how: str) -> None:
    match how:
        case "without an expiry":
            put(store, "k", b"v", None)
        case "by a write":
            store.write("p", "s", "k", b"v")
        case "by another value":
            put(store, "k", b"w", 500)
        case "by an equal value":
            put(store, "k", b"v", 500)
        case "after a removal":
            store.remove("p", "s", "k")
            put(store, "k", b"v", 500)
        case "after a deletion":
            put(store, "k", None)
            put(store, "k", b"v", 500)
        case "after an earlier expiry":
            put(store, "k", b"w", 1)
            put(store, "k", b"v", 500)


def _counting_calls(action: Callable[[], T]) -> tuple[int, T]:
    """Count the functions, Python's and C's, that an action calls; return its result too."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    previous = sys.getprofile()
    sys.setprofile(count)
    try:
        result = action()
    finally:
        sys.setprofile(previous)
    return calls, result
