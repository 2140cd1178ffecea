"""``MigratableKVStore``: everything is shown exactly once, and nobody waits for a walk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvreplay.store import MigratableKVStore
from kvreplay.testing.entries import LONGEST, content
from kvreplay.testing.threads import elsewhere, watched_by

__all__ = ["WalkingTests"]


class WalkingTests:
    """A migration walks the store, so an entry that the walk misses is lost."""

    def test_a_migration_copies_all(self, walkable: MigratableKVStore) -> None:
        source = {
            ("", "", "a"): b"1",
            ("p", "", "a"): b"2",
            ("p", "s", "a"): b"",
            ("q", "s", LONGEST): bytes(5000),
            (LONGEST, LONGEST, LONGEST): b"5",
        }
        assert list(walkable.list_all_keys()) == []
        for address, value in source.items():
            walkable.write(*address, value)
        assert content(walkable) == source
        assert all(type(address) is tuple for address in walkable.list_all_keys())

    def test_a_walk_and_the_lists_agree(
        self, walkable: MigratableKVStore, reopen: Callable[[], Any]
    ) -> None:
        for n in range(150):
            walkable.write(f"p{n % 3}", "s" * (n % 2), f"k{n}", b"v")
        again = reopen()
        walked = set(again.list_all_keys())
        assert len(walked) == 150
        for p in ("p0", "p1", "p2"):
            for s in ("", "s"):
                listed = {(p, s, k) for k in again.list(p, s)}
                assert listed == {address for address in walked if address[:2] == (p, s)}

    def test_a_walk_shows_what_stays_exactly_once(self, walkable: MigratableKVStore) -> None:
        stays = {(p, s, f"stays-{n}") for p in ("a", "m", "z") for s in ("", "s") for n in range(5)}
        goes = {(p, s, f"goes-{n}") for p in ("a", "m", "z") for s in ("", "s") for n in range(5)}
        for address in stays | goes:
            walkable.write(*address, b"v")
        seen = []
        for step, address in enumerate(walkable.list_all_keys()):
            seen.append(address)
            if goes:
                walkable.remove(*goes.pop())
            walkable.write(*sorted(stays)[step % len(stays)], b"w")
            walkable.write("new", "s", f"n{step % 7}", b"v")
            walkable.write("a", "s", f"0new{step % 7}", b"v")
        assert {address for address in seen if address in stays} == stays
        assert all(seen.count(address) == 1 for address in stays)

    def test_walks_during_changes(self, walkable: MigratableKVStore) -> None:
        stays = {("p", "s", f"stays-{n}") for n in range(20)}
        passes = {("p", "s", "passes"), ("q", "s", "passes")}
        for address in stays:
            walkable.write(*address, b"v")

        def look() -> None:
            walked = list(walkable.list_all_keys())
            assert len(walked) == len(set(walked))
            assert stays <= set(walked) <= stays | passes

        with watched_by(look, look):
            for _ in range(50):
                for address in passes:
                    walkable.write(*address, b"v")
                for address in passes:
                    walkable.remove(*address)

    def test_a_walk_that_is_left_blocks_nobody(self, walkable: MigratableKVStore) -> None:
        for n in range(5):
            walkable.write("p", "s", f"k{n}", b"v")
        walk = walkable.list_all_keys()
        next(walk)
        elsewhere(lambda: walkable.write("p", "s", "k0", b"w"))
        walkable.write("p", "s", "k1", b"w")
        assert len(list(walk)) == 4
