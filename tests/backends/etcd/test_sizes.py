"""How large a record may be, told when a ``Replay`` is made; and scans whose entries are of all sizes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from kvreplay import (
    AsyncReplay,
    ConfigError,
    CorruptStoreError,
    InvalidParamsError,
    Replay,
    ResponseNotStorableError,
    open_store,
)
from kvreplay.backends.memory import MemoryStore
from support.etcd import coded

pytestmark = pytest.mark.any_python  # the event loops of each Python: test_loops.py

HALF = (1536 * 1024 - 8 * 1024) // 2


@pytest.mark.parametrize("kind", [Replay, AsyncReplay])
def test_a_record_that_no_change_could_carry_is_refused_at_once(etcd: Any, kind: Any) -> None:
    with open_store(etcd.url) as store:
        with pytest.raises(ConfigError, match=f"give at most {HALF}"):
            kind(store, "pay", ttl=60, max_record_bytes=HALF + 1)
        kind(store, "pay", ttl=60, max_record_bytes=HALF)
    with open_store(f"{etcd.url}?max_request_bytes=4MiB") as store:
        kind(store, "pay", ttl=60, max_record_bytes=2**20)


def test_by_default_it_is_what_a_change_can_carry(etcd: Any) -> None:
    with open_store(etcd.url) as store:
        replay = Replay(store, "pay", ttl=60)
        half = "x" * (HALF // 2 - 200)
        assert replay.execute(("s", "1"), half, lambda: half).response == half
        assert replay.execute(("s", "1"), half, lambda: None).replayed
        with pytest.raises(InvalidParamsError, match=f"max_record_bytes .{HALF}."):
            replay.execute(("s", "2"), "x" * HALF, lambda: None)
        with pytest.raises(ResponseNotStorableError, match=f"max_record_bytes .{HALF}."):
            replay.execute(("s", "3"), None, lambda: "x" * HALF)
    with MemoryStore() as memory:
        large = "x" * (2**20 - 100)
        assert Replay(memory, "pay", ttl=60).execute(("s", "1"), None, lambda: large).response


def test_the_largest_record_can_be_settled_and_pruned(etcd: Any) -> None:
    """Each change of it carries it twice, or what replaces it."""
    from support.replaying import FakeClock

    clock = FakeClock()
    with open_store(etcd.url) as store:
        replay = Replay(store, "pay", ttl=60, clock=clock, tombstone_ttl=60)
        params = "x" * (HALF - 200)

        def unsure() -> None:
            raise TimeoutError

        with pytest.raises(Exception, match="doubt"):
            replay.execute(("s", "1"), params, unsure)
        assert replay.resolve(("s", "1"), response="y")
        assert replay.lookup(("s", "1"), params).response == "y"  # type: ignore[union-attr]
        clock.pass_seconds(61)
        with pytest.raises(Exception, match="expired"):
            replay.execute(("s", "1"), params, unsure)


def test_a_scan_keeps_little_in_memory(etcd: Any) -> None:
    """First many small entries, which let it ask for more and more; then large ones."""
    with open_store(etcd.url) as store:
        for n in range(1100):
            store.write("p", "small", f"k{n:04}", b"v")
        large = bytes(2**20)
        for n in range(24):
            store.write("p", "zlarge", f"k{n}", large)
        tracemalloc.start()
        try:
            sizes = [len(entry.value) for _, entry in store.scan("p")]  # type: ignore[attr-defined]
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert sizes == [1] * 1100 + [2**20] * 24
    assert most < 24 * 2**20, f"{most >> 20} MiB"


def test_an_expiry_that_is_no_number_is_told(etcd: Any) -> None:
    with open_store(etcd.url) as store:
        for key in ("bad", "good"):
            store.check_and_put("p", "s", key, expected=None, value=b"v", expires_at=5)
        key = f"/{etcd.name}/x/p/s/bad".encode()
        etcd.server.call("/v3/kv/put", key=coded(key), value=coded(b"soon"))
        told = []
        with pytest.raises(CorruptStoreError, match="1 of the entries"):
            told.extend(store.scan())  # type: ignore[attr-defined]
        with pytest.raises(CorruptStoreError, match="no number"):
            store.read_entry("p", "s", "bad")  # type: ignore[attr-defined]
        assert store.read("p", "s", "bad") == b"v"
        store.write("p", "s", "bad", b"w")
        assert len(list(store.scan())) == 2  # type: ignore[attr-defined]
