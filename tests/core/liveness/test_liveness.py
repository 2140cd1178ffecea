"""Who holds a claim: the truth where it can be looked up, and *unknown* elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kvreplay import Replay, ReplayKey
from kvreplay._protocol.record import Claim
from kvreplay._protocol.steps import BEGIN
from kvreplay._runtime import liveness
from kvreplay._runtime.liveness import Liveness, begin, end, look_up, new_token
from kvreplay._runtime.run import Run
from kvreplay.backends.memory import MemoryStore
from support.forking import BareChild, Child
from support.needs import needs_root
from support.owners import OWNER, as_seen_by_another, descriptors
from support.programs import run_code
from support.waiting import until

RUNNING, GONE, UNKNOWN = Liveness.RUNNING, Liveness.GONE, Liveness.UNKNOWN
BOOT, DEVICE, INODE, BYTE = range(4)


def but(claim: Claim, index: int, value: object) -> Claim:
    """The same claim, with one field of its owner changed."""
    fields = claim.owner.split(":")
    fields[index] = str(value)
    return Claim(claim.token, 0, ":".join(fields))


# This process's own claims.


@pytest.mark.parametrize("has_file", [True, False])
def test_this_process_tells_running_handlers_from_finished_ones(
    path: str, token: bytes, has_file: bool
) -> None:
    owners_file = path if has_file else None
    mine = Claim(token, 0, begin(token, owners_file))
    assert look_up(mine, owners_file) is RUNNING
    assert look_up(Claim(new_token(), 0, mine.owner), owners_file) is GONE
    end(token)
    assert look_up(mine, owners_file) is GONE
    end(token)


def test_tokens_are_fresh() -> None:
    assert len({new_token() for _ in range(100)}) == 100
    assert len(new_token()) == 16


def test_a_run_that_begins_again_leaves_no_token_behind() -> None:
    """Another owner claimed first, and the key became free again: the same run tries once more."""
    with MemoryStore() as store:
        replay = Replay(store, "ns", ttl=60)
        before = running()
        run = Run(replay._settings, ReplayKey("s", "i"))
        tokens = [run.answer(BEGIN)[0] for _ in range(2)]
        assert running() - before == {tokens[1]}
        run.end()
        assert running() == before


def running() -> set[bytes]:
    process = liveness._process
    return set() if process is None else set(process.running)


# Those of another process.


def test_an_owner_that_lives_and_one_that_is_killed(owner: Any, path: str) -> None:
    process, claim = owner()
    assert look_up(claim, path) is RUNNING
    assert look_up(but(claim, BYTE, 5), path) is GONE  # nobody has that byte
    process.popen.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert look_up(claim, path) is GONE  # a zombie
    process.rest()
    assert look_up(claim, path) is GONE


def test_an_owner_that_lives_but_runs_nothing_any_more(owner: Any, path: str) -> None:
    process, claim = owner("sys.stdin.readline(); end(token); print('ended', flush=True); input()")
    assert look_up(claim, path) is RUNNING
    process.tell()
    assert process.hear() == "ended"
    assert look_up(claim, path) is GONE
    assert process.popen.poll() is None


def test_an_owner_with_another_run_holds_on(owner: Any, path: str) -> None:
    """Its lock is one for all its runs, so it says nothing about one that did not say its end."""
    process, claim = owner(
        "begin(new_token(), path); end(token); print('ended', flush=True); input()"
    )
    assert process.hear() == "ended"
    assert look_up(claim, path) is RUNNING


def test_an_owner_that_executes_another_program_is_gone(owner: Any, path: str) -> None:
    """Though its pid and its start time stay."""
    wait = "print('another', flush=True); input()"
    process, claim = owner(f"input(); os.execv({sys.executable!r}, ['python', '-c', {wait!r}])")
    assert look_up(claim, path) is RUNNING
    before = start_time(process.pid)
    process.tell()
    assert process.hear() == "another"
    assert start_time(process.pid) == before
    assert look_up(claim, path) is GONE


def start_time(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_an_owner_whose_threads_are_still_dying_is_not_gone(owner: Any, path: str) -> None:
    """One of them may be in the system call that makes a commit count: it finishes that first."""
    process, claim = owner(
        "import ctypes, threading; threading.Thread(target=sys.stdin.read).start();"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    until(lambda: state(process.pid) == "Z")
    assert look_up(claim, path) is RUNNING
    process.popen.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert look_up(claim, path) is GONE


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Forked children.


@pytest.mark.parametrize("kind", [Child, BareChild])
def test_a_child_is_another_owner_and_runs_nothing(path: str, token: bytes, kind: Any) -> None:
    mine = Claim(token, 0, begin(token, path))

    def child() -> None:
        assert not before[0]
        (inherited,) = descriptors(path)
        os.close(inherited)
        assert os.open(os.devnull, os.O_RDONLY) == inherited
        end(token)  # which is its parent's, and so is what had this number
        os.fstat(inherited)
        assert look_up(mine, path) is RUNNING
        own = new_token()
        theirs = Claim(own, 0, begin(own, path))
        assert theirs.owner.split(":")[BYTE] != mine.owner.split(":")[BYTE]
        assert look_up(mine, path) is RUNNING
        assert look_up(theirs, path) is RUNNING
        assert look_up(Claim(token, 0, theirs.owner), path) is GONE
        assert as_seen_by_another(mine, path) == "RUNNING"
        assert as_seen_by_another(theirs, path) == "RUNNING"
        end(own)
        assert as_seen_by_another(theirs, path) == "GONE"
        assert as_seen_by_another(mine, path) == "RUNNING"
        os.closerange(3, 1000)

    before = liveness.this_process()
    kind(child).join()
    assert before[0]
    assert as_seen_by_another(mine, path) == "RUNNING"
    assert look_up(mine, path) is RUNNING


@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.PyDLL(None).fork()"])
def test_a_child_does_not_prolong_its_parents_life(owner: Any, path: str, fork: str) -> None:
    process, claim = owner(
        f"import ctypes\nif not {fork}: print('child', os.getpid(), flush=True)\nsys.stdin.read()"
    )
    said, child = process.hear().split()
    assert said == "child"
    assert look_up(claim, path) is RUNNING
    os.kill(process.pid, 9)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    os.kill(int(child), 0)  # it lives
    assert look_up(claim, path) is GONE


def test_a_descendant_with_its_ancestors_pid_is_not_that_ancestor(
    path: str, token: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pids come again. A child is told by its mark, where the kernel has one to give."""
    mine = Claim(token, 0, begin(token, path))
    pid = os.getpid()

    def child() -> None:
        monkeypatch.setattr(os, "getpid", lambda: pid)
        assert begin(new_token(), path).split(":")[BYTE] != mine.owner.split(":")[BYTE]

    Child(child).join()


# Where nothing can be known.


def test_elsewhere_nothing_is_known(owner: Any, path: str, tmp_path: Path) -> None:
    process, claim = owner()
    assert look_up(claim, path) is RUNNING
    process.kill()
    assert look_up(claim, path) is GONE
    assert look_up(but(claim, BOOT, "another-boot"), path) is UNKNOWN
    assert look_up(but(claim, DEVICE, 1), path) is UNKNOWN
    assert look_up(but(claim, INODE, 1), path) is UNKNOWN
    assert look_up(claim, None) is UNKNOWN  # a store that has no such file
    assert look_up(claim, str(tmp_path / "none" / "owners")) is UNKNOWN
    os.rename(path, tmp_path / "moved")
    assert look_up(claim, path) is UNKNOWN
    Path(path).touch()
    assert look_up(claim, path) is UNKNOWN


@pytest.mark.parametrize(
    "tail", ["", "1:1", "1:1:x", "1:1:-1", f"1:1:{2**62}", f"1:1:{2**70}", "1:x:1", "0:0:5"]
)
def test_a_malformed_owner_is_unknown(path: str, token: bytes, tail: str) -> None:
    boot = begin(token, path).split(":")[BOOT]
    assert look_up(Claim(token, 0, f"{boot}:{tail}"), path) is UNKNOWN
    assert look_up(Claim(token, 0, tail), path) is UNKNOWN


def test_without_a_lock_the_owner_is_nowhere(owner: Any, path: str, tmp_path: Path) -> None:
    """Whatever the reason: no folder, a folder in the file's place, somebody who holds every byte."""
    folder = tmp_path / "folder"
    folder.mkdir()
    process, _ = owner(
        "import fcntl\nf = open(path, 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print('all', flush=True); input()"
    )
    assert process.hear() == "all"
    for unfit in (str(tmp_path / "none" / "owners"), str(folder), path):
        token = new_token()
        mine = Claim(token, 0, begin(token, unfit))
        assert mine.owner.split(":")[DEVICE : INODE + 1] == ["0", "0"]
        assert look_up(mine, unfit) is RUNNING
        assert as_seen_by_another(mine, unfit) == "UNKNOWN"
        end(token)
        assert look_up(mine, unfit) is GONE
    assert descriptors(path) == []


def test_without_a_descriptor_left_a_living_owner_is_not_gone(owner: Any, path: str) -> None:
    """Nor does its lease decide: it has a lock. And the own claim has none."""
    process, claim = owner()
    no_more = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))"
    assert as_seen_by_another(claim, path, no_more) == "RUNNING"
    starved = run_code(OWNER.replace("token =", f"{no_more}; token ="), path)
    assert starved.stdout.split()[1].split(":")[DEVICE : INODE + 1] == ["0", "0"]
    process.kill()
    assert as_seen_by_another(claim, path) == "GONE"


def test_whoever_cannot_read_the_file_knows_nothing(token: bytes) -> None:
    needs_root()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = os.path.join(folder, "owners")
        mine = Claim(token, 0, begin(token, path))
        # All that it imports is imported before it becomes somebody else, who may not read it.
        somebody = "import encodings.ascii, fcntl; os.setuid(65534)"
        assert as_seen_by_another(mine, path, somebody) == "UNKNOWN"
        os.chmod(path, 0o644)
        assert as_seen_by_another(mine, path, somebody) == "RUNNING"


def test_without_proc_nothing_is_known(owner: Any, path: str) -> None:
    needs_root()
    _, claim = owner()
    for mount, seen in (("true", "RUNNING"), ("mount -t tmpfs none /proc", "UNKNOWN")):
        within = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
        assert as_seen_by_another(claim, path, within=within) == seen
    hidden = subprocess.run(
        [*within, sys.executable, "-c", OWNER, path], capture_output=True, text=True, check=True
    )
    assert hidden.stdout.split()[1].startswith(":0:0:")
