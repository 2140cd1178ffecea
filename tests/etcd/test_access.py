"""Who may do what: users, their tokens and roles, and certificates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd.conftest import Opener
from kvreplay import StoreError, StoreUnavailableError
from support.certificates import Authority
from support.etcd import Cluster, Member, coded, end_of_range
from support.waiting import until

NAMES = ("p", "s", "k")
PREFIX = "mine"
USER, PASSWORD = "kvreplay", "its: p@ss/word"


@pytest.fixture(scope="module")
def whole_guarded() -> Iterator[Cluster]:
    settings = {"auth-token-ttl": 1, "log-level": "info"}
    with Cluster(1, auth=True, settings=settings) as cluster:
        yield cluster


@pytest.fixture
def guarded(whole_guarded: Cluster) -> Iterator[Cluster]:
    """A cluster in which a user may read and write below a prefix. A token is soon over."""
    cluster = whole_guarded
    cluster.call("/v3/auth/role/add", name="role")
    grant(cluster, "READWRITE")
    cluster.call("/v3/auth/user/add", name=USER, password=PASSWORD)
    cluster.call("/v3/auth/user/grant", user=USER, role="role")
    yield cluster
    cluster.call("/v3/auth/user/delete", name=USER)
    cluster.call("/v3/auth/role/delete", role="role")


def grant(cluster: Cluster, what: str) -> None:
    below = f"/{PREFIX}/".encode()
    allowed = {"key": coded(below), "range_end": coded(end_of_range(below)), "permType": what}
    cluster.call("/v3/auth/role/grant", name="role", perm=allowed)


def url(cluster: Cluster, prefix: str = PREFIX, password: str = PASSWORD, **options: Any) -> str:
    return cluster.url(prefix, user=USER, password=password, **options)


def test_a_user_has_its_own_prefix(guarded: Cluster, opener: Opener) -> None:
    store = opener(url(guarded))
    store.write(*NAMES, b"v")
    assert store.read(*NAMES) == b"v"
    with pytest.raises(StoreError, match="grant its role readwrite"):
        opener(url(guarded, "another"))


def test_a_token_that_is_over_is_replaced(guarded: Cluster, opener: Opener) -> None:
    store = opener(url(guarded))
    [member] = guarded.members
    for value in (b"1", b"2"):
        store.write(*NAMES, value)
        before = ended_tokens(member)
        until(lambda before=before: ended_tokens(member) > before)
    assert store.read(*NAMES) == b"2"


def ended_tokens(member: Member) -> int:
    lines = member.log.splitlines()
    return sum("deleted a simple token" in line and f'"{USER}"' in line for line in lines)


def test_a_wrong_password(guarded: Cluster, opener: Opener) -> None:
    with pytest.raises(StoreError, match="refused the user or the password") as raised:
        opener(url(guarded, password="wrong one"))
    assert not isinstance(raised.value, StoreUnavailableError)
    assert "wrong one" not in str(raised.value)


def test_no_user_at_all(guarded: Cluster, opener: Opener) -> None:
    [member] = guarded.members
    with pytest.raises(StoreError, match=r"user|grant") as raised:
        opener(f"etcd://{member.address}:{member.port}/{PREFIX}")
    assert not isinstance(raised.value, StoreUnavailableError)


def test_a_password_that_is_changed_ends_the_store_until_it_has_the_new_one(
    guarded: Cluster, opener: Opener
) -> None:
    store = opener(url(guarded))
    store.write(*NAMES, b"1")
    guarded.call("/v3/auth/user/changepw", name=USER, password="new")
    with pytest.raises(StoreError, match="refused the user or the password"):
        store.write(*NAMES, b"2")
    assert opener(url(guarded, password="new")).read(*NAMES) == b"1"
    guarded.call("/v3/auth/user/changepw", name=USER, password=PASSWORD)
    store.write(*NAMES, b"3")
    assert store.read(*NAMES) == b"3"


def test_a_role_that_may_only_read(guarded: Cluster, opener: Opener) -> None:
    store = opener(url(guarded))
    store.write(*NAMES, b"1")
    grant(guarded, "READ")
    for change in (
        lambda: store.write(*NAMES, b"2"),
        lambda: store.remove(*NAMES),
        lambda: store.check_and_put(*NAMES, expected=b"1", value=b"2"),
    ):
        with pytest.raises(StoreError, match="grant its role readwrite"):
            change()
    assert store.read(*NAMES) == b"1"
    assert opener(url(guarded, create="no")).read(*NAMES) == b"1"
    grant(guarded, "READWRITE")
    store.write(*NAMES, b"2")


def test_a_user_that_is_removed(guarded: Cluster, opener: Opener) -> None:
    store = opener(url(guarded))
    store.write(*NAMES, b"1")
    guarded.call("/v3/auth/user/delete", name=USER)
    with pytest.raises(StoreError) as raised:
        store.read(*NAMES)
    assert not isinstance(raised.value, StoreUnavailableError)
    guarded.call("/v3/auth/user/add", name=USER, password=PASSWORD)
    guarded.call("/v3/auth/user/grant", user=USER, role="role")
    assert store.read(*NAMES) == b"1"


# TLS.


def test_members_with_certificates(opener: Opener, tmp_path: Path) -> None:
    other = Authority(tmp_path)
    with Cluster(1, tls="server") as cluster:
        store = opener(cluster.url("p"))
        store.write(*NAMES, b"v")
        assert store.read(*NAMES) == b"v"
        assert opener(cluster.url("p", timeout="2s")).read(*NAMES) == b"v"
        with pytest.raises(StoreUnavailableError, match=r"(?i)certificate"):
            opener(cluster.url("p", ca=other.ca, timeout="2s"))
        [member] = cluster.members
        with pytest.raises(StoreError):  # without TLS
            opener(f"etcd://{member.address}:{member.port}/p?timeout=2s")
        member.kill()
        cluster.start_all()
        assert store.read(*NAMES) == b"v"


def test_clients_with_certificates(opener: Opener, tmp_path: Path) -> None:
    other = Authority(tmp_path).sign("other")
    with Cluster(1, tls="mutual") as cluster:
        store = opener(cluster.url("p"))
        store.write(*NAMES, b"v")
        assert store.read(*NAMES) == b"v"
        strange = cluster.url("p", cert=other.cert, key=other.key, timeout="2s")
        cluster.client = None
        for wrong in (strange, cluster.url("p", timeout="2s")):
            with pytest.raises(StoreUnavailableError):
                opener(wrong)


def test_users_whose_clients_have_certificates(opener: Opener) -> None:
    with Cluster(1, tls="mutual", auth=True) as cluster:
        store = opener(cluster.url("p"))
        store.write(*NAMES, b"v")
        assert store.read(*NAMES) == b"v"
        assert cluster.authority is not None
        named = cluster.authority.sign("root", common_name=True)
        with pytest.raises(StoreError, match="common name"):
            opener(cluster.url("p", cert=named.cert, key=named.key))
