"""What LDK's own ways of writing mean on our stores: events that come twice, and waves of removes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvreplay.demo.ldk.pair import Pair
from kvreplay.demo.ldk.process import LDKNodes
from support.lmdb_stores import commits


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_ldk_repeats_an_event_and_it_counts_once(
    program: Path, tmp_path: Path, engine: str
) -> None:
    with Pair(program, tmp_path, engine, turns=True) as pair:
        assert pair.open_channel()
        assert pair.pay("alice", 30_000) == pair.pay("bob", 10_000) == "sent"
        pair.restart()
        assert pair.pay("alice", 1_000) == "sent"
        told = [
            event["payment_hash"] for _, event in pair.events if event["kind"] == "payment_claimed"
        ]
        assert len(told) > len(set(told)) == 3  # else this shows nothing
        assert pair.received("bob") == 31_000
        assert pair.received("alice") == 10_000


class CountingNodes(LDKNodes):
    """Notes how many commits Alice's removes have cost, and her writes."""

    def serve(self, header: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        if header["store"] != "alice" or header["call"] not in ("write", "remove"):
            return super().serve(header, body)
        before = commits(self._stores["alice"])
        answer = super().serve(header, body)
        cost = commits(self._stores["alice"]) - before
        self.__dict__.setdefault(header["call"], []).append(cost)
        assert header["call"] == "write" or header["lazy"]
        return answer


def test_a_wave_of_ldks_removes_costs_no_commit(program: Path, tmp_path: Path) -> None:
    """A new monitor makes the updates before it superfluous, and LDK removes them one by one."""
    with Pair(
        program,
        tmp_path,
        "lmdb",
        turns=False,
        nodes=CountingNodes,
        maximum_pending_updates=5,
    ) as pair:
        assert pair.open_channel()
        for _ in range(4):
            assert pair.pay("alice", 5_000) == "sent"
        [monitor] = pair.stores["alice"].list("monitors", "")
        updates = pair.stores["alice"].list("monitor_updates", monitor)
        removes, writes = pair.nodes.__dict__["remove"], pair.nodes.__dict__["write"]
        pair.restart()
        assert pair.pay("alice", 5_000) == "sent"
    assert len(removes) >= 10
    assert set(removes) == {0}
    assert set(writes) == {1}
    assert len(updates) <= 6
