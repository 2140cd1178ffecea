"""docs/tutorial.md is played in a real shell, on a real server: its files, its commands, what they print."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.console import in_a_terminal, is_as_shown, steps
from support.extras import needs_cli, needs_http, needs_prometheus
from support.needs import missing
from support.waiting import until

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)

INSTALLING = ("python3 -m venv", ". .venv/", "pip install")
"""This Python has what these would install."""

JOBS = re.compile(r"bash: line \d+: +\d+ |\[\d+\]")
"""How a line begins that bash says of its jobs."""

END = "-- the end of a command --"


class Shell:
    """A bash with jobs, as in a terminal, in which a newcomer types."""

    def __init__(self, folder: Path, port: int) -> None:
        self._port = port
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=in_a_terminal(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.run("set -m")

    def run(self, command: str) -> str:
        """Run a command line of the page, and return what it prints."""
        command = command.replace("8000", str(self._port))
        serves = command.startswith("uvicorn")
        if serves:  # a person waits for as long; here it is as long as it takes
            command = command.removesuffix("sleep 2")
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\necho '{END}'\n")
        self._bash.stdin.flush()
        printed = []
        for line in self._bash.stdout:
            before, end, _ = line.partition(END)  # curl ends no line
            # What bash says of its jobs comes between.
            if not JOBS.match(before):
                printed.append(before)
            if end:
                break
        else:
            pytest.fail(f"the shell has ended at {command!r}: {printed}")
        if serves:
            until(self._is_served)
        return "".join(printed)

    def _is_served(self) -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", self._port)) == 0

    def close(self) -> None:
        self.run("kill -9 $(jobs -p) 2> /dev/null")
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.close()
        if self._bash.wait(10) is None:
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.stdout.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    for tool in ("bash", "curl"):
        if shutil.which(tool) is None:
            missing(f"needs {tool}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shell = Shell(tmp_path, port)
    yield shell
    shell.close()


@pytest.mark.any_python
@needs_cli
@needs_http
@needs_prometheus
def test_each_step_does_what_is_shown(shell: Shell, tmp_path: Path) -> None:
    for language, text in BLOCK.findall(PAGE):
        if language == "python":
            (tmp_path / "shop" / "shop.py").write_text(text, encoding="utf-8")
            continue
        for step in steps(text):
            if step.command.startswith(INSTALLING):
                assert step.shown == ""
                continue
            printed = shell.run(step.command)
            assert is_as_shown(printed, step.shown), f"$ {step.command}\n{printed}"


def test_what_it_installs_is_there() -> None:
    (extras,) = re.findall(r"'kvreplay\[(.*)\]'$", PAGE, re.MULTILINE)
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert set(extras.split(",")) <= set(settings["options.extras_require"])


@pytest.mark.parametrize(
    ("printed", "shown", "is_right"),
    [
        ("one\n", "one", True),
        ("one\n", "two", False),
        ("after 12 s\n", "after ... s", True),
        ("after 12 h\n", "after ... s", False),
        ("one\ntwo\nthree\n", "one\n...", True),
        ("", "one", False),
        ("one\n", "", False),
    ],
)
def test_what_is_printed_is_compared(printed: str, shown: str, is_right: bool) -> None:
    assert is_as_shown(printed, shown) is is_right
