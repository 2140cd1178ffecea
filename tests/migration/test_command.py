"""``kvreplay migrate``: what it prints on a terminal and elsewhere, and how it ends."""

from __future__ import annotations

import errno
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvreplay import Progress, open_store
from kvreplay.cli import main
from support.extras import needs_cli

pytestmark = needs_cli


def made(path: Path, count: int = 25) -> str:
    url = f"lmdb:{path}"
    with open_store(url) as store:
        for number in range(count):
            store.write("p", "s", f"k{number:03}", b"value")
    return url


def test_its_screen_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = made(tmp_path / "one"), f"filesystem:{tmp_path}/two"
    assert main(["migrate", one, other]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("25 entries are equal in both; 25 were copied now (")
    assert said.out.count("\n") == 1
    assert said.err.splitlines() == [
        "looking: 0 entries",
        "copying: 0 of 25 entries",
        "comparing: 0 of 25 entries",
    ]


def test_errors_are_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = made(tmp_path / "one"), f"filesystem:{tmp_path}/two"
    assert main(["migrate", one, other]) == 0
    capsys.readouterr()
    assert main(["migrate", one, other]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (error,) = [line for line in said.err.splitlines() if not line.startswith("looking")]
    assert error.startswith("kvreplay: the destination is not empty; nothing was copied: name a")
    assert main(["migrate", one, other, "--into-used"]) == 0
    capsys.readouterr()
    assert main(["migrate", f"lmdb:{tmp_path}/none", other]) == 2
    assert not (tmp_path / "none").exists()
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    from kvreplay.cli.progress import showing

    now = 0.0
    with showing(lambda: now) as show:
        for at, done in ((0, 0), (9.9, 1000), (10, 2000), (19.9, 3000), (20, 4000)):
            now = at
            show(Progress("copy", done, 5000))
        show(Progress("verify", 0, 5000))
    assert capsys.readouterr().err.splitlines() == [
        "copying: 0 of 5,000 entries",
        "copying: 2,000 of 5,000 entries",
        "copying: 4,000 of 5,000 entries",
        "comparing: 0 of 5,000 entries",
    ]


def screen_of(*arguments: str) -> tuple[int, str]:
    """Run the command on a terminal of 80 columns; return its exit code and what was shown."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        environ = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
        command = [sys.executable, "-m", "kvreplay", *arguments]
        with subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ
        ) as process:
            os.close(theirs)
            shown = b""
            try:
                while read := terminal.read(65536):
                    shown += read
            except OSError as error:  # so ends a terminal
                assert error.errno == errno.EIO
            return process.wait(60), shown.decode()


@pytest.mark.any_python
def test_its_screen_on_a_terminal(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one"), f"filesystem:{tmp_path}/two"
    code, shown = screen_of("migrate", one, other)
    assert code == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    lines = [line for each in text.splitlines() for line in each.split("\r") if line]
    assert max(map(len, lines[:-1])) <= 80
    whole = r"\u2501+ 25 of 25 entries +0:00:00"
    for wanted in (r"looking   \u2501+ 25 entries", f"copying   {whole}", f"comparing {whole}"):
        assert any(re.match(wanted, line) for line in lines), text
    assert lines[-1].startswith("25 entries are equal in both; 25 were copied now")
    code, shown = screen_of("migrate", one, other)
    assert code == 2
    assert "kvreplay: the destination is not empty; nothing was copied" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is shown again
