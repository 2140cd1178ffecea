"""Processes that are killed, I/O that fails, and a writer that is interrupted."""

from __future__ import annotations

import json
import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.store import SweepResult
from kvreplay.testing.entries import content
from support.interrupts import hearing_ctrl_c
from support.lmdb_stores import Process, in_process, traced
from support.needs import needs_strace
from support.waiting import until_somebody_waits_for

pytestmark = pytest.mark.any_python


def test_a_writer_that_is_killed_inside_a_transaction(root: Path) -> None:
    code = """
store = LMDBStore(path)
with store.transaction() as txn:
    txn.write("p", "s", "k", b"killed")
    for n in range(100):
        txn.write("p", "s", f"k{n}", bytes(3000))
    say("inside")
    wait()
"""
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"old")
        for n in range(3):
            with Process(code, root) as process, ThreadPoolExecutor(1) as pool:
                assert process.hear() == "inside"
                assert store.read("p", "s", "k") == (b"old" if n == 0 else b"w%d" % (n - 1))
                waiting = pool.submit(store.write, "p", "s", "k", b"w%d" % n)
                process.kill()
                waiting.result(60)
            assert content(store) == {("p", "s", "k"): b"w%d" % n}


COUNT = """
with LMDBStore(path, map_size=64 * 1024) as store:
    say("ready")
    while True:
        expected = store.read("p", "s", "n")
        while True:
            value = str(int(expected) + 1).encode()
            found = store.check_and_put("p", "s", "n", expected=expected, value=value, expires_at=9)
            if found == expected:
                break
            expected = found
        say(value.decode())
"""


def test_killed_at_random_while_counting(root: Path) -> None:
    """Every acknowledged increment is there, and at most one more for each process."""
    rng = random.Random(7)
    with LMDBStore(root) as store:
        store.write("p", "s", "n", b"0")
    for _ in range(8):
        with LMDBStore(root) as store:
            before = int(store.read("p", "s", "n"))
        with Process(COUNT, root) as one, Process(COUNT, root) as other:
            assert one.hear() == other.hear() == "ready"
            last = before
            for _ in range(rng.randrange(1, 150)):
                last = int(one.hear())
            one.popen.kill()
            other.popen.kill()
            said = [
                int(line)
                for process in (one, other)
                for line in process.rest().splitlines()
                if line
            ]
        acknowledged = max([last, *said])
        assert len(set(said)) == len(said), "no increment was acknowledged twice"
        with LMDBStore(root) as store:
            assert acknowledged <= int(store.read("p", "s", "n")) <= acknowledged + 2
            found = store.read("p", "s", "n")
            assert store.sweep("p", 8, 9) == SweepResult(0, 0, False)
            assert len(store.list("p", "s")) == 1
            store.check_and_put("p", "s", "n", expected=found, value=found)


FAULTY = """
import json
store = LMDBStore(path)
def transact():
    with store.transaction() as txn:
        txn.write("p", "s", "secret-b", b"hidden-b" * 2000)
        txn.write("p", "t", "secret-c", b"hidden-c")
def put(key, value, expires_at):
    assert store.check_and_put(
        "p", "s", key, expected=None, value=value, expires_at=expires_at) is None
steps = [
    lambda: put("secret-a", b"hidden-a", None),
    lambda: put("secret-due", b"hidden" * 3000, 5),
    transact,
    lambda: store.sweep("p", 5, 5),
    lambda: store.write("p", "s", "secret-d", b"hidden-d" * 1000),
    lambda: store.remove("p", "s", "secret-d"),
]
def told(error):
    return "" if error is None else f"{error!r} {error}" + told(error.__cause__) + told(error.__context__)
def content():
    found = {"/".join(address): len(store.read(*address)) for address in store.list_all_keys()}
    return json.dumps(found, sort_keys=True)
for step in steps:
    before = content()
    try:
        step()
        outcome = "ok"
    except StoreError as error:
        assert "secret" not in told(error) and "hidden" not in told(error), told(error)
        assert isinstance(error.__cause__, __import__("lmdb").Error), told(error)
        outcome = type(error).__name__
        if outcome != "OutcomeUnknownError":
            assert content() == before, (content(), before)
    say(json.dumps([outcome, before, content()]))
store.close()
"""


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("pwrite64", "error=EIO"),
        ("pwrite64", "error=ENOSPC"),
        ("pwrite64", "retval=16"),  # a short write
        ("writev", "error=EIO"),
        ("writev", "error=EDQUOT"),
        ("writev", "retval=16"),
        ("fdatasync", "error=EIO"),
        ("fdatasync", "error=ENOSPC"),
    ],
)
def test_each_step_of_each_commit_fails(root: Path, tmp_path: Path, call: str, fault: str) -> None:
    """Applied, not applied, or unknown, and never acknowledged and lost; usable again after."""
    needs_strace()
    log = tmp_path / "log"
    outcomes = set()
    for n in range(1, 100):
        shutil.rmtree(root, ignore_errors=True)
        LMDBStore(root).close()
        before = traced(log, root, call, f"{fault}:when={n}")
        said = [json.loads(line) for line in in_process(FAULTY, root, before=before).splitlines()]
        assert len(said) == 6
        for (_, _, after), (_, earlier, _) in zip(said, said[1:], strict=False):
            assert after == earlier
        last = json.loads(said[-1][2])
        with LMDBStore(root) as store:
            assert {"/".join(at): len(value) for at, value in content(store).items()} == last
        failed = [outcome for outcome, _, _ in said if outcome != "ok"]
        assert len(failed) == log.read_text().count("INJECTED"), "the next one works again"
        outcomes.update(failed)
        if not failed:
            assert last == {"p/s/secret-a": 8, "p/s/secret-b": 16000, "p/t/secret-c": 8}
            break
    assert n > 3
    known = {"error=EIO": "StoreError", "retval=16": "StoreError"}.get(fault, "StoreFullError")
    assert outcomes == ({known, "OutcomeUnknownError"} if call == "pwrite64" else {known})


def test_an_unknown_outcome_may_have_happened(root: Path, tmp_path: Path) -> None:
    """The page that makes it count reached the disk, only its confirmation did not."""
    needs_strace()
    code = """
store = LMDBStore(path)
try:
    store.write("p", "s", "k", b"v")
    say("ok")
except OutcomeUnknownError:
    say("unknown")
except StoreError:
    assert "k" not in store.list("p", "s")
    say("not")
store.list("p", "s")
try:
    store.write("p", "s", "later", b"v")
except StoreError:
    store.write("p", "s", "later", b"v")
store.close()
"""
    LMDBStore(root).close()
    seen = set()
    for n in range(1, 10):
        with LMDBStore(root) as store:
            store.remove("p", "s", "k")
        before = traced(tmp_path / "log", root, "pwrite64", f"retval=0:when={n}")
        said = in_process(code, root, before=before).split()
        seen.add(said[0])
        with LMDBStore(root) as store:
            assert "later" in store.list("p", "s")
    assert seen == {"ok", "not", "unknown"}


def test_a_blocked_writer_can_be_interrupted_without_harm(root: Path) -> None:
    """Ctrl-C while another process holds the lock: seen when it is free, and nothing is stuck."""
    hold = """
store = LMDBStore(path)
with store.transaction() as txn:
    say("inside")
    wait()
store.close()
"""
    blocked = """
store = LMDBStore(path)
say("ready")
wait()
for enter in (lambda: store.write("p", "s", "k", b"v"), lambda: store.transaction().__enter__()):
    try:
        say("blocking")
        enter()
    except KeyboardInterrupt:
        say("interrupted")
    else:
        say("no")
    wait()
store.write("p", "s", "k", b"w")
store.close()
say("closed")
"""
    LMDBStore(root).close()
    with hearing_ctrl_c(), Process(blocked, root) as process:
        assert process.hear() == "ready"
        for _ in range(2):
            with Process(hold, root) as holder:
                assert holder.hear() == "inside"
                process.tell()
                assert process.hear() == "blocking"
                until_somebody_waits_for(root / "kvreplay.lock")
                process.popen.send_signal(signal.SIGINT)
                holder.tell()
                assert process.hear() == "interrupted"
                holder.join()
        process.tell()
        assert process.hear() == "closed"
        process.join()
