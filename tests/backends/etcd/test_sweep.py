"""The index of expiries: what of it is stale is never believed, and does not stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kvreplay import open_store
from kvreplay.store import SweepResult
from support.etcd import coded, decoded, end_of_range

pytestmark = pytest.mark.any_python  # the event loops of each Python: test_loops.py


@pytest.fixture
def store(etcd: Any) -> Iterator[Any]:
    with open_store(etcd.url) as store:
        yield store


def keys_of(etcd: Any, kind: str) -> list[str]:
    first = f"/{etcd.name}/{kind}/".encode()
    found = etcd.server.call(
        "/v3/kv/range", key=coded(first), range_end=coded(end_of_range(first)), keys_only=True
    )
    return [decoded(kv["key"])[len(first) :].decode() for kv in found.get("kvs", ())]


def test_an_expiry_that_moves_leaves_the_former_one_in_the_index(store: Any, etcd: Any) -> None:
    put = store.check_and_put
    put("p", "s", "k", expected=None, value=b"v", expires_at=5)
    put("p", "s", "k", expected=b"v", value=b"w", expires_at=500)
    put("p", "s", "k", expected=b"w", value=b"w", expires_at=7)
    assert len(keys_of(etcd, "t")) == 3
    assert keys_of(etcd, "x") == ["p/s/k"]
    assert store.sweep("p", 5, 10) == SweepResult(1, 0, False)  # what is stale is visited, and goes
    assert store.sweep("p", 6, 10) == SweepResult(0, 0, False)
    assert store.sweep("p", 7, 10) == SweepResult(1, 1, False)
    assert (keys_of(etcd, "e"), keys_of(etcd, "x")) == ([], [])
    assert store.sweep("p", 500, 10) == SweepResult(1, 0, False)
    assert keys_of(etcd, "t") == []


@pytest.mark.parametrize("how", ["remove", "remove lazily", "write", "delete", "no expiry"])
def test_whatever_ends_an_expiry_is_known_to_the_sweep(store: Any, etcd: Any, how: str) -> None:
    store.check_and_put("p", "s", "k", expected=None, value=b"v", expires_at=5)
    if how.startswith("remove"):
        store.remove("p", "s", "k", lazy=how == "remove lazily")
    elif how == "write":
        store.write("p", "s", "k", b"v")
    else:
        value = None if how == "delete" else b"v"
        store.check_and_put("p", "s", "k", expected=b"v", value=value)
    assert keys_of(etcd, "x") == []
    store.check_and_put("p", "s", "k", expected=None, value=b"new")
    there = store.list("p", "s")
    assert store.sweep("p", 10, 10) == SweepResult(1, 0, False)
    assert store.list("p", "s") == there == ["k"]
    assert keys_of(etcd, "t") == []


def test_more_than_a_transaction_takes(store: Any, etcd: Any) -> None:
    for n in range(230):
        store.check_and_put("p", f"s{n % 3}", f"k{n}", expected=None, value=b"v", expires_at=n)
    for n in range(0, 230, 10):  # some are stale
        store.write("p", f"s{n % 3}", f"k{n}", b"v")
    assert store.sweep("p", 10**6, 101) == SweepResult(101, 90, True)
    assert store.sweep("p", 10**6, 1000) == SweepResult(129, 117, False)
    assert len(list(store.list_all_keys())) == 23
    assert (keys_of(etcd, "t"), keys_of(etcd, "x")) == ([], [])


def test_the_index_of_one_namespace_is_not_that_of_another(store: Any) -> None:
    for p in ("p", "p-", "pp", "P", "0"):
        store.check_and_put(p, "s", "k", expected=None, value=b"v", expires_at=5)
    assert store.sweep("p", 2**63, 10) == SweepResult(1, 1, False)
    assert sorted(p for p, _, _ in store.list_all_keys()) == ["0", "P", "p-", "pp"]


def test_the_latest_expiry_of_all(store: Any) -> None:
    store.check_and_put("p", "s", "k", expected=None, value=b"v", expires_at=2**63 - 1)
    assert store.sweep("p", 2**63 - 2, 10) == SweepResult(0, 0, False)
    assert store.sweep("p", 2**63 - 1, 10) == SweepResult(1, 1, False)


def test_requests_may_be_small(etcd: Any) -> None:
    """On members that take no more, with the longest names."""
    with open_store(f"{etcd.url}?max_request_bytes=64KiB") as store:
        for n in range(40):
            store.check_and_put(
                *("N" * 120,) * 2, f"{n:0120}", expected=None, value=b"v", expires_at=n
            )
        assert store.sweep("N" * 120, 100, 100) == SweepResult(40, 40, False)
    steps = store._operations._sweep_one(  # type: ignore[attr-defined]
        store._operations._keys.due("N" * 120, 2**63 - 1, "N" * 120, "N" * 120)  # type: ignore[attr-defined]
    )
    assert len(steps) * 3 / 4 < 4096, "what a step of a sweep takes"
