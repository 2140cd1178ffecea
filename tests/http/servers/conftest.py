"""How often the workers of real servers are killed."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--worker-kills",
        type=int,
        default=100,
        metavar="N",
        help="kill workers of the HTTP services so many times, all services together",
    )


@pytest.fixture(scope="session")
def worker_kills(request: pytest.FixtureRequest) -> int:
    """How many kills, of all services together."""
    return int(request.config.getoption("--worker-kills"))
