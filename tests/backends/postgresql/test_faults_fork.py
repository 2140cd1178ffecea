"""A fork: the child has connections of its own, and disturbs none of its parent's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.testing.forking import Child
from kvreplay.testing.threads import Running
from support.forking import BareChild
from support.postgres_faults import Opener, held, rows_of, until_waiting

K = ("p", "s", "k")
FORKS = pytest.mark.parametrize("make", [Child, BareChild])
Make = Callable[[Callable[[], object]], Any]


def backends(postgres: Any) -> set[int]:
    text = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
    return {pid for (pid,) in postgres.server.execute(text, postgres.name)}


@pytest.fixture
def store(postgres: Any, opened: Opener) -> Any:
    store = opened(f"{postgres.url}&application_name={postgres.name}")
    store.write(*K, b"v")
    return store


@FORKS
def test_both_go_on_with_connections_of_their_own(postgres: Any, store: Any, make: Make) -> None:
    before = backends(postgres)

    def child() -> None:
        assert store.check_and_put(*K, expected=b"v", value=b"child") == b"v"
        assert store.read(*K) == b"child"
        with store.transaction() as transaction:
            transaction.write("p", "s", "more", b"child")
        assert backends(postgres) > before
        store.close()

    make(child).join()
    assert store.check_and_put(*K, expected=b"child", value=b"parent") == b"child"
    assert backends(postgres) >= before, "the child has ended its parent's connection"
    assert rows_of(postgres) == {"k": b"parent", "more": b"child"}


@FORKS
def test_a_child_that_does_nothing_ends_nothing(postgres: Any, store: Any, make: Make) -> None:
    before = backends(postgres)
    make(lambda: None).join()
    make(lambda: store.close()).join()
    assert store.read(*K) == b"v"
    assert backends(postgres) >= before


def test_a_fork_during_a_call(postgres: Any, store: Any) -> None:
    """The call is the parent's, and its answer too."""
    with held(postgres.server, f"SELECT FROM {postgres.name}.kvreplay_entries FOR UPDATE"):
        change = Running(lambda: store.check_and_put(*K, expected=b"v", value=b"w"))
        until_waiting(postgres.server, 1, postgres.name)

        def child() -> None:
            assert store.read(*K) == b"v"
            store.write("p", "s", "more", b"child")

        Child(child).join()
        assert not change.over
    assert change.result() == b"v"
    assert rows_of(postgres) == {"k": b"w", "more": b"child"}
