"""A stranger's backend: installed as a distribution of its own, found by its entry point."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.pages import examples
from support.programs import run_code, run_python, unmeasured

pytestmark = pytest.mark.any_python

SOURCES = Path(__file__).with_name("third_party")

REPLAYS = """
import sys
from kvreplay import Replay, open_store

for _ in range(2):
    with open_store(f"table:{sys.argv[1]}?timeout=30s") as store:
        print(store, Replay(store, "ns", ttl=60).execute(("a", "b"), 1, lambda: "made").replayed)
"""

KILLED = """
import sys
from kvreplay import InDoubtError, InFlightError, Replay
from kvreplay.testing import die, kill_in_handler
from tablestore import TableStore

class Unseen(TableStore):
    owners_file = None

for number, engine in enumerate((TableStore, Unseen)):
    with engine(f"{sys.argv[1]}-{number}") as store:
        replay = Replay(store, "ns", ttl=60, wait_timeout=0)
        kill_in_handler(store, lambda: replay.execute(("a", "b"), 1, die))
        try:
            replay.execute(("a", "b"), 1, lambda: "made")
        except (InDoubtError, InFlightError) as error:
            print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the sample is installed in, next to none of its sources."""
    target = tmp_path_factory.mktemp("site")
    sources = shutil.copytree(SOURCES, tmp_path_factory.mktemp("built") / "tablestore")
    done = run_python(
        *("-m", "pip", "-q", "--disable-pip-version-check", "install"),
        *("--no-index", "--no-deps", "--no-build-isolation", "--target", target, sources),
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def environment(installed: Path) -> dict[str, str]:
    # A stranger's run is not measured: it forks among threads that are in coverage's own lock.
    return {**unmeasured(), "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}


def test_it_is_found_by_its_entry_point(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run_code(REPLAYS, tmp_path / "db", env=environment)
    assert done.stdout.splitlines() == ["<TableStore open> False", "<TableStore open> True"]


def test_by_its_owners_file_a_killed_run_is_in_doubt_at_once(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = run_code(KILLED, tmp_path / "db", env=environment)
    assert done.stdout.splitlines() == ["InDoubtError", "InFlightError"], done.stderr


def test_the_page_shows_lines_of_it() -> None:
    (shown,) = (each for each in examples("howto/backend.md") if "TableStore" in each)
    _, constants, rest = shown.partition("\nSCHEMA = ")
    lines = iter((SOURCES / "tablestore.py").read_text("utf-8").splitlines())
    for line in (constants + rest).strip().splitlines():
        assert not line or line in lines, f"not there, or not there yet: {line}"


def test_it_passes_the_contract(tmp_path: Path, environment: dict[str, str]) -> None:
    for name in ("pyproject.toml", "test_tablestore.py"):
        shutil.copy(SOURCES / name, tmp_path)
    command = ("-m", "pytest", "-q", f"--basetemp={tmp_path / 'run'}")
    done = run_python(*command, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert "passed" in last and "skipped" not in last, done.stdout
