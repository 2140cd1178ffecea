"""Real signals, which come when they like: a timer's, and one Ctrl-C for a busy process."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from interrupts.points import TimeLimit
from kvreplay import Change
from support.programs import Program, unmeasured

pytestmark = pytest.mark.untraced

REPLAYING = """
import signal, sys
from kvreplay import Replay, open_store
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.alarm(60)
with open_store("lmdb:" + sys.argv[1]) as store:
    replay = Replay(store, "pay", ttl=600)
    replay.execute(("s", "k"), {}, lambda: 1)
    try:
        print("on", flush=True)
        while True:
            replay.execute(("s", "k"), {}, lambda: 1)
            replay.execute(("s", str(id(object()))), {}, lambda: 1)
    finally:
        print("interrupted", flush=True)
print("closed", flush=True)
"""


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
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + n % 40 * 0.00001)
                told = store.check_and_put_each(changes)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except TimeLimit:
                limits += 1
            else:
                assert told == [None, None], "told that another was faster, with its own bytes"
            kept = [key for key in store.list("p", "s") if key.startswith(f"{n}-")]
            assert len(kept) in (0, 2), "half of a batch"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert limits > 20, "the limits did not come in time to show anything"


@pytest.mark.parametrize("number", range(6))
def test_a_process_that_gets_one_ctrl_c_ends(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-c", REPLAYING, str(tmp_path / "store")]
    with Program(command, unmeasured()) as process:
        assert process.hear() == "on"
        process.popen.send_signal(signal.SIGINT)
        assert process.hear() == "interrupted"
        process.popen.wait(30)
        assert process.popen.returncode == -signal.SIGINT
