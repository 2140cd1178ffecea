"""Real signals, which come when they like: a timer's, and one Ctrl-C for a busy process."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Any

import pytest

from interrupts.points import TimeLimit
from kvreplay import Change, ExpiredError, InDoubtError, KVReplayError, Outcome, Replay
from kvreplay._runtime import liveness
from kvreplay._runtime.singleflight import flights
from support.programs import Program, unmeasured
from support.replaying import Caller, FakeClock

pytestmark = pytest.mark.untraced

REPLAYING = """
import asyncio, itertools, signal, sys
from kvreplay import AsyncReplay, Replay, open_store
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.alarm(60)

def sync(store):
    replay = Replay(store, "pay", ttl=600)
    replay.execute(("s", "k"), {}, lambda: 1)
    print("on", flush=True)
    for n in itertools.count():
        replay.execute(("s", "k"), {}, lambda: 1)
        replay.execute(("s", str(n)), {}, lambda: 1)

async def awaited(store):
    replay = AsyncReplay(store, "pay", ttl=600)
    await replay.execute(("s", "k"), {}, lambda: 1)
    print("on", flush=True)
    for n in itertools.count():
        await replay.execute(("s", "k"), {}, lambda: 1)
        await replay.execute(("s", str(n)), {}, lambda: 1)

with open_store(sys.argv[1]) as store:
    try:
        sync(store) if sys.argv[2] == "sync" else asyncio.run(awaited(store))
    finally:
        print("interrupted", flush=True)
print("closed", flush=True)
"""


def disarm() -> None:
    """End the time limit. One that has just come is raised here, and not out of what follows."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for _ in range(2):
        pass  # CPython looks for signals before each turn


# Python can only print what comes out of a finalizer.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_time_limit_that_comes_during_a_commit_runs_no_batch_again(new_engine: Any) -> None:
    store = new_engine("lmdb").open()
    limits = 0

    def limit(*_: object) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, limit)
    try:
        for n in range(400):
            changes = [Change("p", "s", f"{n}-{i}", None, b"mine") for i in range(2)]
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00002 + n % 40 * 0.00001)
                told = store.check_and_put_each(changes)
                disarm()
            except TimeLimit:
                limits += 1
            else:
                assert told == [None, None], "told that another was faster, with its own bytes"
            kept = [key for key in store.list("p", "s") if key.startswith(f"{n}-")]
            assert len(kept) in (0, 2), "half of a batch"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert limits > 20, f"only {limits} limits came in time to show anything"


# Python can only print what comes out of a finalizer.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_requests_that_are_broken_off_leave_no_key_behind(engine: Any) -> None:
    """A flight that stayed would answer from memory for ever, or let its followers wait for ever."""
    store = engine.open(**engine.hasty)
    clock = FakeClock()
    replay = Replay(store, "pay", ttl=1, wait_timeout=0, clock=clock)
    keys = [("s", "first")]
    replay.execute(keys[0], {}, lambda: "r")
    process = liveness._process
    assert process is not None
    broken_off: set[tuple[str, str]] = set()

    def ask_for_others() -> None:
        while True:
            keys.append(("s", f"k{len(keys)}"))
            replay.execute(keys[-1], {}, lambda: "r")

    def ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ctrl_c)
    try:
        for n in range(80):
            with contextlib.suppress(KeyboardInterrupt):
                # Again after a while: one that comes in a finalizer is lost.
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + n % 40 * 0.00003, 0.5)
                ask_for_others()
            signal.setitimer(signal.ITIMER_REAL, 0)
            broken_off.add(keys[-1])
            assert not flights.table
            assert not process.running
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(broken_off) > 20, "the interrupts did not come in time to show anything"
    clock.pass_seconds(2)  # what was answered has expired
    ends = {type(how_it_ends(replay, key)) for key in broken_off}
    assert ends <= {Outcome, ExpiredError, InDoubtError}


def how_it_ends(replay: Replay, key: tuple[str, str]) -> Outcome | KVReplayError:
    """Ask for the key in another thread."""
    try:
        outcome: Outcome = Caller(replay.execute, key, {}, lambda: "again").result()
    except KVReplayError as error:
        return error
    assert (outcome.response, outcome.replayed) == ("again", False)
    return outcome


@pytest.mark.parametrize("face", ["sync", "async"])
def test_a_process_that_gets_one_ctrl_c_ends(engine: Any, face: str) -> None:
    with Program([sys.executable, "-c", REPLAYING, engine.url, face], unmeasured()) as process:
        assert process.hear() == "on"
        process.popen.send_signal(signal.SIGINT)
        assert process.hear() == "interrupted"
        process.popen.wait(30)
        assert process.popen.returncode == -signal.SIGINT
