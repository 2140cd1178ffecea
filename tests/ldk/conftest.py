"""LDK's nodes, from npm, and how often they are killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvreplay.demo.ldk.program import install, why_not
from support.needs import missing

PROGRAM = "LDK_PROGRAM"
"""The folder where tox has installed it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=20, metavar="N", help="kill the nodes so many times each way"
    )


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How many kills each way."""
    return int(request.config.getoption("--kills"))


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the nodes' program."""
    if (reason := why_not()) is not None:
        missing(reason)
    if PROGRAM in os.environ:
        return Path(os.environ[PROGRAM])
    return install(tmp_path_factory.mktemp("ldk"))
