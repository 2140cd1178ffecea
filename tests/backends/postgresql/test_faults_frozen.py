"""A server that stands still, and a connection whose bytes are swallowed: every call ends in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from kvreplay.errors import KeyNotFoundError, OutcomeUnknownError, StoreError, StoreUnavailableError
from kvreplay.testing.threads import Running
from support.cutting_proxy import CuttingProxy, Direction
from support.postgres import Schema
from support.postgres_faults import A_LITTLE, Opener

pytestmark = pytest.mark.any_python

K = ("p", "s", "k")
WAIT, REPLY = 0.5, 0.4  # seconds: lock_timeout and reply_timeout
BOUNDS = {"lock_timeout": f"{WAIT}s", "reply_timeout": f"{REPLY}s"}


def transaction(store: Any) -> None:
    with store.transaction() as held:
        held.write(*K, b"w")


CALLS: dict[str, tuple[Callable[[Any], Any], type[StoreError]]] = {
    "read": (lambda store: store.read(*K), StoreUnavailableError),
    "swap": (
        lambda store: store.check_and_put(*K, expected=b"v", value=b"w"),
        OutcomeUnknownError,
    ),
    "transaction": (transaction, StoreUnavailableError),  # it did not even begin
}


def ends_in_time(call: Callable[[], Any], kind: type[StoreError]) -> None:
    began = time.monotonic()
    with pytest.raises(kind) as raised:
        call()
    assert type(raised.value) is kind
    assert time.monotonic() - began < WAIT + REPLY + A_LITTLE


@pytest.mark.parametrize("call", CALLS)
def test_a_frozen_server(schema: Schema, opened: Opener, call: str) -> None:
    store = opened(schema.url, **BOUNDS)
    store.write(*K, b"v")
    ask, kind = CALLS[call]
    with schema.server.frozen():
        ends_in_time(lambda: ask(store), kind)
        with pytest.raises((kind, StoreUnavailableError)):
            ask(store)  # on another connection, or on none
    with suppress(KeyNotFoundError):  # what was asked may have happened since
        assert store.read(*K) in (b"v", b"w")
    store.write(*K, b"later")
    assert store.read(*K) == b"later"


@pytest.mark.parametrize("when", ["idle", "busy"])
def test_a_store_closes_while_its_server_is_frozen(
    schema: Schema, opened: Opener, when: str
) -> None:
    store = opened(schema.url, **BOUNDS)
    store.write(*K, b"v")
    with schema.server.frozen():
        if when == "busy":
            with pytest.raises(StoreError):
                store.read(*K)
        Running(opened.close).result()


@pytest.mark.parametrize("direction", ["to server", "to client"])
@pytest.mark.parametrize(("call", "after"), [("read", 0), ("swap", 0), ("swap", 60)])
def test_a_connection_that_swallows_bytes(
    postgres: Any, opened: Opener, direction: Direction, after: int, call: str
) -> None:
    ask, kind = CALLS[call]
    with CuttingProxy(postgres.tcp_url) as proxy:
        store = opened(proxy.url, **BOUNDS)
        store.write(*K, b"v")
        proxy.stall(direction, after=after)
        ends_in_time(lambda: ask(store), kind)
        proxy.mend()
        proxy.cut_all()
        assert store.read(*K) in (b"v", b"w")
        store.write(*K, b"later")
        assert store.read(*K) == b"later"
        opened.close()


@pytest.mark.parametrize("after", [1, 20])
def test_garbage_in_place_of_an_answer(postgres: Any, opened: Opener, after: int) -> None:
    with CuttingProxy(postgres.tcp_url) as proxy:
        store = opened(proxy.url, lock_timeout="2s", reply_timeout="1s")
        store.write(*K, b"v")
        for call, kind in CALLS.values():
            proxy.garble(after=after)
            ends_in_time(lambda call=call: call(store), kind)  # type: ignore[misc]
            proxy.mend()
            proxy.cut_all()  # one that is being made may still wait for the rest of the garbage
            store.write(*K, b"v")
            assert store.read(*K) == b"v"
        opened.close()


def test_a_slow_server_answers_rightly(postgres: Any, opened: Opener) -> None:
    with CuttingProxy(postgres.tcp_url) as proxy:
        store = opened(proxy.url)
        proxy.delay(0.02)
        store.write(*K, b"v")
        assert store.check_and_put(*K, expected=b"x", value=b"w") == b"v"
        assert store.check_and_put(*K, expected=b"v", value=b"w") == b"v"
        transaction(store)
        assert store.read(*K) == b"w"
        opened.close()
