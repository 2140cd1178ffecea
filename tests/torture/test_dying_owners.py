"""A killed process whose last system call goes on: the disk is frozen just when it renames a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kvreplay._protocol.record import Claim
from kvreplay._runtime.liveness import Liveness, look_up
from support.needs import needs_disks
from support.programs import Program
from support.waiting import until
from torture.disks import Ext4, run

OWNER = """
import os, sys, threading
from kvreplay._runtime.liveness import *
owners, answer, thread = sys.argv[1:]
os.close(os.open(answer + ".tmp", os.O_WRONLY | os.O_CREAT))
token = new_token()
print(token.hex(), begin(token, owners), flush=True)
sys.stdin.readline()
def store():
    os.rename(answer + ".tmp", answer)  # which no signal breaks off
if thread == "another thread":
    threading.Thread(target=store).start()
    sys.stdin.readline()
store()
"""


@pytest.mark.parametrize("thread", ["the main thread", "another thread"])
def test_an_owner_is_gone_only_after_its_last_system_call(tmp_path: Path, thread: str) -> None:
    """Or a request could find nothing, call the key in doubt, and then the answer would be stored."""
    needs_disks()
    disk, owners = Ext4(tmp_path, "32M"), str(tmp_path / "owners")
    with disk.mounted():
        answer = disk.path / "answer"
        with Program([sys.executable, "-c", OWNER, owners, str(answer), thread]) as process:
            token, owner = process.hear().split()
            claim = Claim(bytes.fromhex(token), 0, owner)
            assert not answer.exists()
            run("fsfreeze", "--freeze", disk.path)
            try:
                process.tell()
                until(lambda: "D" in states(process.pid))
                process.popen.kill()
                if thread == "another thread":
                    until(lambda: states(process.pid)[0] == "Z")
                for _ in range(100):
                    assert look_up(claim, owners) is Liveness.RUNNING
                assert states(process.pid)[-1] == "D"
            finally:
                run("fsfreeze", "--unfreeze", disk.path)
            until(lambda: look_up(claim, owners) is Liveness.GONE)
            assert answer.exists()


def states(pid: int) -> list[str]:
    """The state of each thread, the main one's first: D is a system call that no signal ends."""
    tasks = sorted(os.listdir(f"/proc/{pid}/task"), key=int)
    texts = [Path(f"/proc/{pid}/task/{task}/stat").read_text() for task in tasks]
    return [text.rpartition(")")[2].split()[0] for text in texts]
