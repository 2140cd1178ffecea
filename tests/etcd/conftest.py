"""Clusters, stores on them, and how often they are struck."""

from __future__ import annotations

import math
import os
import random
import threading
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from kvreplay import open_store
from kvreplay.testing.blocking import Blocking
from support.etcd import Cluster
from support.networks import Network, enter

FACES = ("blocking", "awaited")
MOST_KILLS = 100  # in one test


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--etcd-kills",
        type=int,
        default=100,
        metavar="N",
        help="kill so many members of a cluster, and as many of its clients",
    )
    parser.addoption(
        "--etcd-partitions",
        type=int,
        default=10,
        metavar="N",
        help="part the network of a cluster so many times",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let each storm be short, and have a cluster of its own."""
    if "kills" in metafunc.fixturenames:
        kills = int(metafunc.config.getoption("--etcd-kills"))
        partitions = int(metafunc.config.getoption("--etcd-partitions"))
        storms = max(1, math.ceil(kills / MOST_KILLS))
        each = [
            (len(range(number, kills, storms)), len(range(number, partitions, storms)))
            for number in range(storms)
        ]
        metafunc.parametrize(("kills", "partitions"), each, ids=map(str, range(storms)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest come first, so that no worker is left alone with it."""
    items.sort(key=lambda item: "kills" not in getattr(item, "fixturenames", ()))


@pytest.fixture
def chance() -> random.Random:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def whole_cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    """Three members on this machine's loopback, which a test may kill, stop and freeze."""
    yield whole_cluster
    whole_cluster.start_all()


@pytest.fixture(scope="module")
def whole_network() -> Iterator[tuple[Network, Cluster]]:
    with Network(3) as network, network.inside(), Cluster(network=network) as cluster:
        yield network, cluster


@pytest.fixture
def cut_cluster(whole_network: tuple[Network, Cluster]) -> Iterator[tuple[Network, Cluster]]:
    """Three members on a network of their own, any of which a test may cut off too. Its stores are inside."""
    network, cluster = whole_network
    yield network, cluster
    network.heal()
    cluster.start_all()


@attrs.define
class Opener:
    """``opener(url)`` opens a store, and returns the face that is tested."""

    face: str
    _opened: list[Any] = attrs.field(factory=list)

    def __call__(self, url: str) -> Any:
        store = open_store(url)
        self._opened.append(store)
        if self.face == "blocking":
            return store
        here = f"/proc/self/task/{threading.get_native_id()}/ns/net"

        def awaited_store() -> Any:
            if not os.path.samefile(here, "/proc/thread-self/ns/net"):
                enter(here)  # the loop's thread is older than the network
            return store.awaited  # type: ignore[attr-defined]

        awaited = Blocking(awaited_store)
        self._opened.append(awaited)
        return awaited

    def close(self) -> None:
        while self._opened:
            self._opened.pop().close()


@pytest.fixture(params=FACES)
def opener(request: pytest.FixtureRequest) -> Iterator[Opener]:
    opener = Opener(request.param)
    yield opener
    opener.close()
