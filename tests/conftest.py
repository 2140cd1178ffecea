"""What all tests share: the engines, a fresh store of each, a forked child; and a run's last words."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before they are imported: then a failing assertion of a helper shows what it compared.
pytest.register_assert_rewrite("support", "torture", "ledger", "etcd")

from support.disks import in_memory  # noqa: E402
from support.engines import ENGINES, TRANSACTIONAL, Engine  # noqa: E402
from support.forking import Child  # noqa: E402
from support.needs import needs_h11, needs_psycopg  # noqa: E402

# A stranger's distribution, whose tests run where it is installed.
collect_ignore = ["kit/third_party"]

TESTS = Path(__file__).parent
# What they need is not on every machine.
ON_REQUEST = (
    *(
        TESTS / "torture",
        TESTS / "ldk",
        TESTS / "ledger",
        TESTS / "etcd",
        TESTS / "model",
        TESTS / "http" / "servers",
        TESTS / "site",
    ),
    TESTS / "core" / "test_types.py",
)
SERVERS = {"postgres", "postgresql", "etcd"}
QUICKEST_FIRST = {"core": 0, "kit": 1, "backends": 2}  # whatever else there is follows
_OTHERS = ("exhaustive", "server")  # whose tests the short command leaves out
_LEFT_OUT = pytest.StashKey[dict[str, int]]()  # how many of each


@pytest.fixture
def new_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Engine]]:
    """``new_engine("lmdb")`` makes an engine below this test's directory, and closes it."""
    engines: list[Engine] = []
    with contextlib.ExitStack() as places:

        def make(name: str) -> Engine:
            path = tmp_path / f"store{len(engines) or ''}"
            if name in SERVERS:  # the short command starts none
                assert request.node.get_closest_marker("server"), "mark this test as one of servers"
            if name == "postgresql":
                url = f"{places.enter_context(_own_schema()).url}&pool_size=4"
                engines.append(Engine(name, path, url))
            elif name == "etcd":
                url = f"{places.enter_context(_own_prefix()).url}?pool_size=4"
                engines.append(Engine(name, path, url))
            else:
                engines.append(Engine(name, path))
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


@pytest.fixture(params=TRANSACTIONAL)
def transactional_engine(
    request: pytest.FixtureRequest, new_engine: Callable[[str], Engine]
) -> Engine:
    """An engine whose stores have ``transaction()``."""
    return new_engine(request.param)


@pytest.fixture
def transactional(transactional_engine: Engine) -> Any:
    return transactional_engine.open()


@pytest.fixture
def postgres() -> Iterator[Any]:
    """A schema of this test on the session's PostgreSQL server: ``postgres.url``."""
    with _own_schema() as schema:
        yield schema


@pytest.fixture
def etcd() -> Iterator[Any]:
    """A prefix of this test on the session's etcd: ``etcd.url``."""
    with _own_prefix() as prefix:
        yield prefix


def _own_prefix() -> contextlib.AbstractContextManager[Any]:
    needs_h11()
    from support.shared_etcd import new_prefix, shared_etcd

    return new_prefix(shared_etcd())


def _own_schema() -> contextlib.AbstractContextManager[Any]:
    needs_psycopg()
    from support.postgres import new_schema
    from support.shared_postgres import shared_server

    return new_schema(shared_server())


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
    parser.addoption(
        "--every",
        type=int,
        default=194,
        metavar="N",
        help="interrupt each operation at one of N points; 1: at every point",
    )
    parser.addoption(
        "--in-memory",
        action="store_true",
        help="write to a file system in memory, where a flush costs nothing, if there is a large one",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let what the tests write be in memory, if this is wanted and can be had."""
    if config.getoption("in_memory") and (folder := in_memory()) is not None:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave some suites to those who ask for them by their path."""
    asked = [Path(argument.partition("::")[0]).absolute() for argument in config.args]
    unasked = not any(path.is_relative_to(collection_path) for path in asked)
    return True if collection_path in ON_REQUEST and unasked else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is about a server, and let the folders with the quickest tests come first."""
    for item in items:
        words = {*re.split(r"[\W_]", item.nodeid), *getattr(item, "fixturenames", ())}
        if not SERVERS.isdisjoint(words):
            item.add_marker(pytest.mark.server)
    items.sort(
        key=lambda item: QUICKEST_FIRST.get(os.path.relpath(item.path, TESTS).split("/")[0], 9)
    )


def pytest_collection_finish() -> None:
    """Let the collector of garbage look no more at thousands of tests and their modules."""
    gc.collect()
    gc.freeze()


# What a run says when it ends: the figures of its tests, and what it left out.


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``tell(text)`` shows a figure when all is over, not among the dots."""
    return lambda text: request.node.user_properties.append(("figure", text))


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        count = item.config.stash.setdefault(_LEFT_OUT, dict.fromkeys(_OTHERS, 0))
        for marker in _OTHERS:
            count[marker] += item.get_closest_marker(marker) is not None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that started this one, if this is one of several that run the tests."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left out"] = session.config.stash.get(_LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every process collects all tests, so each of them tells the same."""
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left out", {})


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Iterator[None]:
    yield  # first, what pytest itself says: failures, and why tests were skipped
    whole = (
        config.args_source is pytest.Config.ArgsSource.TESTPATHS
        and not config.option.keyword
        and config.option.markexpr in ("", "not exhaustive", "not exhaustive and not server")
    )
    if not whole or os.environ.get("CI"):  # nobody who only asks whether all is well wants these
        figures(terminalreporter)
    if whole:  # who runs some of the tests knows what they leave out
        terminalreporter.section("left out")
        terminalreporter.write_line("\n".join(left_out(terminalreporter, config)))


def figures(terminalreporter: Any) -> None:
    reports = [
        report for each in ("passed", "failed") for report in terminalreporter.getreports(each)
    ]
    told = [
        f"{report.location[2]}: {text}"
        for report in reports
        if report.when == "call"
        for what, text in report.user_properties
        if what == "figure"
    ]
    if told:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(told))


def left_out(terminalreporter: Any, config: pytest.Config) -> Iterator[str]:
    count = config.stash.get(_LEFT_OUT, {})
    if servers := count.get("server"):
        yield f"{servers} tests of stores on PostgreSQL and etcd, which they start: tox -e servers"
    if exhaustive := count.get("exhaustive"):
        yield f"{exhaustive} tests that walk every schedule: tox -e exhaustive"
    if skipped := len(terminalreporter.getreports("skipped")):
        yield f"{skipped} tests that need what this machine lacks: the reasons are above"
    if config.getoption("in_memory") and in_memory() is not None:
        yield f"stores on a disk, since these were in memory: tox -e py3{sys.version_info.minor}"
    yield "interrupts at every point, instead of two in 194: tox -e interrupts"
    yield "kills, power cuts, full and failing disks, as root: tox -e torture"
    yield "web services on real servers, whose workers are killed: tox -e http"
    yield "payments in transactions of their own, whose processes and server are killed: tox -e ledger"
    yield "an etcd cluster whose members are killed and cut off, as root: tox -e etcd"
    yield "a model of the protocol, which needs spin and gcc: tox -e model"
    yield "real LDK nodes, which need npm's registry: tox -e ldk"
    yield "the packages of a release: tox -e packages"
    others = [minor for minor in (11, 12, 13) if minor != sys.version_info.minor]
    names = ",".join(f"py3{minor}" for minor in others)
    yield f"this was Python 3.{sys.version_info.minor}; where the others are installed: tox -e {names}"
    yield "coverage of branches: tox -e coverage; mutants: tox -e mutation; benchmarks: tox -e bench"
    yield "all of it, as CI does: .ci/run"
