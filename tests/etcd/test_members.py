"""Members that are killed, frozen or cut off, while threads go on to call a store that is connected to them.

``counting`` holds the store to what it told its threads: nothing acknowledged is missing, no call takes longer
than it may.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from etcd.conftest import Opener
from etcd.counters import A_LITTLE, counting, until_counted
from kvreplay import KeyNotFoundError, OutcomeUnknownError, StoreUnavailableError
from kvreplay.testing.threads import Running
from support.connections import peers
from support.etcd import Cluster, Member
from support.networks import Network
from support.waiting import until

TIMEOUT = 1.5
SHARE = TIMEOUT / 3
"""Seconds that a read waits for one of three members."""
NAMES = ("p", "s", "k")

Fault = Callable[[Network, Cluster, Sequence[Member]], None]


def kill(network: Network, cluster: Cluster, victims: Sequence[Member]) -> None:
    for member in victims:
        member.kill()


def freeze(network: Network, cluster: Cluster, victims: Sequence[Member]) -> None:
    for member in victims:
        member.freeze()


def cut(network: Network, cluster: Cluster, victims: Sequence[Member]) -> None:
    for member in victims:
        network.cut(member.host)


def part(network: Network, cluster: Cluster, victims: Sequence[Member]) -> None:
    """From the other members; clients reach them."""
    for member in victims:
        network.part(member.host, *(each.host for each in cluster.members if each is not member))


FAULTS = pytest.mark.parametrize("fault", [kill, freeze, cut, part])


@pytest.fixture
def in_force(cut_cluster: tuple[Network, Cluster]) -> Callable[..., Any]:
    """``with in_force(fault, *victims):`` and afterwards all are well."""
    network, cluster = cut_cluster

    @contextmanager
    def force(fault: Fault, *victims: Member) -> Iterator[None]:
        fault(network, cluster, victims)
        try:
            yield
        finally:
            network.heal()
            cluster.start_all()

    return force


@pytest.fixture
def opened(
    cut_cluster: tuple[Network, Cluster], opener: Opener, chance: random.Random
) -> Callable[..., Any]:
    """``opened(member, …)``: a store that asks these members, in this order; by default all."""
    _, cluster = cut_cluster
    prefix = f"p{chance.random()}"
    return lambda *members: opener(cluster.url(prefix, *members, timeout=f"{TIMEOUT}s"))


def is_connected(member: Member) -> bool:
    return (member.address, member.port) in peers()


@FAULTS
@pytest.mark.parametrize("role", ["leader", "follower"])
def test_the_work_goes_on_without_one_member(
    role: str, fault: Fault, cut_cluster: tuple[Network, Cluster], opened: Any, in_force: Any
) -> None:
    _, cluster = cut_cluster
    victim = cluster.leader() if role == "leader" else cluster.followers()[0]
    others = [member for member in cluster.members if member is not victim]
    store = opened(victim, *others)
    with counting(store, bound=TIMEOUT) as counters:
        assert is_connected(victim)
        with in_force(fault, victim):
            until_counted(counters)
            if fault is kill:
                assert not is_connected(victim)
            else:  # somebody has waited for it
                assert max(counter.longest for counter in counters) > 0.9 * SHARE
        until_counted(counters)


@FAULTS
def test_without_a_majority_nothing_is_answered(
    fault: Fault, cut_cluster: tuple[Network, Cluster], opened: Any, in_force: Any
) -> None:
    _, cluster = cut_cluster
    store = opened()
    store.write(*NAMES, b"before")
    leader, follower = cluster.leader(), cluster.followers()[0]
    with counting(store, bound=TIMEOUT) as counters:
        with in_force(fault, leader, follower):
            began = time.monotonic()
            reading = Running(lambda: store.read(*NAMES))
            changing = Running(
                lambda: store.check_and_put(*NAMES, expected=b"before", value=b"after")
            )
            with pytest.raises(StoreUnavailableError):
                reading.result()
            with pytest.raises((StoreUnavailableError, OutcomeUnknownError)):
                changing.result()
            assert time.monotonic() - began < TIMEOUT + A_LITTLE
            before = [counter.unknown + counter.refused for counter in counters]
            until(
                lambda: all(
                    counter.unknown + counter.refused > was
                    for counter, was in zip(counters, before, strict=True)
                )
            )
        until_counted(counters)
    assert store.read(*NAMES) in (b"before", b"after")
    store.write(*NAMES, b"afterwards")


def test_a_change_that_nobody_was_sent_was_not_made(
    cut_cluster: tuple[Network, Cluster], opened: Any, in_force: Any
) -> None:
    _, cluster = cut_cluster
    store = opened()
    store.write(*NAMES, b"before")
    with in_force(kill, *cluster.members):
        for change in (
            lambda: store.write(*NAMES, b"after"),
            lambda: store.remove(*NAMES),
            lambda: store.check_and_put(*NAMES, expected=b"before", value=b"after"),
            lambda: store.sweep("p", 1, 10),
        ):
            with pytest.raises(StoreUnavailableError, match="nothing was changed"):
                change()
    assert store.read(*NAMES) == b"before"


def test_a_member_that_only_clients_reach_answers_no_stale_read(
    cut_cluster: tuple[Network, Cluster], opened: Any, in_force: Any
) -> None:
    _, cluster = cut_cluster
    leader, followers = cluster.leader(), cluster.followers()
    alone, others = opened(leader), opened(*followers)
    alone.write(*NAMES, b"before")
    alone.write("p", "s", "gone", b"before")
    with in_force(part, leader):
        counted = []
        until(lambda: _written(others, counted))
        others.remove("p", "s", "gone")
        others.write("p", "s", "new", b"after")
        asked = [
            Running(lambda: alone.read(*NAMES)),
            Running(lambda: alone.read("p", "s", "new")),
            Running(lambda: alone.list("p", "s")),
            Running(lambda: list(alone.list_all_keys())),
            Running(lambda: alone.check_and_put("p", "s", "gone", expected=b"x", value=b"y")),
        ]
        for each in asked:
            with pytest.raises((StoreUnavailableError, OutcomeUnknownError)):
                each.result()
    assert alone.read(*NAMES) == counted[-1]
    assert alone.read("p", "s", "new") == b"after"
    with pytest.raises(KeyNotFoundError):
        alone.read("p", "s", "gone")


def _written(store: Any, counted: list[bytes]) -> bool:
    """Write another value, unless there is no leader yet."""
    value = b"after %d" % len(counted)
    try:
        store.write(*NAMES, value)
    except (OutcomeUnknownError, StoreUnavailableError):
        return False
    counted.append(value)
    return True


def test_a_member_is_removed_and_another_one_added(opener: Opener) -> None:
    with Cluster() as cluster:
        store = opener(cluster.url("p", timeout=f"{TIMEOUT}s"))
        with counting(store, bound=TIMEOUT) as counters:
            cluster.add()
            victim = cluster.members[0]
            assert is_connected(victim)
            cluster.remove(victim)
            until_counted(counters)
            assert not is_connected(victim)
