"""How often the suite strikes, and the account of it that ends a run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from torture.ledger import Ledger

Tally = Callable[..., None]
_FIGURES: pytest.StashKey[Counter[tuple[str, str]]] = pytest.StashKey()

DURABLE = ("filesystem", "lmdb", "sqlite")
# A power cut as the kernel's ioctl makes it may let a flush of a file that grows succeed, and lose it:
# plain appends show it. SQLite's log grows, so test_lost_writes.py cuts its power instead.
NOT_SQLITE = re.compile(r"test_(no_power_cut_takes_an_answer|a_disk_that_lies|lmdb_refuses)")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", type=int, default=1, metavar="TIMES", help="strike so many times as often"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = Counter()
    settings.register_profile(
        "torture",
        max_examples=5000 * config.getoption("--long"),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("torture")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what an engine does not have: the files have no transactions."""
    absent = [
        item
        for item in items
        if ("[filesystem" in item.name and "transaction" in item.name)
        or ("a short write" in item.name and "[lmdb" not in item.name)
        or ("sqlite" in item.name and NOT_SQLITE.match(item.name))
    ]
    config.hook.pytest_deselected(items=absent)
    items[:] = [item for item in items if item not in absent]


@pytest.fixture(scope="session")
def times(request: pytest.FixtureRequest) -> int:
    """How many times as often as in CI's budget."""
    return int(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """``tally("power cuts", "lmdb")`` counts one more for the account."""
    figures = request.config.stash[_FIGURES]

    def count(what: str, where: str, number: int = 1) -> None:
        figures[what, where] += number

    return count


@pytest.fixture(params=DURABLE)
def durable(request: pytest.FixtureRequest, new_engine: Callable[[str], Any]) -> Any:
    """An engine whose entries outlive its process, on this machine's own disk."""
    return new_engine(request.param)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Where nodes note what they did, whatever becomes of them and of their store."""
    return Ledger(tmp_path / "ledger")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Give the account to the process that started this one, if several run the tests."""
    if hasattr(session.config, "workeroutput"):
        figures = session.config.stash[_FIGURES]
        session.config.workeroutput["torture"] = [[*of, number] for of, number in figures.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for what, where, number in getattr(node, "workeroutput", {}).get("torture", ()):
        node.config.stash[_FIGURES][what, where] += number


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    figures = config.stash[_FIGURES]
    skipped = terminalreporter.stats.get("skipped", [])
    if not figures and not skipped:
        return
    terminalreporter.section("torture")
    for what in dict.fromkeys(what for what, _ in figures):
        parts = {where: number for (each, where), number in figures.items() if each == what}
        shown = ", ".join(f"{where} {number}" for where, number in parts.items())
        terminalreporter.write_line(f"{what}: {sum(parts.values())} ({shown})")
    for reason in dict.fromkeys(report.longrepr[2] for report in skipped):
        count = sum(report.longrepr[2] == reason for report in skipped)
        terminalreporter.write_line(f"NOT RUN: {count} tests: {reason.removeprefix('Skipped: ')}")
