"""Which store is under a prefix: made, found, refused, and noticed when it is another one."""

from __future__ import annotations

from typing import Any

import pytest

from kvreplay import (
    ConfigError,
    CorruptStoreError,
    KeyNotFoundError,
    OutcomeUnknownError,
    StoreNotFoundError,
    open_store,
)
from kvreplay.backends.etcd.opening import check_version
from support.cutting_proxy import CuttingProxy
from support.etcd import Cluster, coded, end_of_range

pytestmark = pytest.mark.any_python  # the event loops of each Python: test_loops.py


def put(etcd: Any, key: str, value: bytes = b"v") -> None:
    etcd.server.call("/v3/kv/put", key=coded(f"/{etcd.name}/{key}".encode()), value=coded(value))


def remove(etcd: Any, key: str = "") -> None:
    first = f"/{etcd.name}/{key}".encode()
    last = end_of_range(first) if not key else first + b"\0"
    etcd.server.call("/v3/kv/deleterange", key=coded(first), range_end=coded(last))


def test_without_create_nothing_is_made(etcd: Any) -> None:
    with pytest.raises(StoreNotFoundError, match="kvreplay init"):
        open_store(f"{etcd.url}?create=false")
    with open_store(etcd.url) as store:
        store.write("p", "s", "k", b"v")
    with open_store(f"{etcd.url}?create=false") as store:
        assert store.read("p", "s", "k") == b"v"


@pytest.mark.parametrize("key", ["a", "e/p/s/k", "metal", "meta/x"])
def test_a_prefix_with_other_keys_is_refused(etcd: Any, key: str) -> None:
    put(etcd, key)
    for create in ("true", "false"):
        with pytest.raises(CorruptStoreError, match="other keys lie under the prefix"):
            open_store(f"{etcd.url}?create={create}")
    remove(etcd, key)
    open_store(etcd.url).close()


def test_keys_beside_the_prefix_are_no_matter(etcd: Any) -> None:
    put(etcd, "", b"the prefix without its slash is another key")
    remove(etcd, "")
    with open_store(f"{etcd.url}/one") as one, open_store(f"{etcd.url}/one-more") as more:
        one.write("p", "s", "k", b"v")
        assert list(more.list_all_keys()) == []
        assert one.identity != more.identity  # type: ignore[attr-defined]
    with open_store(f"{etcd.url}/one/") as again:  # a slash more is the same prefix
        assert again.read("p", "s", "k") == b"v"


@pytest.mark.parametrize("mark", [b"kvreplay 2 x", b"", b"something else"])
def test_another_version_is_refused(etcd: Any, mark: bytes) -> None:
    put(etcd, "meta", mark)
    with pytest.raises(CorruptStoreError, match="another version"):
        open_store(etcd.url)


@pytest.mark.parametrize("how", ["removed", "made anew"])
def test_a_store_that_is_gone_acknowledges_no_change(etcd: Any, how: str) -> None:
    with open_store(etcd.url) as store:
        store.check_and_put("p", "s", "k", expected=None, value=b"v", expires_at=5)
        remove(etcd)
        if how == "made anew":
            open_store(etcd.url).close()
        for change in (
            lambda: store.write("p", "s", "k", b"w"),
            lambda: store.remove("p", "s", "k"),
            lambda: store.check_and_put("p", "s", "k", expected=None, value=b"w"),
            lambda: store.check_and_put("p", "s", "k", expected=b"v", value=None),
        ):
            with pytest.raises(CorruptStoreError, match="another one now, or none"):
                change()
        put(etcd, "t/p/0000000000000000005/s/k")
        with pytest.raises(CorruptStoreError, match="another one now, or none"):
            store.sweep("p", 10, 10)
        with pytest.raises(KeyNotFoundError):
            store.read("p", "s", "k")


def test_another_cluster_is_noticed() -> None:
    with Cluster(members=1) as one, Cluster(members=1) as other:
        with CuttingProxy(one.url("p")) as proxy:
            store = open_store(proxy.url)
            store.write("p", "s", "k", b"v")
            proxy.lead_to(other.url("p"))
            proxy.cut_all()
            with pytest.raises(CorruptStoreError, match="another etcd cluster"):
                store.read("p", "s", "k")
            with pytest.raises(OutcomeUnknownError, match="another etcd cluster"):
                store.write("p", "s", "k", b"w")
            proxy.lead_to(one.url("p"))
            proxy.cut_all()
            assert store.read("p", "s", "k") == b"v"
            store.close()


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1", "3.5.2", "3.5.2-rc.1"])
def test_a_version_that_loses_changes_is_refused(version: str) -> None:
    looking = check_version()
    next(looking)
    with pytest.raises(ConfigError, match=version.replace(".", r"\.")):
        looking.send({"version": version})


@pytest.mark.parametrize("version", ["3.4.23", "3.5.3", "3.5.10", "3.5.21", "3.6.0", "13.5.0", ""])
def test_other_versions_are_fit(version: str) -> None:
    looking = check_version()
    next(looking)
    with pytest.raises(StopIteration):
        looking.send({"version": version})
