"""``InspectableKVStore``: an entry is told with its expiry, so that a copy of it is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.errors import InvalidNameError, KeyNotFoundError
from kvreplay.store import Entry, InspectableKVStore
from kvreplay.testing.entries import put

__all__ = ["InspectionTests"]


class InspectionTests:
    """``read_entry`` returns what the entry's last change has put: value and expiry together."""

    @pytest.mark.parametrize("expires_at", [0, 1, 1_700_000_000_000, 2**63 - 1, None])
    def test_an_entry_is_told_as_it_was_put(
        self, inspectable: InspectableKVStore, expires_at: int | None
    ) -> None:
        put(inspectable, "k", b"v", expires_at)
        assert inspectable.read_entry("p", "s", "k") == Entry(b"v", expires_at)
        assert inspectable.read("p", "s", "k") == b"v"

    def test_the_last_change_decides(self, inspectable: InspectableKVStore) -> None:
        put(inspectable, "k", b"v", 5)
        put(inspectable, "k", b"w", 7)
        assert inspectable.read_entry("p", "s", "k") == Entry(b"w", 7)
        put(inspectable, "k", b"w", 9)  # the same value, another expiry
        assert inspectable.read_entry("p", "s", "k") == Entry(b"w", 9)
        inspectable.write("p", "s", "k", b"x")
        assert inspectable.read_entry("p", "s", "k") == Entry(b"x", None)

    def test_a_refused_change_changes_no_expiry(self, inspectable: InspectableKVStore) -> None:
        put(inspectable, "k", b"v", 5)
        found = inspectable.check_and_put(
            "p", "s", "k", expected=b"other", value=b"w", expires_at=9
        )
        assert found == b"v"
        assert inspectable.read_entry("p", "s", "k") == Entry(b"v", 5)

    def test_an_entry_whose_expiry_is_past_is_told_until_it_is_swept(
        self, inspectable: InspectableKVStore
    ) -> None:
        put(inspectable, "k", b"v", 5)
        assert inspectable.sweep("p", 4, 10).removed == 0
        assert inspectable.read_entry("p", "s", "k") == Entry(b"v", 5)
        assert inspectable.sweep("p", 5, 10).removed == 1
        with pytest.raises(KeyNotFoundError):
            inspectable.read_entry("p", "s", "k")

    def test_an_absent_entry(self, inspectable: InspectableKVStore) -> None:
        put(inspectable, "k", b"v", 5)
        for address in (("p", "s", "other"), ("p", "other", "k"), ("other", "s", "k")):
            with pytest.raises(KeyNotFoundError):
                inspectable.read_entry(*address)
        inspectable.remove("p", "s", "k")
        with pytest.raises(KeyNotFoundError):
            inspectable.read_entry("p", "s", "k")

    def test_a_name_that_breaks_the_rules(self, inspectable: InspectableKVStore) -> None:
        for address in (("p", "s", ""), ("p", "s", "a/b"), ("", "s", "k"), ("p.q", "s", "k")):
            with pytest.raises(InvalidNameError):
                inspectable.read_entry(*address)

    def test_the_value_is_in_no_repr(self, inspectable: InspectableKVStore) -> None:
        put(inspectable, "k", b"secret-preimage", 5)
        assert "secret" not in repr(inspectable.read_entry("p", "s", "k"))

    def test_a_copy_by_entries_is_exact(
        self, inspectable: InspectableKVStore, reopen: Callable[[], Any]
    ) -> None:
        """As it is after a restart too."""
        expiries = {"a": 5, "b": None, "c": 10**13}
        for key, expires_at in expiries.items():
            put(inspectable, key, key.encode(), expires_at)
        again = reopen()
        for key, expires_at in expiries.items():
            assert again.read_entry("p", "s", key) == Entry(key.encode(), expires_at)
