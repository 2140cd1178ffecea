"""How long do other libraries take for the same: a hit, and a first execution?

Each is measured in the same run as kvreplay on LMDB, which blocks or is awaited as the peer is. The
extra ``bench-peers`` installs the peers, and some need a ``redis-server``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count, repeat
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.conftest import Sizes
from benchmarks.measure import calling, in_turn
from benchmarks.peers import OURS, PEERS, NoServer, Peer
from benchmarks.workload import RESPONSE, request_id

# Warnings from the peers' own code are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

ROUNDS: Final = 11
HITS, FIRSTS = 200, 20  # calls in a round
FIRST: Final = request_id(0)

Note = Callable[..., None]


@pytest.mark.parametrize("name", PEERS)
def test_peer(benchmark: Any, note: Note, sizes: Sizes, name: str, folder: Path) -> None:
    with ExitStack() as stack:
        peer, ours = folder / "peer", folder / "ours"
        peer.mkdir()
        try:
            them = stack.enter_context(PEERS[name](peer))
        except (ModuleNotFoundError, NoServer) as error:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name}: {error}")
        us = stack.enter_context(OURS[them.awaited](ours))
        runner = stack.enter_context(asyncio.Runner())
        if them.close:
            stack.callback(lambda: runner.run(them.close()))
        for each in (them, us):
            assert answers_of(each, runner) == [RESPONSE, RESPONSE]
            assert each.runs == [FIRST]

        hits, firsts = min(HITS, sizes.calls), min(FIRSTS, sizes.calls)
        their_hit, their_first, our_hit, our_first = in_turn(
            benchmark,
            *(
                round_of(each, ids, calls, runner)
                for each in (them, us)
                for ids, calls in ((repeat(FIRST), hits), (map(request_id, count(1)), firsts))
            ),
            rounds=min(ROUNDS, sizes.rounds),
        )
        assert len(them.runs) == len(set(them.runs))
    note(
        f"peers/{name}",
        {
            "hit µs": their_hit * 1e6,
            "kvreplay hit µs": our_hit * 1e6,
            "hit x kvreplay": their_hit / our_hit,
            "first ms": their_first * 1000,
            "kvreplay first ms": our_first * 1000,
            "first x kvreplay": their_first / our_first,
            "kvreplay as": "AsyncReplay" if them.awaited else "Replay",
            "an answer survives": them.survives,
        },
    )


def answers_of(peer: Peer, runner: asyncio.Runner) -> list[Any]:
    """Make the first request twice; return both answers."""
    answers = (peer.execute(FIRST) for _ in range(2))
    return [runner.run(each) if peer.awaited else each for each in answers]


def round_of(
    peer: Peer, ids: Iterator[str], calls: int, runner: asyncio.Runner
) -> Callable[[], float]:
    """Return a round of calls, each for the next id; its figure is the seconds for one call."""
    if not peer.awaited:
        return calling(lambda: peer.execute(next(ids)), calls)

    async def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            await peer.execute(next(ids))
        return (time.perf_counter() - start) / calls

    return lambda: runner.run(run())
