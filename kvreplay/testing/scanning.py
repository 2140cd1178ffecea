"""``ScannableKVStore``: every entry is told exactly once, with its expiry, a page at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.errors import InvalidNameError, StoreError
from kvreplay.store import Entry, ScannableKVStore
from kvreplay.testing.entries import LONGEST, put
from kvreplay.testing.threads import elsewhere, watched_by

__all__ = ["ScanTests"]


class ScanTests:
    """Whoever looks through a store or copies it must miss nothing, and hold up nobody."""

    def test_a_scan_tells_everything(
        self, scannable: ScannableKVStore, reopen: Callable[[], Any]
    ) -> None:
        entries = {
            ("", "", "a"): Entry(b"1", None),
            ("p", "", "a"): Entry(b"2", 0),
            ("p", "s", "a"): Entry(b"", 1_700_000_000_000),
            ("p", "s", "b"): Entry(b"3", None),
            ("q", "s", LONGEST): Entry(bytes(5000), 2**63 - 1),
            (LONGEST, LONGEST, LONGEST): Entry(b"5", 7),
        }
        assert list(scannable.scan()) == []
        for address, entry in entries.items():
            scannable.check_and_put(
                *address, expected=None, value=entry.value, expires_at=entry.expires_at
            )
        for told in (list(scannable.scan()), list(reopen().scan())):
            assert len(told) == len(entries)
            assert dict(told) == entries
            assert all(type(address) is tuple for address, _ in told)

    def test_a_scan_of_one_primary_namespace(self, scannable: ScannableKVStore) -> None:
        addresses = [
            *(("", "", "k"), ("p", "", "k"), ("p", "s", "k"), ("p-", "s", "k"), ("P", "s", "k")),
            *(("pq", "", "p"), ("pq", "p", "k"), ("o", "p", "p"), ("q", "p", "p")),
        ]
        for address in addresses:
            scannable.write(*address, b"v")
        for primary in ("", "p", "pq", "p-", "P", "o", "q", "unknown", "s"):
            told = [address for address, _ in scannable.scan(primary)]
            assert sorted(told) == sorted(each for each in addresses if each[0] == primary)

    def test_a_primary_namespace_that_breaks_the_rules(self, scannable: ScannableKVStore) -> None:
        for name in ("p.q", "p/q", LONGEST + "N", "\0"):
            with pytest.raises(InvalidNameError):
                scannable.scan(name)

    def test_the_last_change_is_told(self, scannable: ScannableKVStore) -> None:
        put(scannable, "k", b"v", 5)
        put(scannable, "k", b"w", 7)
        assert list(scannable.scan()) == [(("p", "s", "k"), Entry(b"w", 7))]
        scannable.write("p", "s", "k", b"x")
        assert list(scannable.scan()) == [(("p", "s", "k"), Entry(b"x", None))]
        scannable.remove("p", "s", "k")
        assert list(scannable.scan()) == []

    def test_large_entries(self, scannable: ScannableKVStore) -> None:
        """More than any page holds, of some size and of any."""
        most = getattr(scannable, "max_change_bytes", 6_000_000)
        sizes = {f"k{n:02}": size for n, size in enumerate([1, most // 15, most // 3] * 4)}
        for key, size in sizes.items():
            scannable.write("p", "s", key, key.encode() * size)
        told = {address[2]: entry.value for address, entry in scannable.scan()}
        assert told == {key: key.encode() * size for key, size in sizes.items()}

    def test_a_scan_tells_what_stays_exactly_once(self, scannable: ScannableKVStore) -> None:
        stays = {(p, s, f"stays-{n}") for p in ("a", "m", "z") for s in ("", "s") for n in range(5)}
        goes = {(p, s, f"goes-{n}") for p in ("a", "m", "z") for s in ("", "s") for n in range(5)}
        for address in stays | goes:
            scannable.write(*address, b"v")
        seen = []
        for step, (address, entry) in enumerate(scannable.scan()):
            seen.append(address)
            assert entry.value in (b"v", b"w")
            if goes:
                scannable.remove(*goes.pop())
            scannable.write(*sorted(stays)[step % len(stays)], b"w")
            scannable.write("new", "s", f"n{step % 7}", b"v")
            scannable.write("a", "s", f"0new{step % 7}", b"v")
        assert {address for address in seen if address in stays} == stays
        assert all(seen.count(address) == 1 for address in stays)

    def test_scans_during_changes(self, scannable: ScannableKVStore) -> None:
        """Value and expiry are always those of one change."""
        keys = [f"k{n}" for n in range(10)]
        for key in keys:
            put(scannable, key, b"0", 0)

        def look() -> None:
            told = list(scannable.scan())
            assert sorted(address[2] for address, _ in told) == keys
            for _, entry in told:
                assert entry.value == str(entry.expires_at).encode()

        with watched_by(look, look):
            for n in range(1, 30):
                for key in keys:
                    put(scannable, key, str(n).encode(), n)

    def test_no_scan_tells_what_is_removed_lazily(self, scannable: ScannableKVStore) -> None:
        for key in ("1", "2", "3"):
            put(scannable, key, b"v", 5)
        for key in ("1", "3"):
            scannable.remove("p", "s", key, lazy=True)
        scannable.write("p", "s", "3", b"v")
        told = dict(scannable.scan())
        assert told == {("p", "s", "2"): Entry(b"v", 5), ("p", "s", "3"): Entry(b"v", None)}

    def test_a_scan_that_is_left_blocks_nobody(self, scannable: ScannableKVStore) -> None:
        for n in range(5):
            scannable.write("p", "s", f"k{n}", b"v")
        scan = scannable.scan()
        next(scan)
        elsewhere(lambda: scannable.write("p", "s", "k0", b"w"))
        scannable.write("p", "s", "k1", b"w")
        assert len(list(scan)) == 4

    def test_closed_during_a_scan(self, scannable: ScannableKVStore) -> None:
        """The scan does not end as if it had told everything."""
        for p in ("a", "b", "c"):
            scannable.write(p, "s", "k", b"v")
        scan = scannable.scan()
        seen = [next(scan)]
        scannable.close()  # type: ignore[attr-defined]  # every store has it
        try:
            seen += scan
        except StoreError:
            return
        assert len(seen) == 3
