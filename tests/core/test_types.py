"""Two type checkers on a consumer of the package: what is right passes, and what is wrong is seen.

They check the package as it is installed, by its ``py.typed``. ``tox -e types`` runs this.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.needs import missing

SUPPORT = Path(__file__).parent.parent / "support"
MARK = re.compile(r"# error: (.*)$")


def run(*command: str | Path, folder: Path) -> str:
    # Away from the sources, which a checker would find in the directory where it starts.
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # otherwise it has not checked
    return done.stdout


def mypy(file: Path, folder: Path) -> dict[int, str]:
    said = run("mypy", "--strict", "--no-pretty", "--cache-dir=cache", file, folder=folder)
    errors = re.findall(r"^(.*?):(\d+): error: (.*)", said, re.MULTILINE)
    assert {Path(name).name for name, _, _ in errors} <= {file.name}, said
    assert errors or said.startswith("Success: "), said
    return {int(line): text for _, line, text in errors}


def pyright(file: Path, folder: Path) -> dict[int, str]:
    said = run("pyright", "--outputjson", "--pythonpath", sys.executable, file, folder=folder)
    report = json.loads(said)
    assert report["summary"]["filesAnalyzed"] == 1, said
    return {
        each["range"]["start"]["line"] + 1: each["message"]
        for each in report["generalDiagnostics"]
        if each["severity"] == "error"
    }


Checker = Callable[[Path, Path], dict[int, str]]


@pytest.fixture(params=[mypy, pyright], ids=["mypy", "pyright"])
def checker(request: pytest.FixtureRequest) -> Checker:
    check: Checker = request.param
    if find_spec(check.__name__) is None:
        pytest.skip(f"{check.__name__} is not installed: tox -e types")
    return check


def test_a_consumer_is_right(checker: Checker, tmp_path: Path) -> None:
    assert checker(SUPPORT / "consumer.py", tmp_path) == {}


def test_each_misuse_is_seen_at_its_line_and_nothing_else(
    checker: Checker, tmp_path: Path
) -> None:
    file = SUPPORT / "misuses.py"
    lines = file.read_text(encoding="utf-8").splitlines()
    marks = {number: MARK.search(line) for number, line in enumerate(lines, start=1)}
    planted = {
        number
        for number, mark in marks.items()
        if mark is not None and checker.__name__ in mark[1].split()
    }
    seen = checker(file, tmp_path)
    unseen = [f"{number}: {lines[number - 1].strip()}" for number in sorted(planted - seen.keys())]
    unplanted = {number: text for number, text in seen.items() if number not in planted}
    assert (unseen, unplanted) == ([], {})
    assert planted
