"""What an etcd has too little of, and what its operator does meanwhile: quota, sizes, compaction, defragmentation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from etcd.conftest import Opener
from etcd.counters import counting, until_counted
from kvreplay import (
    InvalidValueError,
    KeyNotFoundError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
)
from kvreplay.testing.threads import Running, at_once
from support.etcd import Cluster, RefusedError, coded
from support.waiting import until

NAMES = ("p", "s", "k")
QUOTA = 2**20
LARGE = bytes(50_000)


@pytest.fixture
def full(opener: Opener) -> Iterator[tuple[Cluster, Any, int]]:
    """A cluster whose quota is used up, a store there, and how many entries it has taken."""
    with Cluster(1, settings={"quota-backend-bytes": QUOTA}) as cluster:
        store = opener(cluster.url("full"))
        count = 0

        def is_full() -> bool:
            nonlocal count
            try:
                store.check_and_put(
                    *("p", "s", f"k{count}"), expected=None, value=LARGE, expires_at=count
                )
            except StoreFullError:
                return True
            except OutcomeUnknownError:  # it crosses the quota
                count += f"k{count}" in store.list("p", "s")
            else:
                count += 1
            return False

        until(is_full)
        until(lambda: alarms(cluster))
        assert [alarm["alarm"] for alarm in alarms(cluster)] == ["NOSPACE"]
        yield cluster, store, count


def alarms(cluster: Cluster) -> Any:
    return cluster.call("/v3/maintenance/alarm", action="GET").get("alarms", [])


def test_a_full_cluster_takes_no_values(full: tuple[Cluster, Any, int]) -> None:
    _, store, count = full
    assert count > 2
    for change in (
        lambda: store.write(*NAMES, b"v"),
        lambda: store.check_and_put(*NAMES, expected=None, value=b"v"),
        lambda: store.check_and_put("p", "s", "k0", expected=LARGE, value=b"v", expires_at=1),
    ):
        with pytest.raises(StoreFullError, match="quota"):
            change()
    assert store.read("p", "s", "k0") == LARGE
    with pytest.raises(KeyNotFoundError):
        store.read(*NAMES)
    assert len(store.list("p", "s")) == count


def test_what_is_called_unmade_was_not_made(opener: Opener) -> None:
    """A member that meets the end of its quota while it applies a change makes that one, and says that it is full."""
    unknown = 0
    for _ in range(20):
        with Cluster(1, settings={"quota-backend-bytes": QUOTA}) as cluster:
            store = opener(cluster.url("full"))
            filled = at_once(*[partial(fill, store, number) for number in range(16)])
            said = [each for some in filled for each in some]
            there = set(store.list("p", "s"))
        assert {key for key, error in said if error is None} <= there
        assert not {key for key, error in said if error is StoreFullError} & there
        unknown += sum(error is OutcomeUnknownError for _, error in said)
        if unknown:
            return
    pytest.fail("no change was under way when the quota ended")


def fill(store: Any, number: int) -> list[tuple[str, type[StoreError] | None]]:
    """Put entries, by both kinds of changes, until the store is full; return what became of each."""
    said: list[tuple[str, type[StoreError] | None]] = []
    while not said or said[-1][1] is None:
        key = f"{number}-{len(said)}"
        try:
            if len(said) % 2:
                store.write("p", "s", key, bytes(3000))
            else:
                store.check_and_put("p", "s", key, expected=None, value=bytes(3000))
        except (StoreFullError, OutcomeUnknownError) as error:
            said.append((key, type(error)))
        else:
            said.append((key, None))
    return said


def test_a_full_cluster_lets_entries_go_and_then_takes_values_again(
    full: tuple[Cluster, Any, int],
) -> None:
    cluster, store, count = full
    store.remove("p", "s", "k0")
    assert store.check_and_put("p", "s", "k1", expected=LARGE, value=None) == LARGE
    swept = store.sweep("p", count, 100)
    assert swept.removed == count - 2
    assert store.list("p", "s") == []
    with pytest.raises(StoreFullError):  # what is gone still takes room
        store.write(*NAMES, b"v")
    [member] = cluster.members
    revision = cluster.call("/v3/kv/range", key=coded(b"k"))["header"]["revision"]
    cluster.call("/v3/kv/compaction", revision=revision, physical=True)
    member.call("/v3/maintenance/defragment", within=30)
    for alarm in alarms(cluster):
        member.call("/v3/maintenance/alarm", action="DEACTIVATE", **alarm)
    store.write(*NAMES, b"v")
    assert store.read(*NAMES) == b"v"


def test_a_request_that_is_too_large(opener: Opener) -> None:
    with Cluster(1, settings={"max-request-bytes": 60_000}) as cluster:
        store = opener(cluster.url("large"))
        store.write(*NAMES, b"before")
        for change in (
            lambda: store.write(*NAMES, bytes(60_000)),
            lambda: store.check_and_put(*NAMES, expected=b"before", value=bytes(60_000)),
        ):
            with pytest.raises(InvalidValueError, match="max-request-bytes"):
                change()
        # A value fits that could not be replaced any more, since what is there is sent with what is new.
        store.write(*NAMES, LARGE)
        with pytest.raises(InvalidValueError, match="max-request-bytes"):
            store.check_and_put(*NAMES, expected=LARGE, value=LARGE)
        assert store.check_and_put(*NAMES, expected=LARGE, value=b"small") == LARGE


def test_a_walk_goes_on_over_a_compaction(cluster: Cluster, opener: Opener) -> None:
    store = opener(cluster.url(f"walked-{opener.face}"))
    kept = {f"k{number:04}" for number in range(1500)}
    adding = [Running(lambda some=some: _write(store, some)) for some in _parts(sorted(kept))]
    for each in adding:
        each.result()
    walk = store.list_all_keys()
    first = next(walk)
    for number in range(5):
        store.write("p", "s", "changed", b"%d" % number)
    revision = cluster.call("/v3/kv/range", key=coded(b"k"))["header"]["revision"]
    cluster.call("/v3/kv/compaction", revision=revision, physical=True)
    with pytest.raises(RefusedError, match="compacted"):
        cluster.call("/v3/kv/range", key=coded(b"k"), revision=int(revision) - 3)
    walked = [first, *walk]
    assert len(set(walked)) == len(walked)
    assert kept <= {key for _, _, key in walked}


def _write(store: Any, keys: Any) -> None:
    for key in keys:
        store.write("p", "s", key, b"v")


def _parts(keys: list[str]) -> list[list[str]]:
    return [keys[number::4] for number in range(4)]


def test_calls_go_on_while_members_are_defragmented(cluster: Cluster, opener: Opener) -> None:
    store = opener(cluster.url(f"defragmented-{opener.face}", timeout="5s"))
    with counting(store, bound=5) as counters:
        for member in cluster.members:
            member.call("/v3/maintenance/defragment", within=30)
            until_counted(counters)
