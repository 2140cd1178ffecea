"""Who holds a claim: the truth where it can be looked up, and *unknown* elsewhere."""

from __future__ import annotations

import errno
import os
import sys

import pytest

from kvreplay import Replay, ReplayKey
from kvreplay._protocol.record import Claim
from kvreplay._protocol.steps import BEGIN
from kvreplay._runtime import liveness
from kvreplay._runtime.liveness import Liveness, look_up, this_process
from kvreplay._runtime.run import Run
from kvreplay.backends.memory import MemoryStore
from support.forking import Child
from support.needs import needs_root
from support.programs import Program, run_code
from support.waiting import until

TOKEN = b"t" * 16


def claim(text: str, token: bytes = TOKEN) -> Claim:
    return Claim(token, 0, text)


def test_this_process_tells_running_handlers_from_finished_ones() -> None:
    token = liveness.begin()
    assert look_up(claim(this_process(), token)) is Liveness.RUNNING
    assert look_up(claim(this_process())) is Liveness.GONE
    liveness.end(token)
    assert look_up(claim(this_process(), token)) is Liveness.GONE
    liveness.end(token)


def test_tokens_are_fresh() -> None:
    tokens = {liveness.begin() for _ in range(100)}
    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {16}
    for token in tokens:
        liveness.end(token)


ASK = "from kvreplay._runtime.liveness import this_process; import sys; print(this_process(), flush=True); {}"


def test_another_process_is_looked_up() -> None:
    with Program([sys.executable, "-c", ASK.format("sys.stdin.read()")]) as child:
        theirs = child.hear()
        assert look_up(claim(theirs)) is Liveness.RUNNING
        reused = theirs.rpartition(":")[0] + ":1"  # the same pid, started at another time
        assert look_up(claim(reused)) is Liveness.GONE
        child.popen.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert look_up(claim(theirs)) is Liveness.GONE  # a zombie
        child.rest()
        assert look_up(claim(theirs)) is Liveness.GONE


def test_another_user_can_still_look_it_up() -> None:
    needs_root()
    # All that it imports is imported before it becomes somebody else, who may not read it.
    script = (
        "import os, sys; from kvreplay._runtime.liveness import look_up, this_process;"
        "from kvreplay._protocol.record import Claim; this_process(); os.setuid(65534);"
        "print(look_up(Claim(b't' * 16, 0, sys.argv[1])).name)"
    )
    done = run_code(script, this_process())
    assert done.stdout.strip() == "RUNNING", done.stderr


def test_elsewhere_nothing_is_known() -> None:
    boot, namespace, pid, start = this_process().split(":")
    assert look_up(claim(f"another-boot:{namespace}:{pid}:{start}")) is Liveness.UNKNOWN
    assert look_up(claim(f"{boot}:1{namespace}:{pid}:{start}")) is Liveness.UNKNOWN


@pytest.mark.parametrize("tail", ["", "x:1", "-1:1", "99999999999999999999:1", "12"])
def test_a_malformed_owner_is_unknown(tail: str) -> None:
    boot, namespace, *_ = this_process().split(":")
    assert look_up(claim(f"{boot}:{namespace}:{tail}")) is Liveness.UNKNOWN
    assert look_up(claim(tail)) is Liveness.UNKNOWN


def test_a_process_that_never_was_is_gone() -> None:
    boot, namespace, *_ = this_process().split(":")
    assert look_up(claim(f"{boot}:{namespace}:{2**22 + 1}:1")) is Liveness.GONE


def test_without_proc_there_is_a_name_that_nobody_can_look_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_proc(pid: int) -> tuple[str, str]:
        raise FileNotFoundError

    mine = this_process()
    liveness._owner.cache_clear()
    monkeypatch.setattr(liveness, "_stat", no_proc)
    try:
        unknowable = this_process()
        assert look_up(claim(unknowable)) is Liveness.GONE  # still this process's own
        assert look_up(claim(mine)) is Liveness.UNKNOWN
    finally:
        monkeypatch.undo()
        liveness._owner.cache_clear()
    assert this_process() == mine
    assert look_up(claim(unknowable)) is Liveness.UNKNOWN


def test_a_child_is_another_owner_and_runs_nothing() -> None:
    token = liveness.begin()
    before = this_process()

    def child() -> None:
        assert this_process() != before
        assert look_up(claim(this_process(), token)) is Liveness.GONE
        assert look_up(claim(before, token)) is Liveness.RUNNING

    Child(child).join()
    liveness.end(token)


def test_a_run_that_begins_again_leaves_no_token_behind() -> None:
    """Another owner claimed first, and the key became free again: the same run tries once more."""
    with MemoryStore() as store:
        replay = Replay(store, "ns", ttl=60)
        before = set(liveness._running)
        run = Run(replay._settings, ReplayKey("s", "i"))
        tokens = [run.answer(BEGIN)[0] for _ in range(2)]
        assert set(liveness._running) - before == {(os.getpid(), tokens[1])}
        run.end()
        assert set(liveness._running) == before


def test_a_process_that_cannot_be_looked_at_now_is_taken_for_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It exists; whoever took it for gone could run its handler a second time."""

    def no_more_files(pid: int) -> tuple[str, str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    parent = f"{this_process().partition(f':{os.getpid()}:')[0]}:{os.getppid()}:1"
    assert look_up(claim(parent)) is Liveness.GONE  # that one started at another time
    monkeypatch.setattr(liveness, "_stat", no_more_files)
    assert look_up(claim(parent)) is Liveness.RUNNING


def test_a_process_whose_threads_are_still_dying_is_no_dead_one() -> None:
    """One of them may be in the system call that makes a commit count: it finishes that first."""
    leaderless = """
import ctypes, sys, threading
from kvreplay._runtime.liveness import this_process
threading.Thread(target=sys.stdin.read).start()
print(this_process(), flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
    with Program([sys.executable, "-c", leaderless]) as process:
        its = claim(process.hear())
        until(lambda: liveness._stat(process.pid)[0] == "Z")
        assert look_up(its) is Liveness.RUNNING
        process.popen.kill()
        # It stays a zombie until it is waited for, and then without threads.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert liveness._stat(process.pid)[0] == "Z"
        assert look_up(its) is Liveness.GONE
