"""The store contract, sentence by sentence, over every engine.

The sentences are in ``kvreplay/store.py`` and in the design. Nothing here knows an engine.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvreplay.errors import (
    InvalidNameError,
    InvalidValueError,
    KeyNotFoundError,
    OutcomeUnknownError,
    StoreError,
)
from kvreplay.in_process import InProcessAtomicStore
from kvreplay.store import (
    AtomicKVStore,
    ExpiringKVStore,
    KVStoreSync,
    MigratableKVStore,
    SweepResult,
    TransactionalKVStore,
)

LONGEST = "N" * 120
LEGAL = [
    "a",
    "Z",
    "0",
    "-",
    "_",
    LONGEST,
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-",
]
ILLEGAL: list[Any] = [
    "N" * 121,
    "a b",
    "a/b",
    "a.b",
    ".",
    "..",
    "a\n",
    "\n",
    "a\0",
    "é",
    "٣",
    "[empty]",
    "k.tmp",
    None,
    b"a",
    1,
    ["a"],
]
NO_BYTES: list[Any] = ["text", bytearray(b"v"), memoryview(b"v"), 1, ["v"]]
NO_TIMES: list[Any] = [-1, 2**63, 1.5, True, "1", b"1"]


class PlainStore:
    """LDK's four calls and the walk over a dictionary; it knows nothing of kvreplay's."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str, str], bytes] = {}

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        return self.entries[primary_namespace, secondary_namespace, key]

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        self.entries[primary_namespace, secondary_namespace, key] = value

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        self.entries.pop((primary_namespace, secondary_namespace, key), None)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        return [
            k
            for p, s, k in list(self.entries)
            if (p, s) == (primary_namespace, secondary_namespace)
        ]

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        yield from list(self.entries)


@pytest.fixture(params=["memory", "filesystem", "lmdb", "wrapped"])
def atomic(request: pytest.FixtureRequest, new_engine: Any) -> Any:
    """Any store that claims to be atomic: the engines, and a wrapped plain store."""
    if request.param == "wrapped":
        with InProcessAtomicStore(PlainStore()) as store:
            yield store
    else:
        yield new_engine(request.param).open()


def content(store: MigratableKVStore) -> dict[tuple[str, str, str], bytes]:
    addresses = list(store.list_all_keys())
    assert len(addresses) == len(set(addresses))
    return {address: store.read(*address) for address in addresses}


def put(
    store: Any, key: str, value: bytes | None, expires_at: int | None = None, p: str = "p"
) -> None:
    """Put by check-and-put, whatever is there."""
    try:
        expected = store.read(p, "s", key)
    except KeyNotFoundError:
        expected = None
    found = store.check_and_put(p, "s", key, expected=expected, value=value, expires_at=expires_at)
    assert found == expected


# What it is.


def test_protocols(atomic: AtomicKVStore) -> None:
    assert isinstance(atomic, KVStoreSync)
    assert isinstance(atomic, MigratableKVStore)
    assert isinstance(atomic, AtomicKVStore)


def test_a_capability_is_there_or_absent(engine: Any, store: Any) -> None:
    assert isinstance(store, ExpiringKVStore)
    assert isinstance(store, TransactionalKVStore) is engine.transactional
    assert not isinstance(InProcessAtomicStore(PlainStore()), ExpiringKVStore)


def test_identity_is_that_of_the_entries(engine: Any, store: Any) -> None:
    assert store.reads_are_local is True
    if engine.durable:
        assert engine.open().identity == store.identity
        hash(store.identity)


# LDK's own cases.


def test_round_trip(atomic: AtomicKVStore) -> None:
    atomic.write("p", "s", "k", b"value")
    assert atomic.read("p", "s", "k") == b"value"
    assert type(atomic.read("p", "s", "k")) is bytes
    assert atomic.list("p", "s") == ["k"]
    atomic.write("p", "s", "k", b"another")
    assert atomic.read("p", "s", "k") == b"another"
    assert atomic.list("p", "s") == ["k"]
    atomic.remove("p", "s", "k")
    assert atomic.list("p", "s") == []
    with pytest.raises(KeyNotFoundError):
        atomic.read("p", "s", "k")


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 65537, 2**20])
def test_value_sizes(atomic: AtomicKVStore, size: int) -> None:
    value = bytes(range(256)) * (size // 256) + bytes(size % 256)
    atomic.write("p", "s", "k", value)
    assert atomic.read("p", "s", "k") == value
    assert atomic.check_and_put("p", "s", "k", expected=value, value=b"") == value
    assert atomic.read("p", "s", "k") == b""
    assert atomic.check_and_put("p", "s", "k", expected=b"", value=value) == b""
    assert content(atomic) == {("p", "s", "k"): value}


def test_addresses_are_distinct(atomic: AtomicKVStore) -> None:
    """Each name alone tells two entries apart, and neighbours do not run into each other."""
    addresses = {
        (p, s, k) for p in ("", "a", "aa", "A") for s in ("", "a", "aa") for k in ("a", "aa", "A")
    }
    legal = {(p, s, k) for p, s, k in addresses if p or not s}
    for p, s, k in legal:
        atomic.write(p, s, k, f"{p}/{s}/{k}".encode())
    assert content(atomic) == {(p, s, k): f"{p}/{s}/{k}".encode() for p, s, k in legal}
    for p, s in {(p, s) for p, s, _ in legal}:
        assert sorted(atomic.list(p, s)) == ["A", "a", "aa"]
    for p, s, k in legal:
        atomic.remove(p, s, k)
        assert (p, s, k) not in set(atomic.list_all_keys())
    assert content(atomic) == {}


def test_migration_copies_all(engine: Any, store: Any) -> None:
    source = PlainStore()
    for p, s, k in [("", "", "a"), ("p", "", "a"), ("p", "s", "a"), ("q", "s", LONGEST)]:
        source.write(p, s, k, f"{p}{s}{k}".encode())
    for address in source.list_all_keys():
        store.write(*address, source.read(*address))
    assert content(store) == source.entries
    if engine.durable:
        store.close()
        assert content(engine.open()) == source.entries


# Names.


@pytest.mark.parametrize("name", LEGAL)
def test_legal_names(atomic: AtomicKVStore, name: str) -> None:
    atomic.write(name, name, name, b"1")
    assert atomic.check_and_put(name, name, name, expected=b"1", value=b"2") == b"1"
    atomic.write("", "", name, b"3")
    atomic.write(name, "", name, b"4")
    assert content(atomic) == {
        (name, name, name): b"2",
        ("", "", name): b"3",
        (name, "", name): b"4",
    }
    assert atomic.list(name, name) == atomic.list("", "") == atomic.list(name, "") == [name]
    atomic.remove(name, name, name)
    assert atomic.list(name, name) == []


def by_address(store: Any) -> list[Callable[[Any, Any, Any], object]]:
    """The calls that take a whole address."""
    return [
        store.read,
        lambda p, s, k: store.write(p, s, k, b"v"),
        store.remove,
        lambda p, s, k: store.remove(p, s, k, lazy=True),
        lambda p, s, k: store.check_and_put(p, s, k, expected=None, value=b"v"),
        lambda p, s, k: store.check_and_put(p, s, k, expected=None, value=None),
    ]


def refuse_illegal_names(store: Any) -> None:
    for call in by_address(store):
        for bad in ILLEGAL:
            for address in [(bad, "s", "k"), ("p", bad, "k"), ("p", "s", bad)]:
                with pytest.raises(InvalidNameError) as caught:
                    call(*address)
                assert isinstance(caught.value, ValueError)
                if isinstance(bad, str) and len(bad) > 1 and bad.isascii():
                    assert bad not in str(caught.value)
        for address in [("p", "s", ""), ("", "s", "k"), ("", "", "")]:
            with pytest.raises(InvalidNameError):
                call(*address)
    for bad in ILLEGAL:
        for namespace in [(bad, "s"), ("p", bad), (bad, bad)]:
            with pytest.raises(InvalidNameError):
                store.list(*namespace)
    with pytest.raises(InvalidNameError):
        store.list("", "s")


def test_illegal_names_touch_nothing(atomic: AtomicKVStore) -> None:
    atomic.write("p", "s", "k", b"1")
    refuse_illegal_names(atomic)
    assert content(atomic) == {("p", "s", "k"): b"1"}


def test_illegal_names_in_a_transaction(transactional: Any) -> None:
    transactional.write("p", "s", "k", b"1")
    with transactional.transaction() as txn:
        refuse_illegal_names(txn)
    assert content(transactional) == {("p", "s", "k"): b"1"}


def test_illegal_namespaces_to_sweep(store: Any) -> None:
    for bad in ILLEGAL:
        with pytest.raises(InvalidNameError):
            store.sweep(bad, 10, 10)
    put(store, "k", b"v", 5, p=LONGEST)
    assert store.sweep(LONGEST, 10, 10) == SweepResult(1, 1, False)
    assert store.sweep("", 10, 10) == SweepResult(0, 0, False)


# Values.


def refuse_bad_values(store: Any) -> None:
    for bad in NO_BYTES:
        for call in [
            lambda bad=bad: store.write("p", "s", "k", bad),
            lambda bad=bad: store.write("p", "s", "new", bad),
            lambda bad=bad: store.check_and_put("p", "s", "k", expected=b"1", value=bad),
            lambda bad=bad: store.check_and_put("p", "s", "k", expected=bad, value=b"2"),
            lambda bad=bad: store.check_and_put("p", "s", "new", expected=None, value=bad),
        ]:
            with pytest.raises(InvalidValueError) as caught:
                call()
            assert isinstance(caught.value, TypeError)
    with pytest.raises(InvalidValueError):
        store.write("p", "s", "k", None)
    for bad in NO_TIMES:
        for expected, value in [(b"1", b"2"), (b"1", None)]:
            with pytest.raises(InvalidValueError):
                store.check_and_put("p", "s", "k", expected=expected, value=value, expires_at=bad)


def test_bad_values_touch_nothing(atomic: AtomicKVStore) -> None:
    atomic.write("p", "s", "k", b"1")
    refuse_bad_values(atomic)
    assert content(atomic) == {("p", "s", "k"): b"1"}


def test_bad_values_in_a_transaction(transactional: Any) -> None:
    transactional.write("p", "s", "k", b"1")
    with transactional.transaction() as txn:
        refuse_bad_values(txn)
    assert content(transactional) == {("p", "s", "k"): b"1"}


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "1", None])
def test_bad_sweep_limits(store: Any, limit: Any) -> None:
    put(store, "k", b"v", 5)
    with pytest.raises(InvalidValueError):
        store.sweep("p", 10, limit)
    assert store.read("p", "s", "k") == b"v"
    assert store.sweep("p", 10, 1).removed == 1


@pytest.mark.parametrize("now", [1.5, "1", None])
def test_bad_sweep_times(store: Any, now: Any) -> None:
    put(store, "k", b"v", 0)
    with pytest.raises(InvalidValueError):
        store.sweep("p", now, 1)
    assert store.read("p", "s", "k") == b"v"


# Absence.


def test_absence(atomic: AtomicKVStore) -> None:
    atomic.write("p", "s", "k", b"v")
    for address in [
        ("p", "s", "q"),
        ("p", "t", "k"),
        ("q", "s", "k"),
        ("p", "", "k"),
        ("", "", "k"),
    ]:
        with pytest.raises(KeyNotFoundError) as caught:
            atomic.read(*address)
        assert isinstance(caught.value, KeyError)
        assert isinstance(caught.value, StoreError)
        assert not str(caught.value).startswith("'")
        atomic.remove(*address)
        atomic.remove(*address, lazy=True)
        assert atomic.check_and_put(*address, expected=None, value=None) is None
    assert atomic.list("q", "s") == atomic.list("p", "t") == atomic.list("", "") == []
    assert content(atomic) == {("p", "s", "k"): b"v"}


def test_a_later_write_wins_over_a_lazy_removal(engine: Any, store: Any) -> None:
    for n in range(20):
        store.write("p", "s", "k", b"old")
        store.remove("p", "s", "k", lazy=True)
        if n % 2:
            store.write("p", "s", "k", b"new")
        else:
            assert store.check_and_put("p", "s", "k", expected=None, value=b"new") is None
        assert store.read("p", "s", "k") == b"new"
    if engine.durable:
        store.close()
        assert content(engine.open()) == {("p", "s", "k"): b"new"}


# Check and put.


@pytest.mark.parametrize("there", [None, b"", b"1", b"other"])
def test_check_and_put(atomic: AtomicKVStore, there: bytes | None) -> None:
    """Every combination: it answers with what was there, and changes iff that was expected."""
    after = {("p", "s", "beside"): b"1"}
    atomic.write("p", "s", "beside", b"1")
    combinations = itertools.product([None, b"", b"1"], [None, b"", b"1", b"2"], [None, 5])
    for n, (expected, value, expires_at) in enumerate(combinations):
        key = f"k{n}"
        if there is not None:
            atomic.write("p", "s", key, there)
        found = atomic.check_and_put(
            "p", "s", key, expected=expected, value=value, expires_at=expires_at
        )
        assert found == there
        assert found is None or type(found) is bytes
        left = value if there == expected else there
        if left is not None:
            after["p", "s", key] = left
    assert content(atomic) == after


def test_the_loser_learns_the_winners_bytes(atomic: AtomicKVStore) -> None:
    assert atomic.check_and_put("p", "s", "k", expected=None, value=b"winner") is None
    assert atomic.check_and_put("p", "s", "k", expected=None, value=b"loser") == b"winner"
    assert atomic.check_and_put("p", "s", "k", expected=b"stale", value=b"loser") == b"winner"
    assert atomic.check_and_put("p", "s", "k", expected=b"stale", value=None) == b"winner"
    assert atomic.read("p", "s", "k") == b"winner"


def count_up(store: Any, times: int) -> None:
    for _ in range(times):
        expected = store.read("p", "s", "n")
        while True:
            value = str(int(expected) + 1).encode()
            found = store.check_and_put("p", "s", "n", expected=expected, value=value)
            if found == expected:
                break
            expected = found


def test_threads_that_count(atomic: AtomicKVStore) -> None:
    atomic.write("p", "s", "n", b"0")
    start = threading.Barrier(4)

    def count() -> None:
        start.wait()
        count_up(atomic, 50)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(count) for _ in range(4)]:
            done.result()
    assert atomic.read("p", "s", "n") == b"200"


def test_one_of_many_threads_wins(atomic: AtomicKVStore) -> None:
    start = threading.Barrier(8)

    def claim(name: bytes) -> bytes | None:
        start.wait()
        return atomic.check_and_put("p", "s", "k", expected=None, value=name)

    names = [b"%d" % n for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(claim, names))
    winner = atomic.read("p", "s", "k")
    assert answers.count(None) == 1
    assert names[answers.index(None)] == winner
    assert set(answers) == {None, winner}


def test_two_objects_of_one_store(engine: Any, store: Any) -> None:
    other = engine.open()
    store.write("p", "s", "k", b"1")
    assert other.read("p", "s", "k") == b"1"
    assert other.check_and_put("p", "s", "k", expected=b"1", value=b"2") == b"1"
    assert store.read("p", "s", "k") == b"2"
    if engine.durable:
        other.close()
        assert store.read("p", "s", "k") == b"2"


# Sweeping.


def test_sweep_removes_what_is_due_and_nothing_else(store: Any) -> None:
    for at in (0, 1, 99, 100, 101, 10**13, 2**63 - 1):
        put(store, f"at-{at}", b"v", at)
    store.write("p", "s", "never", b"v")
    put(store, "never-too", b"v", None)
    put(store, "at-0", b"v", 0, p="q")
    assert store.sweep("p", -1, 10) == SweepResult(0, 0, False)
    assert store.sweep("p", 100, 10) == SweepResult(4, 4, False)
    late = {"at-101", "at-10000000000000", "at-9223372036854775807", "never", "never-too"}
    assert set(store.list("p", "s")) == late
    assert store.list("q", "s") == ["at-0"]
    assert store.sweep("p", 100, 10) == SweepResult(0, 0, False)
    assert store.sweep("p", 2**63 - 2, 10) == SweepResult(2, 2, False)
    assert store.sweep("p", 2**63 - 1, 10) == SweepResult(1, 1, False)
    assert store.sweep("p", 2**70, 10) == SweepResult(0, 0, False)
    assert sorted(store.list("p", "s")) == ["never", "never-too"]
    assert store.sweep("q", 0, 1) == SweepResult(1, 1, False)
    assert store.sweep("unknown", 2**63 - 1, 1) == SweepResult(0, 0, False)


def test_sweep_of_the_empty_namespace(store: Any) -> None:
    assert store.check_and_put("", "", "k", expected=None, value=b"v", expires_at=5) is None
    put(store, "k", b"v", 5)
    assert store.sweep("", 5, 10) == SweepResult(1, 1, False)
    assert list(store.list_all_keys()) == [("p", "s", "k")]


def test_sweep_crosses_secondary_namespaces(store: Any) -> None:
    for s in ("", "a", "b"):
        assert store.check_and_put("p", s, "k", expected=None, value=b"v", expires_at=5) is None
    assert store.sweep("p", 5, 10) == SweepResult(3, 3, False)
    assert content(store) == {}


def test_read_never_hides_an_entry(store: Any) -> None:
    put(store, "k", b"v", 0)
    assert store.read("p", "s", "k") == b"v"
    assert store.list("p", "s") == ["k"]
    assert list(store.list_all_keys()) == [("p", "s", "k")]
    assert store.check_and_put("p", "s", "k", expected=None, value=b"w") == b"v"


def test_sweep_is_bounded(store: Any) -> None:
    for n in range(7):
        put(store, f"due-{n}", b"v", n)
    put(store, "live", b"v", 1000)
    assert store.sweep("p", 100, 3) == SweepResult(3, 3, True)
    assert store.sweep("p", 100, 3) == SweepResult(3, 3, True)
    assert store.sweep("p", 100, 1) == SweepResult(1, 1, False)
    assert store.list("p", "s") == ["live"]
    assert store.sweep("p", 1000, 1) == SweepResult(1, 1, False)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 1000])
def test_sweep_in_steps_comes_to_an_end(store: Any, limit: int) -> None:
    for n in range(6):
        put(store, f"due-{n}", b"v", 5)
    removed, steps, more = 0, 0, True
    while more:
        result = store.sweep("p", 5, limit)
        assert result.visited <= limit
        removed, steps, more = removed + result.removed, steps + 1, result.more
    assert removed == 6
    assert steps <= -(-6 // limit) + 1
    assert content(store) == {}


@pytest.mark.parametrize(
    "refresh",
    [
        lambda store: put(store, "k", b"w", 500),
        lambda store: put(store, "k", b"v", 500),  # equal value, other expiry
        lambda store: put(store, "k", b"v", None),
        lambda store: store.write("p", "s", "k", b"v"),
        lambda store: (store.remove("p", "s", "k"), put(store, "k", b"v", 500)),
        lambda store: (put(store, "k", None), put(store, "k", b"v", 500)),
        lambda store: (put(store, "k", b"w", 1), put(store, "k", b"v", 500)),
    ],
)
def test_refreshed_entries_stay(store: Any, refresh: Callable[[Any], object]) -> None:
    put(store, "k", b"v", 5)
    put(store, "due", b"v", 5)
    refresh(store)
    assert store.sweep("p", 499, 10).removed == 1
    assert store.list("p", "s") == ["k"]
    assert store.sweep("p", 499, 10).removed == 0
    last = store.sweep("p", 500, 10)
    assert store.list("p", "s") == ([] if last.removed else ["k"])


def test_an_equal_value_may_get_an_earlier_expiry(store: Any) -> None:
    put(store, "k", b"v", 500)
    put(store, "k", b"v", 5)
    assert store.sweep("p", 5, 10).removed == 1
    put(store, "never", b"v", None)
    put(store, "never", b"v", 5)
    assert store.sweep("p", 5, 10).removed == 1
    assert content(store) == {}


def test_a_refused_change_moves_no_expiry(store: Any) -> None:
    put(store, "k", b"v", 5)
    assert store.check_and_put("p", "s", "k", expected=b"x", value=b"v", expires_at=500) == b"v"
    assert store.check_and_put("p", "s", "k", expected=None, value=b"v", expires_at=None) == b"v"
    put(store, "late", b"v", 500)
    assert store.check_and_put("p", "s", "late", expected=b"x", value=b"v", expires_at=5) == b"v"
    assert store.sweep("p", 5, 10).removed == 1
    assert store.list("p", "s") == ["late"]


def test_a_removed_entry_leaves_nothing_due(store: Any) -> None:
    for remove in (
        lambda: store.remove("p", "s", "k"),
        lambda: store.remove("p", "s", "k", lazy=True),
        lambda: put(store, "k", None),
    ):
        put(store, "k", b"v", 5)
        remove()
        store.write("p", "s", "k", b"another")
        assert store.sweep("p", 2**63 - 1, 10).removed == 0
        assert store.read("p", "s", "k") == b"another"


def calls_of(action: Callable[[], object]) -> int:
    """How many functions, Python's and C's, an action calls."""
    calls = 0

    def count(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


def test_sweep_costs_what_is_due_and_not_what_is_stored(store: Any) -> None:
    far = 10**13
    costs = []
    for live in (10, 200):
        for n in range(live):
            put(store, f"live-{live}-{n}", b"v", far + n)
            store.write("p", "s", f"never-{live}-{n}", b"v")
        for n in range(3):
            put(store, f"due-{n}", b"v", n)
        result = None

        def sweep() -> None:
            nonlocal result
            result = store.sweep("p", 100, 10)

        costs.append(calls_of(sweep))
        assert result == SweepResult(3, 3, False)
    assert costs[1] <= costs[0] * 1.2, costs


def test_writers_race_with_a_sweeper(store: Any) -> None:
    """Entries are refreshed while others of the same namespace are swept: none is lost."""
    for n in range(20):
        put(store, f"k{n}", b"v", 5)
    start = threading.Barrier(2)

    def refresh() -> list[int]:
        start.wait()
        kept = []
        for n in range(20):
            found = store.check_and_put(
                "p", "s", f"k{n}", expected=b"v", value=b"w", expires_at=500
            )
            if found == b"v":
                kept.append(n)
        return kept

    def sweep() -> int:
        start.wait()
        return sum(store.sweep("p", 5, 1).removed for _ in range(25))

    with ThreadPoolExecutor(2) as pool:
        refreshed, swept = pool.submit(refresh), pool.submit(sweep)
        kept, removed = refreshed.result(), swept.result()
    assert len(kept) + removed == 20
    assert sorted(store.list("p", "s")) == sorted(f"k{n}" for n in kept)
    assert all(store.read("p", "s", f"k{n}") == b"w" for n in kept)


# Walking.


def test_a_walk_shows_what_stays_exactly_once(atomic: AtomicKVStore) -> None:
    stays = {(p, s, f"stays-{n}") for p in ("a", "m", "z") for s in ("", "s") for n in range(5)}
    goes = {(p, s, f"goes-{n}") for p in ("a", "m", "z") for s in ("", "s") for n in range(5)}
    for address in stays | goes:
        atomic.write(*address, b"v")
    seen = []
    for step, address in enumerate(atomic.list_all_keys()):
        seen.append(address)
        if goes:
            atomic.remove(*goes.pop())
        atomic.write(*sorted(stays)[step % len(stays)], b"w")
        atomic.write("new", "s", f"n{step % 7}", b"v")
        atomic.write("a", "s", f"0new{step % 7}", b"v")
    assert [address for address in seen if address in stays] == sorted(
        (address for address in seen if address in stays), key=seen.index
    )
    assert {address for address in seen if address in stays} == stays
    assert all(seen.count(address) == 1 for address in stays)


def test_walks_and_lists_during_changes(store: Any) -> None:
    stays = {f"stays-{n}" for n in range(20)}
    for key in stays:
        store.write("p", "s", key, b"v")
    done = threading.Event()

    def watch() -> int:
        walks = 0
        while not done.is_set():
            for keys in (store.list("p", "s"), [k for _, _, k in store.list_all_keys()]):
                assert len(keys) == len(set(keys))
                assert stays <= set(keys) <= stays | {"comes", "goes"}
            walks += 1
        return walks

    with ThreadPoolExecutor(2) as pool:
        watchers = [pool.submit(watch) for _ in range(2)]
        try:
            for _ in range(50):
                store.write("p", "s", "comes", b"v")
                put(store, "goes", b"v", 5)
                store.sweep("p", 5, 10)
                store.remove("p", "s", "comes")
        finally:
            done.set()
        assert all(watcher.result() > 0 for watcher in watchers)


def test_a_walk_that_is_left_blocks_nobody(store: Any) -> None:
    for n in range(5):
        store.write("p", "s", f"k{n}", b"v")
    walk = store.list_all_keys()
    next(walk)
    store.write("p", "s", "k0", b"w")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(store.write, "p", "s", "k1", b"w").result(30)
    assert len(list(walk)) == 4


# Closing.


def every_call(store: Any) -> list[Callable[[], object]]:
    calls: list[Callable[[], object]] = [
        lambda: store.read("p", "s", "k"),
        lambda: store.read("p", "s", "absent"),
        lambda: store.write("p", "s", "k", b"w"),
        lambda: store.remove("p", "s", "k"),
        lambda: store.remove("p", "s", "absent"),
        lambda: store.remove("p", "s", "k", lazy=True),
        lambda: store.list("p", "s"),
        lambda: store.list("unknown", ""),
        lambda: store.list_all_keys(),
        lambda: store.check_and_put("p", "s", "k", expected=b"v", value=b"w"),
        lambda: store.check_and_put("p", "s", "k", expected=b"x", value=b"w"),
        lambda: store.check_and_put("p", "s", "k", expected=b"v", value=None),
    ]
    if hasattr(store, "sweep"):
        calls.append(lambda: store.sweep("p", 10, 10))
    if hasattr(store, "transaction"):
        calls.append(lambda: store.transaction().__enter__())
    return calls


def test_closed(atomic: AtomicKVStore) -> None:
    atomic.write("p", "s", "k", b"v")
    atomic.close()  # type: ignore[attr-defined]
    for call in every_call(atomic):
        with pytest.raises(StoreError) as caught:
            call()
        assert not isinstance(caught.value, KeyNotFoundError | OutcomeUnknownError)
        assert "closed" in str(caught.value)
    atomic.close()  # type: ignore[attr-defined]
    assert "closed" in repr(atomic) or "open" not in repr(atomic)


def test_closed_keeps_what_is_durable(engine: Any, store: Any) -> None:
    put(store, "k", b"v", 5)
    store.close()
    for call in every_call(store):
        with pytest.raises(StoreError):
            call()
    if engine.durable:
        with engine.open() as again:
            assert content(again) == {("p", "s", "k"): b"v"}
            assert again.sweep("p", 5, 1) == SweepResult(1, 1, False)
        with engine.open() as again:
            assert content(again) == {}


def test_closed_during_a_walk(store: Any) -> None:
    for p in ("a", "b", "c"):
        store.write(p, "s", "k", b"v")
    walk = store.list_all_keys()
    next(walk)
    store.close()
    seen = 1
    with contextlib.suppress(StoreError):  # as long as it does not end as if it were complete
        for _ in walk:
            seen += 1
        assert seen == 3


def test_context_manager(atomic: Any) -> None:
    with atomic as entered:
        assert entered is atomic
        atomic.write("p", "s", "k", b"v")
    with pytest.raises(StoreError):
        atomic.read("p", "s", "k")


def test_context_manager_lets_exceptions_through(atomic: Any) -> None:
    with pytest.raises(ZeroDivisionError), atomic:
        raise ZeroDivisionError
    with pytest.raises(StoreError):
        atomic.read("p", "s", "k")


def test_repr_shows_no_entry(atomic: AtomicKVStore) -> None:
    atomic.write("secret-p", "secret-s", "secret-k", b"secret")
    assert "secret" not in repr(atomic)


def test_two_threads_close_at_once(engine: Any) -> None:
    other = engine.open()
    for _ in range(20):
        store = engine.open() if engine.durable else engine.opened[0]
        start = threading.Barrier(3)

        def close(store: Any = store, start: threading.Barrier = start) -> None:
            start.wait()
            store.close()

        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(close) for _ in range(3)]:
                done.result()
    if engine.durable:
        other.write("p", "s", "k", b"v")
        assert other.read("p", "s", "k") == b"v"


# Transactions.


def test_transaction_commits_as_a_whole(transactional_engine: Any, transactional: Any) -> None:
    transactional.write("p", "s", "goes", b"v")
    transactional.write("p", "s", "changes", b"v")
    with transactional.transaction() as txn:
        txn.write("p", "s", "comes", b"1")
        txn.remove("p", "s", "goes")
        txn.remove("p", "s", "absent")
        assert txn.check_and_put("q", "s", "changes", expected=None, value=b"2") is None
        assert txn.check_and_put("p", "s", "changes", expected=b"v", value=b"3") == b"v"
        assert txn.check_and_put("p", "s", "changes", expected=b"v", value=b"4") == b"3"
    expected = {("p", "s", "comes"): b"1", ("q", "s", "changes"): b"2", ("p", "s", "changes"): b"3"}
    assert content(transactional) == expected
    if transactional_engine.durable:
        transactional.close()
        assert content(transactional_engine.open()) == expected


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, StoreError])
def test_transaction_that_raises_changes_nothing(
    transactional: Any, error: type[BaseException]
) -> None:
    put(transactional, "k", b"v", 5)
    with pytest.raises(error), transactional.transaction() as txn:
        txn.write("p", "s", "k", b"w")
        txn.write("p", "s", "new", b"w")
        txn.remove("p", "s", "k")
        raise error
    assert content(transactional) == {("p", "s", "k"): b"v"}
    transactional.write("p", "s", "later", b"1")
    assert transactional.sweep("p", 5, 5) == SweepResult(1, 1, False)


def test_transaction_of_nothing(transactional: Any) -> None:
    with transactional.transaction():
        pass
    with transactional.transaction() as txn:
        assert txn.list("p", "s") == []
    assert content(transactional) == {}


def test_transaction_reads_its_own_changes(transactional: Any) -> None:
    for key in ("a", "b"):
        transactional.write("p", "s", key, b"old")
    with transactional.transaction() as txn:
        assert sorted(txn.list("p", "s")) == ["a", "b"]
        txn.write("p", "s", "a", b"new")
        txn.write("p", "s", "c", b"new")
        txn.remove("p", "s", "b")
        assert txn.read("p", "s", "a") == b"new"
        with pytest.raises(KeyNotFoundError):
            txn.read("p", "s", "b")
        assert sorted(txn.list("p", "s")) == ["a", "c"]
        txn.remove("p", "s", "c", lazy=True)
        txn.write("p", "s", "b", b"again")
        assert sorted(txn.list("p", "s")) == ["a", "b"]
        assert txn.check_and_put("p", "s", "b", expected=b"again", value=None) == b"again"
        assert txn.list("p", "s") == ["a"]
        assert txn.list("p", "") == txn.list("q", "s") == []
        assert transactional.read("p", "s", "a") == b"old", "outside it, nothing has happened yet"
        assert sorted(transactional.list("p", "s")) == ["a", "b"]
        assert len(list(transactional.list_all_keys())) == 2
    assert content(transactional) == {("p", "s", "a"): b"new"}


def test_expiry_in_a_transaction(transactional: Any) -> None:
    put(transactional, "kept", b"v", 5)
    put(transactional, "earlier", b"v", 500)
    with transactional.transaction() as txn:
        txn.check_and_put("p", "s", "due", expected=None, value=b"v", expires_at=5)
        txn.check_and_put("p", "s", "gone", expected=None, value=b"v", expires_at=5)
        txn.check_and_put("p", "s", "gone", expected=b"v", value=None)
        txn.check_and_put("p", "s", "late", expected=None, value=b"v", expires_at=5)
        txn.check_and_put("p", "s", "late", expected=b"v", value=b"v", expires_at=500)
        txn.write("p", "s", "kept", b"v")
        txn.check_and_put("p", "s", "earlier", expected=b"v", value=b"v", expires_at=4)
    assert transactional.sweep("p", 5, 10) == SweepResult(2, 2, False)
    assert sorted(transactional.list("p", "s")) == ["kept", "late"]
    assert transactional.sweep("p", 500, 10) == SweepResult(1, 1, False)


def test_the_store_itself_is_refused_inside(transactional: Any) -> None:
    with transactional.transaction() as txn:
        txn.write("p", "s", "k", b"v")
        for call in [
            lambda: transactional.write("p", "s", "x", b"1"),
            lambda: transactional.remove("p", "s", "x"),
            lambda: transactional.check_and_put("p", "s", "x", expected=None, value=b"1"),
            lambda: transactional.sweep("p", 5, 1),
            lambda: transactional.transaction().__enter__(),
            lambda: transactional.close(),
        ]:
            with pytest.raises(StoreError, match="transaction"):
                call()
        with pytest.raises(KeyNotFoundError):
            transactional.read("p", "s", "k")
    assert content(transactional) == {("p", "s", "k"): b"v"}
    transactional.write("p", "s", "x", b"1")
    assert sorted(transactional.list("p", "s")) == ["k", "x"]


def calls_in(txn: Any) -> list[Callable[[], object]]:
    return [
        lambda: txn.read("p", "s", "k"),
        lambda: txn.write("p", "s", "k", b"w"),
        lambda: txn.remove("p", "s", "k"),
        lambda: txn.list("p", "s"),
        lambda: txn.check_and_put("p", "s", "k", expected=b"v", value=b"w"),
        lambda: txn.check_and_put("p", "s", "k", expected=b"x", value=b"w"),
    ]


@pytest.mark.parametrize("raises", [False, True])
def test_use_after_the_end_is_refused(transactional: Any, raises: bool) -> None:
    with contextlib.suppress(ZeroDivisionError), transactional.transaction() as txn:
        txn.write("p", "s", "k", b"v")
        if raises:
            raise ZeroDivisionError
    before = content(transactional)
    for call in calls_in(txn):
        with pytest.raises(StoreError, match="ended"):
            call()
    assert content(transactional) == before == ({} if raises else {("p", "s", "k"): b"v"})


def test_a_transaction_belongs_to_its_thread(transactional: Any) -> None:
    block = transactional.transaction()
    txn = block.__enter__()
    txn.write("p", "s", "k", b"v")
    with ThreadPoolExecutor(1) as pool:
        for call in [*calls_in(txn), lambda: block.__exit__(None, None, None)]:
            with pytest.raises(StoreError, match="thread"):
                pool.submit(call).result(30)
        assert pool.submit(transactional.list, "p", "s").result(30) == []
    assert txn.read("p", "s", "k") == b"v", "it is still open where it was begun"
    block.__exit__(None, None, None)
    assert content(transactional) == {("p", "s", "k"): b"v"}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(transactional.write, "p", "s", "other", b"v").result(30)


def test_readers_are_not_held_up(transactional: Any) -> None:
    transactional.write("p", "s", "k", b"old")
    with ThreadPoolExecutor(1) as pool:
        with transactional.transaction() as txn:
            txn.write("p", "s", "k", b"new")
            assert pool.submit(transactional.read, "p", "s", "k").result(30) == b"old"
            assert pool.submit(transactional.list, "p", "s").result(30) == ["k"]
            assert len(pool.submit(lambda: list(transactional.list_all_keys())).result(30)) == 1
        assert pool.submit(transactional.read, "p", "s", "k").result(30) == b"new"


def test_readers_see_all_or_none(transactional: Any) -> None:
    """What is read second is never older than what was read first."""
    for key in ("a", "b"):
        transactional.write("p", "s", key, b"0")
    done = threading.Event()

    def watch(first: str, second: str) -> int:
        reads = 0
        while not done.is_set():
            one = int(transactional.read("p", "s", first))
            other = int(transactional.read("p", "s", second))
            assert one <= other
            reads += 1
        return reads

    with ThreadPoolExecutor(2) as pool:
        watchers = [pool.submit(watch, "a", "b"), pool.submit(watch, "b", "a")]
        try:
            for n in range(1, 200):
                with transactional.transaction() as txn:
                    txn.write("p", "s", "a", str(n).encode())
                    txn.write("p", "s", "b", str(n).encode())
        finally:
            done.set()
        assert all(watcher.result() > 0 for watcher in watchers)


def test_a_writer_waits_for_the_transaction(transactional: Any) -> None:
    transactional.write("p", "s", "n", b"0")
    with ThreadPoolExecutor(2) as pool:
        with transactional.transaction() as txn:
            writer = pool.submit(
                transactional.check_and_put, "p", "s", "n", expected=b"1", value=b"2"
            )
            closed = pool.submit(transactional.sweep, "p", 5, 5)
            assert not writer.done()
            txn.write("p", "s", "n", b"1")
        assert writer.result(30) == b"1"
        closed.result(30)
    assert transactional.read("p", "s", "n") == b"2"


def test_close_waits_for_another_threads_transaction(
    transactional_engine: Any, transactional: Any
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with transactional.transaction() as txn:
            closing = pool.submit(transactional.close)
            txn.write("p", "s", "k", b"v")
        closing.result(30)
    if transactional_engine.durable:
        assert content(transactional_engine.open()) == {("p", "s", "k"): b"v"}
    else:
        with pytest.raises(StoreError):
            transactional.read("p", "s", "k")


# Forking.


def test_a_forked_child_goes_on(engine: Any, store: Any, fork: Any) -> None:
    put(store, "k", b"v", 500)

    def child() -> None:
        assert store.read("p", "s", "k") == b"v"
        assert store.check_and_put("p", "s", "k", expected=b"v", value=b"child") == b"v"
        put(store, "due", b"v", 5)
        assert store.sweep("p", 5, 5).removed == 1
        assert list(store.list_all_keys()) == [("p", "s", "k")]
        store.close()

    fork(child).join()
    assert store.read("p", "s", "k") == (b"child" if engine.durable else b"v")
    store.write("p", "s", "k", b"parent")
    assert store.read("p", "s", "k") == b"parent"


def test_a_child_forked_among_busy_threads_goes_on(store: Any, fork: Any) -> None:
    store.write("p", "s", "n", b"0")
    done = threading.Event()

    def work(name: str) -> None:
        while not done.is_set():
            found = store.check_and_put("p", "s", name, expected=None, value=b"v", expires_at=5)
            store.check_and_put("p", "s", name, expected=found, value=b"v", expires_at=600)
            assert "n" in store.list("p", "s")
            store.read("p", "s", "n")

    def child() -> None:
        count_up(store, 3)
        put(store, "child", b"v", 5)
        put(store, "child", b"v", 6)
        assert store.sweep("p", 600, 1000).removed >= 1
        assert "child" not in store.list("p", "s")
        for key in store.list("p", "s"):
            with contextlib.suppress(KeyNotFoundError):  # the parent may have removed it
                store.read("p", "s", key)

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(work, f"k{n}") for n in range(3)]
        try:
            for _ in range(10):
                fork(child).join()
        finally:
            done.set()
        for worker in workers:
            worker.result()
    count_up(store, 1)


def test_a_fork_inside_a_transaction(
    transactional_engine: Any, transactional: Any, fork: Any
) -> None:
    transactional.write("p", "s", "k", b"old")

    def child_goes_on() -> None:  # an engine that is shared waits for the parent's transaction
        assert transactional.read("p", "s", "k") == (
            b"new" if transactional_engine.durable else b"old"
        )
        transactional.list("p", "s")

    with transactional.transaction() as txn:
        txn.write("p", "s", "k", b"new")
        child = fork(child_goes_on)
        assert txn.read("p", "s", "k") == b"new"
        txn.write("p", "s", "more", b"new")
    child.join()
    assert content(transactional) == {("p", "s", "k"): b"new", ("p", "s", "more"): b"new"}
    assert transactional_engine.open().read("p", "s", "k") == b"new"


def test_a_child_of_a_child(engine: Any, store: Any, fork: Any) -> None:
    """The one between has not touched the store when it forks."""
    store.write("p", "s", "n", b"0")

    def grandchild() -> None:
        count_up(store, 1)

    def child() -> None:
        fork(grandchild).join()
        count_up(store, 1)
        fork(grandchild).join()
        assert store.read("p", "s", "n") == (b"3" if engine.durable else b"1")

    fork(child).join()
    count_up(store, 1)
    assert store.read("p", "s", "n") == (b"4" if engine.durable else b"1")
