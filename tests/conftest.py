"""What all tests share: the engines, a fresh store of each, and a forked child."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before they are imported: then a failing assertion of a helper shows what it compared.
pytest.register_assert_rewrite("support", "torture")

from support.engines import ENGINES, Engine  # noqa: E402
from support.forking import Child  # noqa: E402

# A stranger's distribution, whose tests run where it is installed.
collect_ignore = ["kit/third_party"]

TORTURE = Path(__file__).with_name("torture")


@pytest.fixture
def new_engine(tmp_path: Path) -> Iterator[Callable[[str], Engine]]:
    """``new_engine("lmdb")`` makes an engine below this test's directory, and closes it."""
    engines: list[Engine] = []

    def make(name: str) -> Engine:
        engines.append(Engine(name, tmp_path / f"store{len(engines) or ''}"))
        return engines[-1]

    yield make
    for engine in engines:
        for store in engine.opened:
            store.close()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, new_engine: Callable[[str], Engine]) -> Engine:
    return new_engine(request.param)


@pytest.fixture
def store(engine: Engine) -> Any:
    return engine.open()


@pytest.fixture(params=[name for name in ENGINES if name != "filesystem"])
def transactional_engine(
    request: pytest.FixtureRequest, new_engine: Callable[[str], Engine]
) -> Engine:
    """An engine whose stores have ``transaction()``."""
    return new_engine(request.param)


@pytest.fixture
def transactional(transactional_engine: Engine) -> Any:
    return transactional_engine.open()


@pytest.fixture
def fork() -> type[Child]:
    """``fork(action)`` runs an action in a forked child; ``.join()`` says that it went well."""
    return Child


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--histories",
        type=int,
        default=40,
        help="how many histories of calls to record and check, of each kind of store",
    )
    parser.addoption(
        "--requests",
        type=int,
        default=60,
        help="how many requests each thread and task of the stress tests makes",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the torture suite to those who ask for it by its path."""
    asked = [Path(argument.partition("::")[0]).absolute() for argument in config.args]
    unasked = not any(path.is_relative_to(TORTURE) for path in asked)
    return True if collection_path == TORTURE and unasked else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what forks: coverage holds a lock of its own then, with which a child would hang."""
    for item in items:
        if "fork" in getattr(item, "fixturenames", ()):
            item.add_marker("fork")
