"""A clock that jumps back and forth by a day: its word is taken, and nothing breaks or waits on it."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from kvreplay import ExpiredError, InDoubtError, InFlightError, ReplayKey, ReplayRecord, State
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import Claim, decode, encode
from support.replaying import START, Async, Caller, FakeClock, Sync

HOUR = 3_600_000
DAY = 24 * HOUR
PARAMS = {"amount_msat": 250_000}
KEY = ("lsp", "session")
each_face = pytest.mark.parametrize("face", [Sync, Async])


class JumpingClock:
    """Tells another time within a day of the true one whenever it is asked."""

    asked = 0

    def now_ms(self) -> int:
        self.asked += 1
        return START + random.choice((-DAY, 0, DAY)) + random.randrange(1000)


@attrs.define
class Modelled:
    """What a key must be: an answer, or the tombstone of one (``response`` is None)."""

    response: str | None
    expires_at: int


class Model:
    """What one thread must be told, computed without a store."""

    TTL, TOMBSTONE = 12 * HOUR, 6 * HOUR

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._keys: dict[str, Modelled] = {}

    def look(self, key: str) -> str | None:
        """``"free"``, ``"expired"`` or the answer; and prune as a look does."""
        found, now = self._keys.get(key), self._clock.now
        if found is None:
            return "free"
        if found.response is None:
            return "expired" if now < found.expires_at else "free"
        if now < found.expires_at:
            return found.response
        until = found.expires_at + self.TOMBSTONE
        if now < until:
            self._keys[key] = Modelled(None, until)
        else:
            del self._keys[key]
        return "expired"

    def answer(self, key: str, response: str) -> None:
        self._keys[key] = Modelled(response, self._clock.now + self.TTL)

    def sweep(self) -> int:
        due = [
            key
            for key, each in self._keys.items()
            if each.expires_at + (self.TOMBSTONE if each.response else 0) <= self._clock.now
        ]
        for key in due:
            del self._keys[key]
        return len(due)


@each_face
def test_the_clock_is_taken_at_its_word(engine: Any, face: Any, tally: Any, times: int) -> None:
    """Answers are kept, expire, are buried and swept exactly as it tells, whichever way it goes."""
    clock = FakeClock()
    model = Model(clock)
    store = engine.open(**engine.hasty)
    replay = face(
        store, "ns", ttl=Model.TTL / 1000, tombstone_ttl=Model.TOMBSTONE / 1000, clock=clock
    )
    responses = (f"response {n}" for n in itertools.count())
    seen: Counter[str] = Counter()
    for step in range(600 * times):
        # Half an hour on with each step: else all keys might soon have answers that outlive it all.
        start = START + step * HOUR // 2
        clock.now = start + random.choice((0, DAY, 2 * DAY)) + random.randrange(13 * HOUR)
        tally("jumps of the clock", engine.name)
        key = random.choice("abcdef")
        if random.random() < 0.15:
            assert replay.sweep().removed == model.sweep()
            continue
        only_look = random.random() < 0.3
        expected, response = model.look(key), next(responses)
        try:
            if only_look:
                outcome = replay.lookup(("lsp", key), PARAMS)
                told = "free" if outcome is None else outcome.response
            else:
                outcome = replay.execute(("lsp", key), PARAMS, lambda told=response: told)
                told = outcome.response if outcome.replayed else "free"
        except ExpiredError:
            told = "expired"
        assert told == expected
        if told == "free" and not only_look:
            model.answer(key, response)
        seen[told if told in ("free", "expired") else "replayed"] += 1
    assert len(seen) == 3


@each_face
def test_an_owner_elsewhere_is_believed_as_long_as_the_clock_tells(engine: Any, face: Any) -> None:
    clock, store = FakeClock(), engine.open()
    replay = face(store, "ns", ttl=60, wait_timeout=0, clock=clock)
    claim_elsewhere(store, START + 30_000)
    for jump in (0, DAY, -DAY, DAY, -29_999 - DAY, 29_999, 1, -1):
        clock.now += jump
        with pytest.raises(InFlightError if clock.now < START + 30_000 else InDoubtError):
            replay.execute(KEY, PARAMS, never)
        replay.sweep()
        assert store.list("ns", KEY[0]) == [KEY[1]]


@each_face
def test_no_jump_makes_a_request_wait_for_ever(engine: Any, face: Any) -> None:
    store = engine.open()
    claim_elsewhere(store, START + 9 * DAY)
    clock, kinds = JumpingClock(), list[str]()
    settings: dict[str, Any] = {"clock": clock, "on_event": lambda event: kinds.append(event.kind)}
    replay = face(store, "ns", ttl=60, wait_timeout=0.2, **settings)
    with pytest.raises(InFlightError):
        Caller(replay.execute, KEY, PARAMS, never).result()
    assert kinds == ["waited", "in_flight"]
    assert 4 < clock.asked < 80, "it has looked several times, and not without end"


@each_face
def test_a_lease_is_renewed_through_every_jump(engine: Any, face: Any) -> None:
    clock, store = FakeClock(), engine.open()
    replay = face(store, "ns", ttl=60, lease=0.03, renew=True, clock=clock)
    runs = []

    def handler() -> str:
        runs.append("run")
        for jump in (DAY, -DAY, -DAY, DAY):
            clock.now += jump
            until_renewed(store, clock.now + 30)
        return "answer"

    handler.blocks = True  # type: ignore[attr-defined]
    assert replay.execute(KEY, PARAMS, handler).response == "answer"
    assert replay.execute(KEY, PARAMS, never).replayed
    assert runs == ["run"]


def until_renewed(store: Any, lease_expires_at: int) -> None:
    give_up = time.monotonic() + 30
    while (claim := decode(store.read("ns", *KEY)).claim) is not None:
        if claim.lease_expires_at == lease_expires_at:
            return
        assert time.monotonic() < give_up, "the lease is not renewed"


def test_threads_that_jump_in_time_run_each_key_once(engine: Any, tally: Any, times: int) -> None:
    """The answers live for ten days, so that no jump ends one."""
    store = engine.open(**engine.hasty)
    runs: Counter[str] = Counter()
    keys = [f"{n}" for n in range(60 * times)]
    done = threading.Event()

    def ask(face: Any) -> dict[str, str]:
        replay = face(store, "ns", ttl=10 * DAY / 1000, wait_timeout=30, clock=JumpingClock())

        def run(key: str) -> str:
            runs[key] += 1
            return f"{key} {random.random()}"

        shuffled = random.sample(keys, len(keys))
        return {
            key: replay.execute(("lsp", key), PARAMS, lambda key=key: run(key)).response
            for key in shuffled
        }

    def sweep() -> int:
        replay = Sync(store, "ns", ttl=60, clock=JumpingClock())
        removed = 0
        while not done.is_set():
            removed += replay.sweep().removed
        return removed

    with ThreadPoolExecutor(5) as pool:
        sweeper = pool.submit(sweep)
        try:
            told = [
                each.result() for each in [pool.submit(ask, face) for face in (Sync, Async) * 2]
            ]
        finally:
            done.set()
        assert sweeper.result() == 0
    assert all(each == told[0] for each in told)
    assert runs == dict.fromkeys(keys, 1)
    tally("jumps of the clock", engine.name, 4 * len(keys))


def claim_elsewhere(store: Any, lease_expires_at: int) -> None:
    """As a process of another machine's boot, or of another PID namespace, leaves it."""
    claim = Claim(bytes(16), lease_expires_at, "elsewhere:1:1:1")
    record = ReplayRecord(
        State.IN_PROGRESS, ReplayKey(*KEY), canonical(PARAMS), None, START, None, claim
    )
    store.write("ns", *KEY, encode(record))


def never() -> None:
    raise AssertionError("it ran a second time")
