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
from typing import Any

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
        crew = []
        for each in told:
            process = subprocess.Popen(
                [
                    *(faults if each is told[-1] else ()),
                    *(sys.executable, str(script), json.dumps(each)),
                ],
                stdin=starter,
                stdout=subprocess.PIPE,
                text=True,
                env=unmeasured(),
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            crew.append(process)
        for process in crew:
            assert _heard(process) == "ready"
        starting.close()
        killed = []
        for process, each in zip(crew, told, strict=True):
            if each["kill_at"] is not None:
                assert _heard(process) == "kill me"
                process.kill()
                assert process.wait(60) == -signal.SIGKILL
                killed.append(process.pid)
        for process in crew:
            assert process.pid in killed or process.wait(300) == 0, "a process failed"
        return killed


def _heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
