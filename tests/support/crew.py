"""Processes that start together, of which some are killed in the middle of their work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from support.nursery import Child
from support.programs import unmeasured

__all__ = ["run_together"]


def run_together(
    script: Path, told: Sequence[dict[str, Any]], *, faults: Sequence[str] = ()
) -> list[int]:
    """Run a process of the script for each that is told something; return the ids of the killed.

    Each says ``ready`` when all its threads wait for the end of standard input, which is one pipe for
    all. One that is told ``kill_at`` works until it is killed, soon after it says ``kill me``. All others
    must end well. ``faults`` is what injects faults into the last one.
    """
    with ExitStack() as stack:
        starter, start = os.pipe()
        stack.callback(os.close, starter)
        starting = stack.enter_context(open(start, "wb"))
        crew: list[Any] = []
        for each in told:
            if faults and each is told[-1]:
                process = stack.enter_context(_Faulty(script, each, starter, faults))
            else:
                process = stack.enter_context(_Member(script, each, starter))
            crew.append(process)
        for process in crew:
            assert _heard(process.stdout) == "ready"
        starting.close()
        killed = []
        for process, each in zip(crew, told, strict=True):
            if each["kill_at"] is not None:
                assert _heard(process.stdout) == "kill me"
                process.kill()
                assert process.wait() == -signal.SIGKILL
                killed.append(process.pid)
        for process in crew:
            assert process.pid in killed or process.wait() == 0, "a process failed"
        return killed


class _Member(Child):
    """A process of the script, of which only the output is heard."""

    def __init__(self, script: Path, told: dict[str, Any], stdin: int) -> None:
        said, theirs = os.pipe()
        self.stdout = open(said)
        try:
            super().__init__(script, told, stdin, theirs, 2)
        finally:
            os.close(theirs)

    def __enter__(self) -> _Member:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self.wait()
        self.stdout.close()


class _Faulty(subprocess.Popen[str]):
    """A process of the script whose system calls fail."""

    def __init__(
        self, script: Path, told: dict[str, Any], stdin: int, faults: Sequence[str]
    ) -> None:
        super().__init__(
            [*faults, sys.executable, str(script), json.dumps(told)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
            env=unmeasured(),
        )

    def __exit__(self, *exc: Any) -> None:
        self.kill()
        super().__exit__(*exc)


def _heard(said: IO[str]) -> str:
    return said.readline().strip()
