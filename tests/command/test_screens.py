"""What the commands print on terminals of two widths and in a pipe, and what a shell completes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from command.test_settling import read_all
from kvreplay import Replay, open_store
from kvreplay.cli import main
from support.extras import needs_cli
from support.interrupts import hearing_ctrl_c
from support.programs import run_python

pytestmark = needs_cli

NODE = "02" + "ab" * 32
SESSION = "claim-session-7"


@pytest.fixture
def url(tmp_path: Path) -> str:
    where = f"lmdb:{tmp_path}/store"
    with open_store(where) as store:
        replay = Replay(store, "request_invoice", ttl="1h")
        for each in range(200):
            replay.execute((NODE, f"{SESSION}-{each}"), {}, lambda: "lnbcrt1")
        with pytest.raises(KeyboardInterrupt):
            replay.execute((NODE, "in-doubt"), {}, _interrupted)
        store.write("request_invoice", "s" * 100, "damaged", b"")
    return where


def _interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(url: str, width: int) -> None:
    for command, seen in (
        ("stat", "request_invoice"),
        ("ls", SESSION),
        ("doubt", "in-doubt"),
        ("check", "…"),
    ):
        reader, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        env = {name: each for name, each in os.environ.items() if name != "COLUMNS"}
        with subprocess.Popen(
            [sys.executable, "-m", "kvreplay", command, url, "-n", "request_invoice"],
            stdin=terminal, stdout=terminal, stderr=terminal, env=env,
        ) as process:  # fmt: skip
            os.close(terminal)
            shown = read_all(reader)
            assert process.wait(30) == (command == "check")
        assert seen in shown
        assert max(map(len, shown.splitlines())) <= width, shown
        assert "\x1b" not in shown


def test_a_pipe_has_whole_lines(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", url, "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 200 + 2
    assert sum(f"  {NODE}  {SESSION}-" in line for line in lines) == 200


def test_a_reader_who_leaves_is_told_nothing(url: str) -> None:
    code = f"from kvreplay.cli import main; import sys; sys.exit(main(['ls', {url!r}, '--all']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_at_a_question_is_130(url: str) -> None:
    record = run_python("-m", "kvreplay", "ls", url, "--state", "in-doubt")
    digest = record.stdout.splitlines()[1].split()[0]
    reader, terminal = pty.openpty()
    command = [sys.executable, "-m", "kvreplay", "release", url, digest, "-n", "request_invoice"]
    with hearing_ctrl_c(), subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        os.close(terminal)
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(reader, 4096)
        while process.poll() is None:
            os.write(reader, b"\x03")
            # CPython does not see one that comes an instant before it reads: a person presses again.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
        rest = read_all(reader)
        assert process.returncode == 130
    assert "kvreplay: interrupted" in rest
    assert "Traceback" not in rest


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_KVREPLAY_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("kvreplay s", {"stat", "show", "sweep"}),
        ("kvreplay ls x --st", {"--state"}),
        ("kvreplay ls x --state an", {"answered"}),
        ("kvreplay completion z", {"zsh"}),
    ],
)
def test_a_shell_completes_commands_options_and_states(typed: str, completed: set[str]) -> None:
    words = typed.split()
    env = {
        "_KVREPLAY_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = run_python("-m", "kvreplay", env={**os.environ, **env})
    assert done.returncode == 0
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == completed


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ls", "URL", "--older", "9" * 400 + "d"], 2),
        (["ls", "URL", "--after", "9" * 5000 + "-x"], 2),
        (["backup", "URL", "/nowhere/\udcff"], 2),
        (["show", "URL", "\udcff", "x"], 2),
        (["stat", "lmdb:/proc/self/mem"], 2),
        (["stat", "nonsense"], 2),
        (["find", "URL", "é" * 16], 2),
    ],
)
def test_a_mistake_is_one_line(
    url: str, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([url if each == "URL" else each for each in arguments]) == code
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "1>/dev/full", "2>/dev/full"])
def test_a_stream_that_is_closed_or_full(url: str, closed: str) -> None:
    for command, ends in (("stat", (0, 2)), ("release", (2,))):
        more = "02 in-doubt -n request_invoice" if command == "release" else ""
        done = subprocess.run(
            ["bash", "-c", f'"$0" -m kvreplay {command} "$1" {more} {closed}', sys.executable, url],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode in ends
        assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_a_key(tmp_path: Path, encoding: str) -> None:
    where = f"lmdb:{tmp_path}/store"
    with open_store(where) as store:
        Replay(store, "pay", ttl="1h").execute(("Zoë→", "7"), {}, lambda: "é")
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    for command in (["ls"], ["ls", "--json"], ["stat"], ["show", "Zoë→", "7", "--payload"]):
        done = subprocess.run(
            [sys.executable, "-m", "kvreplay", command[0], where, *command[1:]],
            capture_output=True,
            env=env,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
