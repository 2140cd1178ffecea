"""The clusters of the tests themselves: what is killed, frozen or cut off is so, and what comes back catches up."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.etcd import Cluster, Member, RefusedError, coded, decoded
from support.etcd_programs import etcd_program, refusal_of
from support.networks import Host, Network
from support.process_table import state_of
from support.waiting import until

KEY = b"key"


def put(member: Member, value: bytes, **more: Any) -> None:
    member.call("/v3/kv/put", key=coded(KEY), value=coded(value), **more)


def found(member: Member, **how: Any) -> bytes | None:
    """What a member says of the key; ``serializable=True``: out of its own data, asking nobody."""
    entries = member.call("/v3/kv/range", key=coded(KEY), **how).get("kvs", [])
    return decoded(entries[0].get("value", "")) if entries else None


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cut() -> Iterator[tuple[Cluster, Network]]:
    """A cluster whose members can be cut off, and this thread among its clients."""
    with Network(3) as network, network.inside(), Cluster(network=network) as cluster:
        yield cluster, network


def test_what_one_member_takes_the_others_have(cluster: Cluster) -> None:
    one, two, three = cluster.members
    put(one, b"1")
    assert found(two) == found(three) == b"1"


@contextmanager
def killed(member: Member) -> Iterator[None]:
    member.kill()
    yield
    member.start()


@contextmanager
def stopped(member: Member) -> Iterator[None]:
    member.stop()
    yield
    member.start()


@pytest.mark.parametrize("gone", [killed, stopped, Member.frozen])
def test_a_member_that_is_gone_catches_up(cluster: Cluster, gone: Callable[..., Any]) -> None:
    put(cluster.members[0], b"before")
    leader = cluster.leader()
    with gone(leader):
        with pytest.raises((TimeoutError, ConnectionError)):
            leader.call("/v3/kv/range", key=coded(KEY), within=0.2)
        other = cluster.leader()
        assert other is not leader
        put(other, b"after", within=10)
    cluster.until_ready()
    assert found(leader) == b"after"


def test_without_a_majority_nothing_is_taken(cluster: Cluster) -> None:
    leader, followers = cluster.leader(), cluster.followers()
    put(leader, b"before")
    for member in followers:
        member.kill()
    with pytest.raises((RefusedError, OSError)):
        put(leader, b"after", within=1)
    assert found(leader, serializable=True) == b"before"
    cluster.start_all()
    put(leader, b"afterwards")


def test_a_member_is_removed_and_another_one_added() -> None:
    with Cluster() as cluster:
        put(cluster.members[0], b"1")
        new = cluster.add()
        cluster.remove(cluster.leader())
        assert found(new, serializable=True) == b"1"
        assert len(cluster.members) == 3
        assert new.address in cluster.url("prefix")


def test_a_member_that_is_cut_off_hears_nobody(cut: tuple[Cluster, Network]) -> None:
    cluster, network = cut
    put(cluster.members[0], b"before")
    leader = cluster.leader()
    network.cut(leader.host)
    with pytest.raises(TimeoutError):
        found(leader, within=0.2)
    other = other_leader(cluster, leader)
    put(other, b"after")
    network.heal()
    cluster.until_ready()
    assert found(leader, serializable=True) == b"after"


def test_a_member_that_only_clients_reach_has_stale_data(cut: tuple[Cluster, Network]) -> None:
    cluster, network = cut
    put(cluster.members[0], b"before")
    leader, followers = cluster.leader(), cluster.followers()
    until(lambda: found(leader, serializable=True) == b"before")
    network.part(leader.host, *(each.host for each in followers))
    put(other_leader(cluster, leader), b"after")
    assert found(leader, serializable=True) == b"before"
    with pytest.raises((RefusedError, OSError)):
        found(leader, within=0.5)
    network.heal()
    cluster.until_ready()
    assert found(leader) == b"after"


def other_leader(cluster: Cluster, cut_off: Member) -> Member:
    """The leader among those who are not cut off."""
    others = [member for member in cluster.members if member is not cut_off]

    def leader() -> Member | None:
        told = [member.status() for member in others]
        ids = [status.get("header", {}).get("member_id") for status in told]
        leaders = {status.get("leader") for status in told}
        [id] = leaders if len(leaders) == 1 else [None]
        return others[ids.index(id)] if id in ids else None

    until(leader)
    member = leader()
    assert member is not None
    return member


def test_what_is_blocked_is_so_in_one_direction() -> None:
    with Network(2) as network:
        one, two = network.hosts
        network.block(one, two)
        with pytest.raises(TimeoutError):
            send(one, two)
        send(two, one)
        network.heal()
        send(one, two)


def send(source: Host, target: Host) -> None:
    """One host sends another one something, and that waits for it."""
    with target.inside():
        receiver = socket.socket(type=socket.SOCK_DGRAM)
        receiver.bind((target.address, 5000))
        receiver.settimeout(0.2)
    with source.inside():
        sender = socket.socket(type=socket.SOCK_DGRAM)
    with receiver, sender:
        sender.sendto(b"x", (target.address, 5000))
        assert receiver.recv(1) == b"x"


def test_a_closed_cluster_leaves_nothing() -> None:
    cluster = Cluster(1)
    [member] = cluster.members
    pid = member.pid
    assert state_of(pid) != ""
    cluster.close()
    assert state_of(pid) == ""


def test_users_and_certificates() -> None:
    with Cluster(1, tls="mutual", auth=True) as cluster:
        [member] = cluster.members
        cluster.call("/v3/kv/put", key=coded(KEY), value=coded(b"1"))
        with pytest.raises(RefusedError, match="permission denied"):
            found(member)
        cluster.client = None
        with pytest.raises((ssl.SSLError, ConnectionError)):
            found(member)


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("etcd Version: 3.4.23\nGit SHA: x", None),
        ("etcd Version: 3.5.3\n", None),
        ("etcd Version: 3.6.0\n", None),
        ("etcd Version: 3.3.27\n", "too old"),
        ("etcd Version: 3.5.0\n", "corrupt"),
        ("etcd Version: 3.5.2\n", "corrupt"),
        ("", "no version"),
    ],
)
def test_versions(said: str, refused: str | None) -> None:
    refusal = refusal_of(said)
    assert refusal is None if refused is None else refused in str(refusal)


def test_the_program_is_fit() -> None:
    assert etcd_program().exists()
