"""What grows with the number of records in etcd? And what does a record take of its quota?

One member, whose files are in memory. Its default quota is 2 GiB, and it keeps all history until
somebody compacts it. 10^6 records need a larger quota, and are measured if they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import cycle, islice
from typing import Any, Final

import pytest

from benchmarks.bench_scale import hits, pages
from benchmarks.bench_sweep import sweep_all
from benchmarks.conftest import Sizes, sizes_of
from benchmarks.measure import calling, in_turn
from benchmarks.workload import (
    FAR,
    LONG_AGO,
    NAMESPACE,
    PARAMS,
    SCOPE,
    completed,
    request_id,
    respond,
)
from kvreplay import Replay, open_store
from kvreplay.backends.etcd import EtcdStore
from kvreplay.backends.etcd.layout import expiry_text
from kvreplay.backends.etcd.requests import put, transaction

QUOTA: Final = 2 * 2**30
"""etcd's default, in bytes."""

FITS: Final = 10**5
MOST: Final = 10**6
TOGETHER: Final = 40  # records in a transaction: etcd's default allows 128 operations

Note = Callable[..., None]


class Member:
    """A member of its own, and a store in it."""

    def __init__(self, quota: int = QUOTA) -> None:
        from support.etcd import Cluster

        self.ends = ExitStack()
        settings = {"quota-backend-bytes": quota}
        self._cluster = self.ends.enter_context(Cluster(1, settings=settings))
        store = self.ends.enter_context(open_store(self._cluster.url("bench", timeout="60s")))
        assert isinstance(store, EtcdStore)
        self.store = store

    def fill(self, numbers: Iterable[int], expires_at: int) -> None:
        """Store answers, many in a transaction; so a page goes on behind what was made together."""
        keys, rest = self.store._operations._keys, iter(numbers)
        while chunk := list(islice(rest, TOGETHER)):
            steps = []
            for number in chunk:
                key, record = completed(number, expires_at)
                names = (NAMESPACE, key.scope, key.id)
                due = keys.due(NAMESPACE, expires_at, key.scope, key.id)
                steps += [
                    put(keys.entry(*names), record),
                    put(keys.expiry(*names), expiry_text(expires_at)),
                    put(due, b""),
                ]
            self.store._opened()._execute(transaction((), steps))

    def bytes_used(self) -> int:
        """How large the database is without free pages."""
        self._cluster.call("/v3/maintenance/defragment")
        return int(self._cluster.call("/v3/maintenance/status")["dbSize"])

    def compact(self) -> None:
        """Forget all history."""
        revision = self._cluster.call("/v3/maintenance/status")["header"]["revision"]
        self._cluster.call("/v3/kv/compaction", revision=revision, physical=True)


@pytest.fixture(scope="module")
def member() -> Iterator[Callable[[int], Member]]:
    """``member(10**4)`` has so many live records; it is filled when it is first needed."""
    filled: dict[int, Member] = {}
    with ExitStack() as ends:

        def member(records: int) -> Member:
            if records not in filled:
                filled[records] = made = Member(QUOTA if records <= FITS else 4 * QUOTA)
                ends.push(made.ends)
                made.fill(range(records), FAR)
            return filled[records]

        yield member


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "live" in metafunc.fixturenames:
        sizes = sizes_of(metafunc.config)
        most = MOST if metafunc.config.getoption("--huge") else FITS
        if sizes.rounds == 1:
            most = min(sizes.records)
        metafunc.parametrize("live", [each for each in sizes.records if each <= most])


def puts(store: EtcdStore) -> Callable[[], object]:
    """Return what swaps the value of an entry, there and back."""
    values = completed(0, FAR)[1], completed(1, FAR)[1]
    store.write("puts", SCOPE, "k", values[0])
    changes = cycle([values, values[::-1]])

    def swap() -> None:
        expected, value = next(changes)
        store.check_and_put("puts", SCOPE, "k", expected=expected, value=value, expires_at=FAR)

    return swap


@pytest.mark.parametrize("call", ["hit", "check-and-put", "page of 100"])
def test_call(
    benchmark: Any,
    note: Note,
    sizes: Sizes,
    member: Callable[[int], Member],
    live: int,
    call: str,
) -> None:
    """One after the other, in turn with the same on the smallest store."""
    least, calls = min(sizes.records), min(sizes.calls, 100)
    if call == "page of 100":  # each costs the member a look at the whole namespace
        calls = 3

    def round_of(records: int) -> Callable[[], float]:
        store = member(records).store
        if call == "hit":
            return calling(hits(store, min(records, least)), calls)
        return calling(puts(store) if call == "check-and-put" else pages(store), calls)

    own, smallest = in_turn(
        benchmark, round_of(live), round_of(least), rounds=min(sizes.rounds, 11)
    )
    note(
        f"etcd scale/{call}, {live} records",
        {"records": live, "µs": own * 1e6, f"x {least} records": own / smallest},
    )


def test_sweep(
    benchmark: Any, note: Note, sizes: Sizes, member: Callable[[int], Member], live: int
) -> None:
    """Due records, scattered among live ones."""
    least, due = min(sizes.records), min(sizes.due, 1000)

    def sweep(records: int) -> float:
        one = member(records)
        one.fill(range(MOST, MOST + due), LONG_AGO)
        return sweep_all(Replay(one.store, NAMESPACE, ttl=3600), due)

    own, smallest = in_turn(
        benchmark, lambda: sweep(live), lambda: sweep(least), rounds=min(sizes.rounds, 5)
    )
    note(
        f"etcd scale/sweep of a due record, {live} records",
        {"records": live, "µs": own / due * 1e6, f"x {least} records": own / smallest},
    )


def test_what_a_record_takes(benchmark: Any, note: Note, sizes: Sizes) -> None:
    """Of the quota: as first executions leave it, and once history is compacted."""
    executions = 5000 if sizes.rounds > 1 else 50
    one = Member()
    with one.ends:
        replay = Replay(one.store, NAMESPACE, ttl=3600)
        empty = one.bytes_used()

        def run() -> None:
            for number in range(executions):
                replay.execute((SCOPE, request_id(number)), PARAMS, respond)

        benchmark.pedantic(run, rounds=1)
        with_history = (one.bytes_used() - empty) / executions
        one.compact()
        compacted = (one.bytes_used() - empty) / executions
    note(
        "etcd quota/a record",
        {
            "bytes with its history": with_history,
            "bytes once compacted": compacted,
            "first executions until 2 GiB are full": int(QUOTA / with_history),
            "live records in 2 GiB": int(QUOTA / compacted),
        },
    )
