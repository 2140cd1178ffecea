"""Programs that run as processes of their own, and speak with the test."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PROGRAMS", "Program", "run_code", "run_python", "unmeasured"]

PROGRAMS = Path(__file__).parent
"""Where the programs are that several tests run: ``node_process.py`` and its like."""


def run_python(
    *arguments: str | Path, timeout: float = 60, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run this Python to its end, whatever its exit code is; its output is text."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def run_code(code: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same for code that is no file. Its warnings are errors."""
    return run_python("-W", "error", "-c", code, *arguments, **options)


def unmeasured() -> dict[str, str]:
    """This environment without what makes a child measure its coverage, in files of its own.

    For a child that is killed, that forks among threads, or whose system calls are counted.
    """
    return {name: value for name, value in os.environ.items() if "COVERAGE" not in name}


class Program:
    """A process that hears and says one line at a time. What it complains of is kept for the test."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._start(
            lambda *standard: subprocess.Popen(
                command, stdin=standard[0], stdout=standard[1], stderr=standard[2], env=env
            )
        )

    def _start(self, start: Callable[[int, int, int], Any]) -> None:
        """Start it with these descriptors as its standard input, output and error."""
        theirs, its_input = os.pipe()
        its_output, said = os.pipe()
        self._stdin, self._stdout = open(its_input, "w"), open(its_output)
        self._stderr = tempfile.TemporaryFile("w+")
        try:
            self.popen = start(theirs, said, self._stderr.fileno())
        finally:
            os.close(theirs)
            os.close(said)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def hear(self) -> str:
        """Return the next line that it says."""
        line = self._stdout.readline().strip()
        assert line, f"the process said nothing more: {self._complaint()}"
        return line

    def says(self) -> Any:
        """The same, of what it says in JSON."""
        return json.loads(self.hear())

    def tell(self, text: str = "") -> None:
        self._stdin.write(text + "\n")
        self._stdin.flush()

    def begin(self) -> None:
        """End its standard input, for which it waits."""
        self._stdin.close()

    def kill(self) -> str:
        """Kill it, and return what it said until then."""
        self.popen.kill()
        return self.rest()

    def rest(self) -> str:
        """Wait for its end, and return all that it still said."""
        said = self.hear_out()
        self.popen.wait()
        return said

    def hear_out(self) -> str:
        """Return all that it still says until its end. A process whose pipe nobody reads stops when that is full."""
        return self._stdout.read()

    def join(self) -> str:
        """The same, and its end was a good one."""
        said = self.rest()
        assert self.popen.returncode == 0, self._complaint()
        return said

    def end(self) -> None:
        """Kill it if it still runs, and forget it."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        for file in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _complaint(self) -> str:
        self.popen.wait()
        self._stderr.seek(0)
        return self._stderr.read()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()
