"""What does a replay cost, over the least that could be done?

The floor is a raw py-lmdb get and one msgpack decoding of the same content as one map. Each row has
its ratio to that floor, measured in the same run, in ``extra_info``. The same record everywhere:
8 params, 0.7 KB.

    tox run -e bench -- -k hit
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import pytest

from kvreplay import AsyncReplay, Replay, open_store

KEY = ("02" + "ab" * 32, "claim-session-000001")
PARAMS = {
    "hash_index": "42",
    "payment_hash": "11" * 32,
    "amount_msat": 250_000,
    "asset_id": "rgb:" + "a" * 40,
    "asset_amount": 1000,
    "description_hash": "22" * 32,
    "invoice_expiry_sec": 3600,
    "min_final_cltv_expiry_delta": 18,
}
RESPONSE = {"payment_hash": "11" * 32, "bolt11": "lnbcrt2500u1p" + "q" * 260}
ROUND = 1000  # calls a round


@pytest.fixture(scope="session")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    env = lmdb.open(str(tmp_path_factory.mktemp("raw")), map_size=1 << 30, max_dbs=1, lib_version=0)
    entries = env.open_db(b"entries")
    content = {"params": PARAMS, "response": RESPONSE, "expires_at": 1_700_000_000_000}
    with env.begin(write=True) as txn:
        txn.put(b"key", msgpack.packb(content), db=entries)

    def floor() -> Any:
        with env.begin() as txn:
            return msgpack.unpackb(txn.get(b"key", db=entries))

    return floor


def seconds_per_call(function: Callable[[], Any]) -> float:
    """The median over rounds, each of ``ROUND`` calls."""
    rounds = []
    for _ in range(15):
        start = time.perf_counter()
        for _ in range(ROUND):
            function()
        rounds.append((time.perf_counter() - start) / ROUND)
    return statistics.median(rounds)


def store_url(engine: str, path: Path) -> str:
    return "memory:" if engine == "memory" else f"{engine}:{path / 'store'}"


def never() -> Any:
    raise AssertionError("a hit does not run the handler")


def test_raw_lmdb_floor(benchmark: Any, floor: Callable[[], Any]) -> None:
    benchmark(floor)
    benchmark.extra_info["times the floor"] = 1.0


@pytest.mark.parametrize("engine", ["lmdb", "filesystem", "memory"])
def test_replay_hit(
    benchmark: Any, floor: Callable[[], Any], engine: str, tmp_path: Path
) -> None:
    with open_store(store_url(engine, tmp_path)) as store:
        replay = Replay(store, "request_invoice", ttl=3600)
        replay.execute(KEY, PARAMS, lambda: RESPONSE)

        def hit() -> Any:
            return replay.execute(KEY, PARAMS, never)

        assert benchmark(hit).response == RESPONSE
        note_ratio(benchmark, seconds_per_call(hit), seconds_per_call(floor))


@pytest.mark.parametrize("engine", ["lmdb", "filesystem", "memory"])
def test_async_replay_hit(
    benchmark: Any, floor: Callable[[], Any], engine: str, tmp_path: Path
) -> None:
    with open_store(store_url(engine, tmp_path)) as store, asyncio.Runner() as runner:
        replay = AsyncReplay(store, "request_invoice", ttl=3600)
        runner.run(replay.execute(KEY, PARAMS, lambda: RESPONSE))

        async def hits() -> Any:
            for _ in range(ROUND):
                outcome = await replay.execute(KEY, PARAMS, never)
            return outcome

        assert benchmark(lambda: runner.run(hits())).response == RESPONSE
        rounds = []
        for _ in range(15):
            start = time.perf_counter()
            runner.run(hits())
            rounds.append((time.perf_counter() - start) / ROUND)
        benchmark.extra_info["calls a round"] = ROUND
        note_ratio(benchmark, statistics.median(rounds), seconds_per_call(floor))


def note_ratio(benchmark: Any, own: float, floor: float) -> None:
    benchmark.extra_info["microseconds a call"] = round(own * 1e6, 2)
    benchmark.extra_info["times the floor"] = round(own / floor, 2)
