"""Nodes and stores are killed at a random call, and started again: does LDK close a channel?

With a transaction for each turn it never does. With a commit for each write, as LDK is used today,
it does: the manager that is found is older than a monitor ("ChannelManager is stale").
"""

from __future__ import annotations

import shutil
from pathlib import Path

import attrs
import pytest

from kvreplay.demo.ldk.pair import Pair
from ldk.killed import killed


@attrs.define
class Account:
    """What became of the pairs that were killed."""

    kills: int = 0
    force_closed: int = 0


@pytest.fixture(scope="module", params=["lmdb", "sqlite"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["turns", "plain"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def begun(program: Path, tmp_path: Path, engine: str, way: str) -> Path:
    """A folder with the stores of a pair that has a channel and has paid."""
    folder = tmp_path / "begun"
    with Pair(program, folder, engine, turns=way == "turns") as pair:
        assert pair.open_channel()
        assert pair.pay("alice", 50_000) == "sent"
        assert pair.pay("bob", 20_000) == "sent"
        pair.ask("stop")
    return folder


def spendable(pair: Pair) -> dict[str, int]:
    return {name: channel["outbound_msat"] for name, channel in pair.channels().items()}


def check_that_it_goes_on(pair: Pair, before: dict[str, int]) -> None:
    """Both nodes agree, nothing hangs, what was counted is what came, and the next payments go."""
    pair.ask("tick")
    alice, bob = pair.channels().values()
    assert alice["pending_htlcs"] == bob["pending_htlcs"] == 0
    assert alice["outbound_msat"] == bob["inbound_msat"]
    assert bob["outbound_msat"] == alice["inbound_msat"]
    assert pair.pay("alice", 3_000) == pair.pay("bob", 3_000) == "sent"
    moved = pair.received("alice") - pair.received("bob")
    after = spendable(pair)
    assert after["alice"] - before["alice"] == before["bob"] - after["bob"] == moved


def strike(
    program: Path, begun: Path, tmp_path: Path, engine: str, way: str, kills: int
) -> Account:
    account = Account()
    with Pair(program, begun, engine, turns=way == "turns") as pair:
        counted = pair.received("alice") - pair.received("bob")
        before = spendable(pair)
        before = {"alice": before["alice"] - counted, "bob": before["bob"] + counted}
    for seed in range(kills):
        folder = tmp_path / str(seed)
        killed(program, begun, folder, engine, way, seed)
        with Pair(program, folder, engine, turns=way == "turns") as pair:
            account.kills += 1
            if pair.is_force_closed():
                account.force_closed += 1
            elif way == "turns":
                check_that_it_goes_on(pair, before)
        shutil.rmtree(folder)
    return account


def test_no_channel_is_closed_with_a_transaction_for_each_turn(
    program: Path, begun: Path, tmp_path: Path, engine: str, way: str, kills: int
) -> None:
    account = strike(program, begun, tmp_path, engine, way, kills)
    print(engine, way, account)
    if way == "turns":
        assert account.force_closed == 0
    else:
        assert account.force_closed > 0
