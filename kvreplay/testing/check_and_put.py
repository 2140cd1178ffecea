"""``AtomicKVStore``: the one primitive. No thread sees a half of it or comes between."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.store import AtomicKVStore
from kvreplay.testing.entries import LONGEST, content, count_up
from kvreplay.testing.threads import at_once

__all__ = ["CheckAndPutTests"]


class CheckAndPutTests:
    """It returns what it found. It changes the entry only if that was the expected value."""

    @pytest.mark.parametrize("there", [None, b"", b"1", b"other"])
    def test_check_and_put(self, atomic: AtomicKVStore, there: bytes | None) -> None:
        """Try every combination of what is there, expected and put, with an expiry and without."""
        atomic.write("p", "s", "beside", b"1")
        after = {("p", "s", "beside"): b"1"}
        combinations = itertools.product([None, b"", b"1"], [None, b"", b"1", b"2"], [None, 5])
        for n, (expected, value, expires_at) in enumerate(combinations):
            key = f"k{n}"
            if there is not None:
                atomic.write("p", "s", key, there)
            found = atomic.check_and_put(
                "p", "s", key, expected=expected, value=value, expires_at=expires_at
            )
            assert found == there
            assert type(found) is type(there)
            left = value if there == expected else there
            if left is not None:
                after["p", "s", key] = left
        assert content(atomic) == after

    def test_the_loser_learns_the_winners_bytes(self, atomic: AtomicKVStore) -> None:
        assert atomic.check_and_put("p", "s", "k", expected=None, value=b"winner") is None
        assert atomic.check_and_put("p", "s", "k", expected=None, value=b"loser") == b"winner"
        assert atomic.check_and_put("p", "s", "k", expected=b"stale", value=b"loser") == b"winner"
        assert atomic.check_and_put("p", "s", "k", expected=b"stale", value=None) == b"winner"
        assert atomic.read("p", "s", "k") == b"winner"

    def test_only_the_whole_value_is_equal(self, atomic: AtomicKVStore) -> None:
        for there, expected in [
            (b"value", b"valu"),
            (b"value", b"VALUE"),
            (b"value", b"value\0"),
            (b"\0", b""),
            (b"1", b"1.0"),
            (bytes(2**20), bytes(2**20 - 1) + b"1"),
        ]:
            atomic.write("p", "s", "k", there)
            assert atomic.check_and_put("p", "s", "k", expected=expected, value=b"x") == there
            assert atomic.read("p", "s", "k") == there
            assert atomic.check_and_put("p", "s", "k", expected=there, value=b"x") == there
            assert atomic.read("p", "s", "k") == b"x"

    @pytest.mark.parametrize("size", [0, 1, 2**20])
    def test_value_sizes_of_check_and_put(self, atomic: AtomicKVStore, size: int) -> None:
        value = bytes(range(256)) * (size // 256) + bytes(size % 256)
        assert atomic.check_and_put("p", "s", "k", expected=None, value=value) is None
        assert atomic.check_and_put("p", "s", "k", expected=value, value=b"small") == value
        assert atomic.check_and_put("p", "s", "k", expected=b"small", value=value) == b"small"
        assert content(atomic) == {("p", "s", "k"): value}
        assert atomic.check_and_put("p", "s", "k", expected=value, value=None) == value
        assert content(atomic) == {}

    def test_arguments_of_check_and_put_by_name(self, atomic: AtomicKVStore) -> None:
        """The longest names and the latest expiry, as keyword arguments."""
        found = atomic.check_and_put(
            primary_namespace=LONGEST,
            secondary_namespace=LONGEST,
            key=LONGEST,
            expected=None,
            value=b"v",
            expires_at=2**63 - 1,
        )
        assert found is None
        assert content(atomic) == {(LONGEST, LONGEST, LONGEST): b"v"}

    @pytest.mark.parametrize("lazy", [False, True])
    def test_a_removed_entry_is_absent_to_check_and_put(
        self, atomic: AtomicKVStore, lazy: bool
    ) -> None:
        for _ in range(20):
            atomic.write("p", "s", "k", b"old")
            atomic.remove("p", "s", "k", lazy=lazy)
            assert atomic.check_and_put("p", "s", "k", expected=None, value=b"new") is None
            assert atomic.read("p", "s", "k") == b"new"

    def test_a_changed_entry_outlives_the_store_object(
        self, atomic: AtomicKVStore, reopen: Callable[[], Any]
    ) -> None:
        for key in ("goes", "stays", "changes"):
            assert atomic.check_and_put("p", "s", key, expected=None, value=b"v") is None
        again = reopen()
        assert again.check_and_put("p", "s", "goes", expected=b"v", value=None) == b"v"
        assert again.check_and_put("p", "s", "stays", expected=b"x", value=None) == b"v"
        assert again.check_and_put("p", "s", "changes", expected=b"v", value=b"w") == b"v"
        assert content(reopen()) == {("p", "s", "stays"): b"v", ("p", "s", "changes"): b"w"}

    def test_one_of_many_threads_wins(self, atomic: AtomicKVStore) -> None:
        for n in range(10):
            key = f"k{n}"
            names = [b"%d" % n for n in range(8)]

            def claim(name: bytes, key: str = key) -> bytes | None:
                return atomic.check_and_put("p", "s", key, expected=None, value=name)

            answers = at_once(*(lambda name=name: claim(name) for name in names))
            winner = atomic.read("p", "s", key)
            assert answers.count(None) == 1, "exactly one found nothing"
            assert names[answers.index(None)] == winner
            assert set(answers) == {None, winner}

    def test_threads_that_count(self, atomic: AtomicKVStore) -> None:
        atomic.write("p", "s", "n", b"0")
        at_once(*[lambda: count_up(atomic, 50)] * 4)
        assert atomic.read("p", "s", "n") == b"200"

    def test_a_writer_does_not_come_between(self, atomic: AtomicKVStore) -> None:
        """A plain write happens before a check-and-put or after it: it is never lost."""
        for n in range(20):
            key = f"k{n}"
            atomic.write("p", "s", key, b"old")

            def change(key: str = key) -> bytes | None:
                return atomic.check_and_put("p", "s", key, expected=b"old", value=b"checked")

            def write(key: str = key) -> None:
                atomic.write("p", "s", key, b"written")

            found, _ = at_once(change, write)
            assert found in (b"old", b"written")
            assert atomic.read("p", "s", key) == b"written"

    def test_two_objects_of_one_store(
        self, atomic: AtomicKVStore, another: Callable[[], Any]
    ) -> None:
        other = another()
        atomic.write("p", "s", "n", b"0")
        assert other.read("p", "s", "n") == b"0"
        at_once(lambda: count_up(atomic, 40), lambda: count_up(other, 40))
        assert atomic.read("p", "s", "n") == other.read("p", "s", "n") == b"80"
