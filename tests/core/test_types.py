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


def run(*command: str | Path, folder: Path) -> str:
    # Away from the sources: a checker takes those of the directory where it starts.
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # it has checked
    return done.stdout


Checker = Callable[[Path, Path], dict[int, str]]


@pytest.fixture(params=[mypy, pyright], ids=lambda checker: checker.__name__)
def errors(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], dict[int, str]]:
    """``errors("consumer.py")``: what a checker finds in the file, by the line."""
    checker: Checker = request.param
    if find_spec(checker.__name__) is None:
        missing(f"needs {checker.__name__}: tox -e types")
    return lambda name: checker(SUPPORT / name, tmp_path)


def test_a_consumer_is_right(errors: Callable[[str], dict[int, str]]) -> None:
    assert errors("consumer.py") == {}


def test_each_misuse_is_seen_at_its_line_and_nothing_else(
    errors: Callable[[str], dict[int, str]],
) -> None:
    lines = (SUPPORT / "misuses.py").read_text(encoding="utf-8").splitlines()
    planted = {number for number, line in enumerate(lines, start=1) if line.endswith("  # error")}
    found = errors("misuses.py")
    unseen = [f"{number}: {lines[number - 1].strip()}" for number in sorted(planted - found.keys())]
    unplanted = {number: text for number, text in found.items() if number not in planted}
    assert planted
    assert (unseen, unplanted) == ([], {})
