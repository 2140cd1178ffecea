"""Every single bit of a stored record flips, where it is stored. For SQLite it is one in five."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay import CorruptRecordError, ExpiredError, Replay
from support.replaying import Async, FakeClock, Sync
from torture.strike import die

KEY = ("02lsp", "session-7")
PARAMS = {"amount_msat": 250_000, "hash": bytes(8)}
RESPONSE = {"bolt11": "lnbcrt1", "expiry": 600}
SETTINGS = {"ttl": 60, "tombstone_ttl": 60, "wait_timeout": 0}


def complete(engine: Any, clock: FakeClock, fork: Any) -> None:
    with_replay(engine, clock, lambda replay: replay.execute(KEY, PARAMS, lambda: RESPONSE))


def claim(engine: Any, clock: FakeClock, fork: Any) -> None:
    fork(lambda: with_replay(engine, clock, lambda replay: replay.execute(KEY, PARAMS, die))).wait()


def bury(engine: Any, clock: FakeClock, fork: Any) -> None:
    complete(engine, clock, fork)
    clock.pass_seconds(60)
    with pytest.raises(ExpiredError):
        with_replay(engine, clock, lambda replay: replay.lookup(KEY, PARAMS))


def with_replay(engine: Any, clock: FakeClock, act: Callable[[Replay], object]) -> None:
    with engine.open() as store:
        act(Replay(store, "ns", clock=clock, **SETTINGS))


def places(engine: Any, data: bytes) -> tuple[Path, list[int]]:
    """The file that holds the record, and where in it: LMDB keeps older copies of its pages."""
    inside = {"lmdb": "data.mdb", "filesystem": "/".join(("ns", *KEY))}
    file = engine.path / inside[engine.name] if engine.name in inside else engine.path
    content = file.read_bytes()
    found = [content.find(data)]
    while found[-1] >= 0:
        found.append(content.find(data, found[-1] + 1))
    return file, found[:-1]


@contextlib.contextmanager
def looking(engine: Any, store: Any) -> Iterator[Any]:
    """The open store; of SQLite, which keeps pages in its memory, one that is opened anew."""
    if engine.name != "sqlite":
        yield store
        return
    with engine.open() as anew:
        yield anew


@pytest.mark.parametrize("prepare", [complete, claim, bury])
def test_no_flipped_bit_changes_an_answer(
    durable: Any, prepare: Callable[..., None], fork: Any, tally: Any, times: int
) -> None:
    clock = FakeClock()
    prepare(durable, clock, fork)
    with durable.open() as store:
        data = store.read("ns", *KEY)
    file, offsets = places(durable, data)
    assert offsets
    step = max(1, 5 // times) if durable.name == "sqlite" else 1  # opening it takes a while
    fd = os.open(file, os.O_RDWR)
    try:
        with durable.open() as store:
            for bit in range(0, 8 * len(data), step):
                flip(fd, offsets, bit)
                with looking(durable, store) as found:
                    damaged = found.read("ns", *KEY)
                    assert damaged != data
                    no_answer(found, clock)
                    assert found.read("ns", *KEY) == damaged, "it is left as it is"
                tally("flipped bits", durable.name)
                flip(fd, offsets, bit)
            assert store.read("ns", *KEY) == data
            if prepare is complete:
                replay = Replay(store, "ns", clock=clock, **SETTINGS)
                assert replay.execute(KEY, PARAMS, never).response == RESPONSE
    finally:
        os.close(fd)  # when SQLite is closed: else it would lose its locks


@pytest.mark.parametrize("prepare", [complete, bury])
def test_no_flipped_bit_changes_an_answer_in_memory(
    new_engine: Any, prepare: Callable[..., None], tally: Any
) -> None:
    clock = FakeClock()
    engine = new_engine("memory")
    store = engine.open()
    store.close = lambda: None  # which would forget
    prepare(engine, clock, None)
    data = store.read("ns", *KEY)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        store.write("ns", *KEY, bytes(damaged))
        no_answer(store, clock)
        tally("flipped bits", "memory")


def flip(fd: int, offsets: list[int], bit: int) -> None:
    for at in offsets:
        (byte,) = os.pread(fd, 1, at + bit // 8)
        os.pwrite(fd, bytes([byte ^ 1 << bit % 8]), at + bit // 8)


def no_answer(store: Any, clock: FakeClock) -> None:
    for face in (Sync, Async):
        replay = face(store, "ns", clock=clock, **SETTINGS)
        calls: list[Callable[[], object]] = [
            functools.partial(replay.execute, KEY, PARAMS, never),
            functools.partial(replay.lookup, KEY, PARAMS),
            functools.partial(replay.release, KEY),
            replay.records,
        ]
        for call in calls:
            with pytest.raises(CorruptRecordError):
                call()


def never() -> None:
    raise AssertionError("it ran a second time")
