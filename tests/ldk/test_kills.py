"""Nodes and stores are killed at a random change, and go on: does LDK close the channel?

With a transaction for each turn it never does. With a commit for each write, as LDK is used today,
it does: the manager that is found is older than a monitor ("ChannelManager is stale").
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvreplay.demo.ldk.pair import Pair
from ldk.killed import FORCE_CLOSED, check_that_all_is_well, killed

ENGINES = ("lmdb", "sqlite")


def begin(program: Path, folder: Path, engine: str, *, turns: bool) -> None:
    """Open a channel, and pay."""
    with Pair(program, folder, engine, turns=turns) as pair:
        assert pair.open_channel()
        assert pair.pay("alice", 50_000) == pair.pay("bob", 20_000) == "sent"
        pair.ask("stop")


@pytest.mark.parametrize("engine", ENGINES)
def test_with_a_transaction_for_each_turn_no_channel_is_closed(
    program: Path, tmp_path: Path, engine: str, kills: int, tell: Callable[[str], None]
) -> None:
    """The same two nodes are killed again and again."""
    begin(program, tmp_path, engine, turns=True)
    looks = 0
    for seed in range(kills):
        lines = killed(program, tmp_path, engine, "turns", seed)
        assert FORCE_CLOSED not in lines
        looks += len(lines)  # else it was killed while it loaded its nodes
    with Pair(program, tmp_path, engine, turns=True) as pair:
        assert not pair.is_force_closed()
        check_that_all_is_well(pair)
        assert pair.pay("alice", 3_000) == pair.pay("bob", 3_000) == "sent"
    assert looks > 0
    tell(f"{kills} kills on {engine}, none force-closed, and all was well at {looks + 1} looks")


@pytest.mark.parametrize("engine", ENGINES)
def test_with_a_commit_for_each_write_channels_are_closed(
    program: Path, tmp_path: Path, engine: str, kills: int, tell: Callable[[str], None]
) -> None:
    """Without this, the other test would show nothing."""
    begun, folder = tmp_path / "begun", tmp_path / "folder"
    begin(program, begun, engine, turns=False)
    done = looks = closed = 0
    while done < kills or (closed == 0 and done < 10 * kills):
        if not folder.exists():
            shutil.copytree(begun, folder)
        lines = killed(program, folder, engine, "plain", done + closed)
        looks += len(lines)
        if FORCE_CLOSED in lines:
            closed += 1
            shutil.rmtree(folder)
        else:
            done += 1
    assert closed > 0
    tell(f"{done} kills on {engine}, {closed} force-closed at {looks} looks")
