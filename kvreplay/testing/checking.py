"""``CheckableKVStore``: a sound store has no fault, whatever others change meanwhile."""

from __future__ import annotations

import contextlib
from typing import Any

from kvreplay.errors import StoreError
from kvreplay.store import CheckableKVStore
from kvreplay.testing.entries import put
from kvreplay.testing.threads import elsewhere, watched_by

__all__ = ["CheckTests"]


class CheckTests:
    """How a fault is told is the engine's own: its own tests plant some."""

    def test_a_sound_store_has_no_fault(self, checkable: CheckableKVStore) -> None:
        assert list(checkable.check()) == []
        store: Any = checkable
        for n in range(9):
            store.write("p", "s", f"k{n}", b"v")
            store.write("", "", f"k{n}", b"v")
        store.write("p", "s", "k0", b"w")
        store.remove("p", "s", "k1")
        store.remove("p", "s", "k2", lazy=True)
        if hasattr(store, "sweep"):
            for key, expires_at in (("k3", 5), ("k4", 5), ("k5", 9), ("k6", 9), ("k7", 9)):
                put(store, key, b"v", expires_at)
            put(store, "k5", b"v", 5)
            put(store, "k6", b"w")
            store.remove("p", "s", "k7")
            store.sweep("p", 7, 2)
        assert list(checkable.check()) == []

    def test_checks_during_changes(self, checkable: CheckableKVStore) -> None:
        store: Any = checkable

        def look() -> None:
            assert list(checkable.check()) == []

        with watched_by(look):
            for n in range(20):
                for key in ("a", "b"):
                    store.write("p", "s", key, b"v")
                    if hasattr(store, "sweep"):
                        put(store, key, b"v", n)
                store.remove("p", "s", "a")

    def test_a_check_that_is_left_blocks_nobody(self, checkable: CheckableKVStore) -> None:
        checkable.write("p", "s", "k", b"v")
        check = checkable.check()
        next(check, None)
        elsewhere(lambda: checkable.write("p", "s", "k", b"w"))
        assert list(check) == []

    def test_closed_during_a_check(self, checkable: CheckableKVStore) -> None:
        checkable.write("p", "s", "k", b"v")
        check = checkable.check()
        checkable.close()  # type: ignore[attr-defined]  # every store has it
        with contextlib.suppress(StoreError):
            next(check)
            raise AssertionError("it has told a fault, or ended as if all was right")
