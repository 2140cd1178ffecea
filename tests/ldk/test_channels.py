"""What an LDK node does all day, on every engine: pay, restart, load, pay again, migrate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvreplay import KVStoreSync, StoreUnavailableError, open_store
from kvreplay.demo.ldk.pair import NAMES, PUSH_MSAT, SATOSHIS, Pair
from kvreplay.demo.ldk.process import LDKNodes, LDKNodesError
from ldk.killed import RESERVE_MSAT
from support.engines import NAMES as ENGINES

WAYS = [
    (engine, turns)
    for engine in ENGINES
    for turns in (False, True)
    if not turns or engine not in ("filesystem", "etcd")  # which have no transactions
]


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[0]}-{'turns' if way[1] else 'plain'}")
def pair(request: pytest.FixtureRequest, program: Path, tmp_path: Path, new_engine: Any) -> Any:
    engine, turns = request.param
    with Pair(program, tmp_path, urls(new_engine, engine), turns=turns) as pair:
        yield pair


def urls(new_engine: Any, engine: str) -> dict[str, str]:
    """A store of this engine for each node."""
    return {name: new_engine(engine).url for name in NAMES}


def spendable(alice: int, bob: int) -> list[tuple[int, int, int]]:
    return [(alice, bob, 0), (bob, alice, 0)]


def seen(pair: Pair) -> list[tuple[int, int, int]]:
    return [
        (channel["outbound_msat"], channel["inbound_msat"], channel["pending_htlcs"])
        for channel in pair.channels().values()
    ]


def test_payments_both_ways_before_and_after_a_restart(pair: Pair) -> None:
    assert pair.loaded == {"alice": False, "bob": False}
    assert pair.open_channel()
    alice = SATOSHIS * 1000 - PUSH_MSAT - RESERVE_MSAT
    bob = PUSH_MSAT - RESERVE_MSAT
    assert seen(pair) == spendable(alice, bob)
    assert pair.pay("alice", 30_000) == "sent"
    assert pair.pay("bob", 10_000) == "sent"
    assert seen(pair) == spendable(alice - 20_000, bob + 20_000)

    pair.restart()
    assert pair.loaded == {"alice": True, "bob": True}
    assert not pair.is_force_closed()
    assert seen(pair) == spendable(alice - 20_000, bob + 20_000)
    assert pair.pay("alice", 5_000) == "sent"
    assert pair.pay("bob", 7_000) == "sent"
    assert seen(pair) == spendable(alice - 18_000, bob + 18_000)


@pytest.mark.parametrize("target", ENGINES)
@pytest.mark.parametrize("source", ["lmdb"])
def test_ldks_own_migration(
    program: Path, tmp_path: Path, new_engine: Any, source: str, target: str
) -> None:
    """The node goes on where it was, on another engine."""
    with Pair(program, tmp_path, source, turns=True) as pair:
        assert pair.open_channel()
        assert pair.pay("alice", 30_000) == "sent"
        before = pair.channels()
        pair.ask("stop")
        pair.nodes.close()
        moved: dict[str, Any] = {
            name: open_store(url) for name, url in urls(new_engine, target).items()
        }
        stores = {**pair.stores, **{f"{name}-moved": store for name, store in moved.items()}}
        with LDKNodes(program, stores) as nodes:
            for name in moved:
                nodes.ask("migrate", source=name, target=f"{name}-moved")
        for name, store in moved.items():
            keys = sorted(pair.stores[name].list_all_keys())
            assert sorted(store.list_all_keys()) == keys
            assert [store.read(*key) for key in keys] == [
                pair.stores[name].read(*key) for key in keys
            ]
        with LDKNodes(program, moved) as nodes:
            for name in moved:
                assert nodes.ask("start", node=name, turns=False) == {"loaded": True}
            nodes.ask("connect", node="alice", peer="bob")
            after = nodes.ask("describe")
            assert {name: node["channels"] for name, node in after.items()} == {
                name: [channel] for name, channel in before.items()
            }
            invoice = nodes.ask(
                "invoice", node="alice", msat=9_000, description="", expiry_seconds=60
            )
            assert nodes.ask("pay", node="bob", bolt11=invoice)["ended"] == "sent"
        for store in moved.values():
            store.close()


class Unwritable(LDKNodes):
    """Nodes whose next commit fails, and nothing of it is there."""

    def serve(self, header: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        if header["call"] == "commit":
            return {"error": "Other", "message": "a planted fault: the disk is full"}, b""
        return super().serve(header, body)


def test_a_turn_that_cannot_be_stored_ends_the_nodes(program: Path, tmp_path: Path) -> None:
    """What they have in memory is ahead of their stores. Started again they go on from there."""
    with Pair(program, tmp_path, "lmdb", turns=True) as pair:
        assert pair.open_channel()
        before = pair.channels()
        pair.nodes.__class__ = Unwritable
        with pytest.raises(LDKNodesError, match="the disk is full"):
            pair.pay("alice", 30_000)
        assert pair.nodes.process.wait() == 1
        pair.start()
        assert not pair.is_force_closed()
        assert pair.channels() == before
        assert pair.pay("alice", 30_000) == "sent"


class Unreadable:
    """A store of which one entry cannot be read just now."""

    def __init__(self, store: KVStoreSync, key: tuple[str, str, str]) -> None:
        self._store = store
        self._key = key

    def read(self, *key: str) -> bytes:
        if key == self._key:
            raise StoreUnavailableError("a planted fault: it cannot be read now")
        return self._store.read(*key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize("is_unreadable", [False, True])
def test_an_update_that_cannot_be_read_is_not_taken_for_absent(
    program: Path, tmp_path: Path, is_unreadable: bool
) -> None:
    """LDK takes NotFound for the end of a monitor's updates, and goes on with an old monitor."""
    with Pair(program, tmp_path, "lmdb", turns=True) as pair:
        assert pair.open_channel()
        assert pair.pay("alice", 30_000) == "sent"
        store = pair.stores["alice"]
        [monitor] = store.list("monitors", "")
        update = max(store.list("monitor_updates", monitor), key=int)
        pair.nodes.close()
        key = ("monitor_updates", monitor, update if is_unreadable else "0")
        with LDKNodes(program, {"alice": Unreadable(store, key)}) as nodes:
            if is_unreadable:
                with pytest.raises(LDKNodesError, match="IOError"):
                    nodes.ask("start", node="alice", turns=False)
            else:
                assert nodes.ask("start", node="alice", turns=False) == {"loaded": True}
                assert len(nodes.ask("describe")["alice"]["channels"]) == 1
