"""``BatchingKVStore``: many changes in one call, each a step of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kvreplay.errors import InvalidNameError, InvalidValueError
from kvreplay.store import BatchingKVStore, Change
from kvreplay.testing.entries import content

__all__ = ["BatchTests"]


class BatchTests:
    """Each change has the answer that ``check_and_put`` would give; they happen in their order."""

    def test_each_of_many_changes_has_its_own_outcome(self, batching: BatchingKVStore) -> None:
        batching.write("p", "s", "there", b"old")
        outcomes = batching.check_and_put_each(
            [
                Change("p", "s", "there", b"old", b"new"),
                Change("p", "s", "absent", b"other", b"v"),
                Change("p", "s", "fresh", None, b"v", 5),
                Change("p", "s", "there", b"old", b"late"),
            ]
        )
        assert list(outcomes) == [b"old", None, None, b"new"]
        assert content(batching) == {("p", "s", "there"): b"new", ("p", "s", "fresh"): b"v"}
        assert list(batching.check_and_put_each([])) == []

    def test_each_of_many_changes_sees_those_before_it(self, batching: BatchingKVStore) -> None:
        steps = [None, *(b"%d" % n for n in range(50)), None]
        outcomes = batching.check_and_put_each(
            [Change("p", "s", "k", old, new) for old, new in itertools.pairwise(steps)]
        )
        assert list(outcomes) == steps[:-1]
        assert content(batching) == {}

    def test_a_bad_change_harms_no_other(self, batching: BatchingKVStore) -> None:
        wrong: Any = "text"
        outcomes = batching.check_and_put_each(
            [
                Change("p", "s", "first", None, b"v"),
                Change("p", "s", "not legal", None, b"v"),
                Change("p", "s", "k", None, wrong),
                Change("", "s", "k", None, b"v"),
                Change("p", "s", "last", None, b"v"),
            ]
        )
        kinds = [type(None), InvalidNameError, InvalidValueError, InvalidNameError, type(None)]
        assert [type(outcome) for outcome in outcomes] == kinds
        assert content(batching) == {("p", "s", "first"): b"v", ("p", "s", "last"): b"v"}

    def test_batches_of_many_threads_agree_on_a_winner(self, batching: BatchingKVStore) -> None:
        def claim(own: int) -> list[Any]:
            value = b"%d" % own
            changes = [Change("p", "s", f"k{n}", None, value) for n in range(30)]
            return list(batching.check_and_put_each(changes))

        with ThreadPoolExecutor(6) as executor:
            found = list(executor.map(claim, range(6)))
        for n in range(30):
            winner = batching.read("p", "s", f"k{n}")
            outcomes = [each[n] for each in found]
            assert outcomes[int(winner)] is None
            assert outcomes.count(None) == 1
            assert outcomes.count(winner) == 5

    def test_many_changes_outlive_the_store(
        self, batching: BatchingKVStore, reopen: Callable[[], Any]
    ) -> None:
        batching.check_and_put_each([Change("p", "s", f"k{n}", None, b"v") for n in range(20)])
        assert content(reopen()) == {("p", "s", f"k{n}"): b"v" for n in range(20)}
