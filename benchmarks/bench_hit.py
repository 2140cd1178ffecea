"""What does a hit cost, compared with the least that it could cost?

The floor is a raw py-lmdb get and one msgpack decoding of the same content as one map; for SQLite's
rows it is a bare ``SELECT`` and the same decoding.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Sizes
from benchmarks.measure import Bound, calling, in_threads, in_turn
from benchmarks.workload import (
    NAMESPACE,
    PARAMS,
    RESPONSE,
    SCOPE,
    never,
    request_id,
    respond,
    url_of,
)
from kvreplay import AsyncReplay, Replay, open_store
from kvreplay._protocol.params import comparable
from kvreplay._protocol.record import answer_in, decode_response

KEY = (SCOPE, request_id(0))
ENGINES = ["lmdb", "sqlite", "filesystem", "memory"]
Note = Callable[..., None]


@pytest.fixture
def least(engine: str, floor: Any, sqlite_floor: Any) -> Any:
    """The floor of an engine's rows."""
    return sqlite_floor if engine == "sqlite" else floor


@pytest.mark.parametrize("engine", ENGINES)
def test_replay_hit(
    benchmark: Any, note: Note, least: Any, sizes: Sizes, engine: str, folder: Path
) -> None:
    with open_store(url_of(engine, folder)) as store:
        replay = Replay(store, NAMESPACE, ttl=3600)
        replay.execute(KEY, PARAMS, respond)

        def hit() -> Any:
            return replay.execute(KEY, PARAMS, never)

        assert hit().response == RESPONSE
        bound = Bound()
        own, raw = in_turn(
            benchmark,
            bound.of(calling(hit, sizes.calls)),
            calling(least, sizes.calls),
            rounds=sizes.rounds,
        )
    figures = {"µs": own * 1e6, "floor µs": raw * 1e6, "x floor": own / raw}
    note(f"hit/Replay, {engine}", {**figures, "bound by": str(bound)})


@pytest.mark.parametrize(
    ("engine", "threads"), [("memory", 4), ("memory", 64), ("lmdb", 4), ("lmdb", 64)]
)
def test_hits_of_threads(
    benchmark: Any,
    note: Note,
    floor: Any,
    sizes: Sizes,
    engine: str,
    threads: int,
    folder: Path,
) -> None:
    """Beside one thread's; and the same of the floor, which gives up the interpreter's lock too."""
    bound = Bound()
    with open_store(url_of(engine, folder)) as store:
        replay = Replay(store, NAMESPACE, ttl=3600)
        replay.execute(KEY, PARAMS, respond)

        def hit() -> Any:
            return replay.execute(KEY, PARAMS, never)

        own, one, raw, raw_one = in_turn(
            benchmark,
            bound.of(lambda: in_threads(threads, sizes.seconds / 4, hit)),
            lambda: in_threads(1, sizes.seconds / 4, hit),
            lambda: in_threads(threads, sizes.seconds / 4, floor),
            lambda: in_threads(1, sizes.seconds / 4, floor),
            rounds=min(9, sizes.rounds),
        )
    note(
        f"hit threads/{engine}, {threads} threads",
        {
            "hits/s": own,
            "one thread's": one,
            "x one thread's": own / one,
            "floor, x one thread's": raw / raw_one,
            "bound by": str(bound),
        },
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_async_replay_hit(
    benchmark: Any, note: Note, least: Any, sizes: Sizes, engine: str, folder: Path
) -> None:
    with open_store(url_of(engine, folder)) as store, asyncio.Runner() as runner:
        blocking = Replay(store, NAMESPACE, ttl=3600)
        replay = AsyncReplay(store, NAMESPACE, ttl=3600)
        blocking.execute(KEY, PARAMS, respond)

        async def hits() -> float:
            start = time.perf_counter()
            for _ in range(sizes.calls):
                await replay.execute(KEY, PARAMS, never)
            return (time.perf_counter() - start) / sizes.calls

        bound = Bound()
        own, sync, raw = in_turn(
            benchmark,
            bound.of(lambda: runner.run(hits())),
            calling(lambda: blocking.execute(KEY, PARAMS, never), sizes.calls),
            calling(least, sizes.calls),
            rounds=sizes.rounds,
        )
    note(
        f"hit/AsyncReplay, {engine}",
        {
            "µs": own * 1e6,
            "floor µs": raw * 1e6,
            "x floor": own / raw,
            "x Replay": own / sync,
            "bound by": str(bound),
        },
    )


def test_where_the_time_goes(
    benchmark: Any, note: Note, floor: Any, sizes: Sizes, folder: Path
) -> None:
    """The parts of a hit, each alone; the rest of the time is the calls between them."""
    with open_store(url_of("lmdb", folder)) as store:
        replay = Replay(store, NAMESPACE, ttl=3600)
        replay.execute(KEY, PARAMS, respond)
        params = comparable(PARAMS)
        assert params is not None
        data = store.read(NAMESPACE, *KEY)
        found = answer_in(data, *KEY, params, 0)
        assert found is not None
        response = found[0]
        parts: dict[str, Callable[[], object]] = {
            "a whole hit": lambda: replay.execute(KEY, PARAMS, never),
            "encode the params": lambda: comparable(PARAMS),
            "read the entry": lambda: store.read(NAMESPACE, *KEY),
            "check and compare the record": lambda: answer_in(data, *KEY, params, 0),
            "decode the response": lambda: decode_response(response),
            "an empty call": lambda: None,
        }
        *medians, raw = in_turn(
            benchmark,
            *(calling(part, sizes.calls) for part in parts.values()),
            calling(floor, sizes.calls),
            rounds=sizes.rounds,
        )
    for part, seconds in zip(parts, medians, strict=True):
        note(f"hit parts/{part}", {"µs": seconds * 1e6, "x floor": seconds / raw})
