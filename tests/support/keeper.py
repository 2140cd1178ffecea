"""A process that runs servers for a test, and ends them when the test's process ends, however that ends.

Run as a program, it is told what to do by lines of JSON on its standard input, and answers each by a line. When the
input ends it kills all that it runs, with what they have started, and removes its folder. If it is killed
itself, the kernel kills what it runs.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.process_table import children_of
from support.programs import Program

__all__ = ["Keeper", "Kept", "as_servers_user"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_IPC_RMID = 0


def as_servers_user() -> dict[str, Any]:
    """What ``subprocess.Popen`` is told so that a server runs: most refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class Keeper:
    """The keeper's process, as the test sees it. Any thread may ask it."""

    def __init__(self, folder: Path) -> None:
        """Start it. The folder, which it removes at its end, becomes its servers' own."""
        user = as_servers_user()
        if user:
            os.chown(folder, user["user"], user["group"])
        tests = str(Path(__file__).parents[1])
        # As a module it would import what the tests import; this starts in milliseconds.
        code = f"import sys; sys.path.append({tests!r}); from support.keeper import serve; serve()"
        self._program = Program([sys.executable, "-I", "-S", "-c", code, str(folder)])
        self._lock = threading.Lock()
        assert self._program.hear() == "ready"

    def run(self, command: Sequence[str], log: Path) -> Kept:
        """Start a program as the servers' user; what it says is added to the log."""
        return Kept(self, int(self.ask(run=list(command), log=str(log))))

    def kill_all(self) -> None:
        """Kill what it runs, and what that has started, so that none of them sees another one die."""
        self.ask(kill=True)

    def end(self) -> None:
        """The same; and remove the folder."""
        if self._program.popen.poll() is None:
            self.ask(end=True)
            self._program.rest()
        self._program.end()

    def ask(self, **what: Any) -> Any:
        with self._lock:
            self._program.tell(json.dumps(what))
            return self._program.says()


class Kept:
    """One program that a keeper runs."""

    def __init__(self, keeper: Keeper, pid: int) -> None:
        self.pid = pid
        self._keeper = keeper
        self._ends = os.pidfd_open(pid)  # readable from then on
        self._exit_code: int | None = None

    def has_ended(self, within: float = 0) -> bool:
        """Wait for its end, for so many seconds."""
        if self._exit_code is not None:
            return True
        poll = select.poll()
        poll.register(self._ends, select.POLLIN)
        return bool(poll.poll(within * 1000))

    def exit_code(self, within: float) -> int:
        """Wait for its end; negative: the signal that ended it."""
        assert self.has_ended(within), "it still runs"
        if self._exit_code is None:
            self._exit_code = self._keeper.ask(reap=self.pid)
            os.close(self._ends)
        return self._exit_code


# The keeper's own side.


def serve() -> None:
    folder = sys.argv[1]
    os.setsid()  # a Ctrl-C in the terminal is the test's
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    own = os.getpid()
    running: dict[int, subprocess.Popen[bytes]] = {}

    def die_with_the_keeper() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != own:
            os._exit(1)

    def end_all() -> None:
        _kill_all(own, [popen for popen in running.values() if popen.returncode is None])
        # A killed PostgreSQL leaves a segment of shared memory, of which a machine may have 4096.
        for file in Path(folder).glob("*/postmaster.pid"):
            lines = file.read_text(encoding="utf-8").splitlines()
            if len(lines) > 6:
                libc.shmctl(int(lines[6].split()[1]), _IPC_RMID, None)

    def answer(what: dict[str, Any]) -> Any:
        if "run" in what:
            with open(what["log"], "ab") as log:
                popen = subprocess.Popen(
                    what["run"],
                    cwd=folder,
                    env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_the_keeper,
                    **as_servers_user(),
                )
            running[popen.pid] = popen
            return popen.pid
        if "reap" in what:
            # After a kill its exit code is still kept here.
            return running.pop(what["reap"]).wait()
        end_all()
        return True

    print("ready", flush=True)
    try:
        for line in sys.stdin:
            what = json.loads(line)
            print(json.dumps(answer(what)), flush=True)
            if "end" in what:
                break
    finally:
        end_all()
        shutil.rmtree(folder, ignore_errors=True)


def _kill_all(own: int, running: Sequence[subprocess.Popen[bytes]]) -> None:
    for popen in running:
        os.kill(popen.pid, signal.SIGSTOP)
        # From then on it starts no other process.
        os.waitid(os.P_PID, popen.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    for popen in running:
        for pid in children_of(popen.pid):
            os.kill(pid, signal.SIGKILL)
        popen.kill()
    for popen in running:
        popen.wait()
    while orphans := children_of(own):
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
