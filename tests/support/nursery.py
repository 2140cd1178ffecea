"""A process that has loaded what a script needs, and forks: each process of the script starts in milliseconds.

Run as a program, it takes the script's path. For each message on its standard input, which is a socket, it
forks a child that runs the script's ``main`` with the message's JSON; the descriptors that came with the
message are the child's standard input, output and error. It answers the child's id, and later its end.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from support.programs import Program, unmeasured

__all__ = ["Child", "ForkedProgram"]

_LARGEST = 64 * 1024


class Child:
    """One process of the script, as ``subprocess.Popen`` shows it."""

    def __init__(self, script: Path, told: dict[str, Any], *descriptors: int) -> None:
        self._nursery = nursery_of(script)
        self.pid = self._nursery.ask({"told": told}, *descriptors)
        self._ends = os.pidfd_open(self.pid)  # readable from then on
        self.returncode: int | None = None

    def kill(self) -> None:
        if self.returncode is None:  # its id is still its own
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._ends], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a process of a nursery", timeout or 0)
            self.returncode = self._nursery.ask({"wait": self.pid})
            os.close(self._ends)
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None


class ForkedProgram(Program):
    """A process of the script that hears and says one line at a time."""

    def __init__(self, script: Path, told: dict[str, Any]) -> None:
        self._start(lambda *standard: Child(script, told, *standard))


class _Nursery:
    def __init__(self, script: Path) -> None:
        self._socket, its_own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_own:
            command = [sys.executable, __file__, str(script)]
            self._process = subprocess.Popen(command, stdin=its_own, env=_with_tests())

    def end(self) -> None:
        self._socket.close()
        self._process.wait()

    def ask(self, what: dict[str, Any], *descriptors: int) -> int:
        socket.send_fds(self._socket, [json.dumps(what).encode()], descriptors)
        answer = self._socket.recv(_LARGEST)
        assert answer, "the nursery has ended"
        return int(answer)


@functools.cache
def nursery_of(script: Path) -> _Nursery:
    """Return this process's nursery for a script; it ends with this process."""
    nursery = _Nursery(script)
    atexit.register(nursery.end)
    return nursery


def _with_tests() -> dict[str, str]:
    tests = str(Path(__file__).parents[1])
    path = os.environ.get("PYTHONPATH")
    return {**unmeasured(), "PYTHONPATH": f"{path}{os.pathsep}{tests}" if path else tests}


def _serve(script: str) -> None:
    spec = importlib.util.spec_from_file_location("crew_member", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["crew_member"] = module
    spec.loader.exec_module(module)
    with socket.socket(fileno=os.dup(0)) as parent:
        while True:
            message, descriptors, _, _ = socket.recv_fds(parent, _LARGEST, 3)
            if not message:
                return
            what = json.loads(message)
            if "wait" in what:
                _, status = os.waitpid(what["wait"], 0)
                answer = os.waitstatus_to_exitcode(status)
            else:
                answer = os.fork()
                if not answer:
                    parent.close()
                    _become(module.main, what["told"], descriptors)
                for each in descriptors:
                    os.close(each)
            parent.send(str(answer).encode())


def _become(main: Any, told: dict[str, Any], descriptors: list[int]) -> None:
    code = 1
    try:
        for own, each in enumerate(descriptors):
            os.dup2(each, own)
            os.close(each)
        main(told)
        sys.stdout.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
