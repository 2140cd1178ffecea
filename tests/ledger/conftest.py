"""How often clients and servers are killed."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--client-kills",
        type=int,
        default=900,
        metavar="N",
        help="kill so many processes that pay in transactions of their own",
    )
    parser.addoption(
        "--server-kills",
        type=int,
        default=100,
        metavar="N",
        help="kill their PostgreSQL server so many times",
    )


@pytest.fixture
def client_kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--client-kills"))


@pytest.fixture
def server_kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--server-kills"))
