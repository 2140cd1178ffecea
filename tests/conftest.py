"""What all tests share: the engines, a fresh store of each, and a forked child."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.testing import forking

collect_ignore = ["third_party"]  # a stranger's distribution, whose tests run where it is installed

ENGINES = ("memory", "filesystem", "lmdb")
TORTURE = Path(__file__).with_name("torture")


@attrs.define
class Engine:
    """A kind of store, and where this test's entries of it are."""

    name: str
    path: Path
    opened: list[Any] = attrs.field(factory=list)

    @property
    def durable(self) -> bool:
        """Whether entries outlive the store object and its process."""
        return self.name != "memory"

    @property
    def transactional(self) -> bool:
        return self.name != "filesystem"

    @property
    def code(self) -> str:
        """A Python expression that opens the store in another process, if it is durable."""
        store = {"filesystem": "FilesystemStore", "lmdb": "LMDBStore"}[self.name]
        module = f"__import__('kvreplay.backends.{self.name}', fromlist=['{store}'])"
        return f"{module}.{store}({str(self.path)!r})"

    def open(self, **options: Any) -> Any:
        """Open the store on this test's directory: the entries are those of every other call."""
        if self.name == "memory":
            store: Any = self.opened[0] if self.opened else MemoryStore(**options)
        elif self.name == "filesystem":
            store = FilesystemStore(self.path, **options)
        else:
            store = LMDBStore(self.path, **options)
        self.opened.append(store)
        return store


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


class Child(forking.Child):
    """A forked child that may be struck meanwhile."""

    def kill(self) -> bool:
        """Kill it; say whether it was still running."""
        os.kill(self.pid, signal.SIGKILL)
        code = self.wait()
        assert code in (0, -signal.SIGKILL), "the forked child failed before it was killed"
        return code != 0

    def wait_for_stop(self) -> int | None:
        """Wait until it has stopped itself, or has ended: then return what ``wait`` would."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        return None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


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
