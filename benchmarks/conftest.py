"""Options, sizes, and where the stores are."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import lmdb
import msgpack
import pytest

from benchmarks.measure import file_system_of, flush_seconds
from benchmarks.workload import AS_ONE_MAP, FAR, NAMESPACE, SCOPE, fill, request_id
from kvreplay import open_store

FLUSH_MS = 4.0
"""How long a flush takes where the disk is made slow."""
DISKS = pytest.StashKey[list[dict[str, Any]]]()


@attrs.frozen
class Sizes:
    """How much is measured."""

    rounds: int
    calls: int
    """How many calls a round has, where a call takes microseconds."""
    seconds: float
    """How long a round is, where calls are counted."""
    records: tuple[int, ...]
    """Sizes of the stores that are compared."""
    live: int
    """Live records in a store that is swept."""
    due: int
    """Due records in that store."""
    executions: int
    """Executions whose memory is measured."""
    migrated: int
    """Records that are copied into another store."""


NORMAL = Sizes(
    rounds=25,
    calls=1000,
    seconds=1.0,
    records=(10**4, 10**5, 10**6),
    live=10**6,
    due=10**5,
    executions=10**6,
    migrated=10**6,
)
SHORT = Sizes(
    rounds=1,
    calls=20,
    seconds=0.05,
    records=(1000, 10_000),
    live=10_000,
    due=1000,
    executions=1000,
    migrated=10**5,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kvreplay")
    group.addoption("--short", action="store_true", help="run each benchmark once, on small sizes")
    group.addoption(
        "--huge", action="store_true", help="add stores of 10^7 records (20 GB), of 10^6 in etcd"
    )


def sizes_of(config: pytest.Config) -> Sizes:
    if config.getoption("--short"):
        return SHORT
    if config.getoption("--huge"):
        return attrs.evolve(NORMAL, records=(*NORMAL.records, 10**7))
    return NORMAL


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "records" in metafunc.fixturenames:
        metafunc.parametrize("records", sizes_of(metafunc.config).records)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["lmdb"] = lmdb.__version__
    if disks := config.stash.get(DISKS, []):
        flushes = [each["flush ms"] for each in disks]
        machine_info["file system"] = disks[0]["file system"]
        machine_info["flush ms"] = f"{min(flushes)} to {max(flushes)}"


@pytest.fixture(scope="session")
def sizes(pytestconfig: pytest.Config) -> Sizes:
    return sizes_of(pytestconfig)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the measured disk, for files that outlive a test; ``--basetemp`` moves it."""
    folder = tmp_path_factory.mktemp("place")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def folder(place: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A test's own folder on that disk; it is removed after the test."""
    folder = place / "test"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder where a flush takes no time of its own."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def slow(memory: Path) -> dict[str, str]:
    """The environment of a process to which each flush takes ``FLUSH_MS``."""
    source, shim = Path(__file__).with_name("slow_disk.c"), memory / "slow_disk.so"
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(shim), str(source), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the disk cannot be made slow without a C compiler: {error}")
    slow_flush = {"LD_PRELOAD": str(shim), "SLOW_FLUSH_NS": str(int(FLUSH_MS * 1e6))}
    return {**os.environ, **slow_flush}


@pytest.fixture(scope="module")
def disk(place: Path, pytestconfig: pytest.Config) -> dict[str, Any]:
    """The kind of file system, and how long a flush takes just before these benchmarks."""
    figures = {
        "file system": file_system_of(place),
        "flush ms": round(flush_seconds(place) * 1000, 3),
    }
    pytestconfig.stash.setdefault(DISKS, []).append(figures)
    return figures


@pytest.fixture
def note(benchmark: Any, disk: dict[str, Any]) -> Callable[..., None]:
    """Record a row's figures with the benchmark: ``note("hit/raw", {"µs": 2.3})``."""

    def note(row: str, figures: dict[str, Any]) -> None:
        rows = benchmark.extra_info.setdefault("rows", {})
        rows[row] = {name: rounded(value) for name, value in figures.items()}
        benchmark.extra_info.update(disk)

    return note


def rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


@pytest.fixture(scope="session")
def floor(place: Path) -> Iterator[Callable[[], Any]]:
    """The least that a hit can cost: a raw get, and one msgpack decoding of the same content."""
    env = lmdb.open(str(place / "floor"), map_size=1 << 30, max_dbs=1, lib_version=0)
    entries = env.open_db(b"entries")
    with env.begin(write=True) as txn:
        txn.put(b"key", AS_ONE_MAP, db=entries)

    def floor() -> Any:
        with env.begin() as txn:
            return msgpack.unpackb(txn.get(b"key", db=entries))

    yield floor
    env.close()


@pytest.fixture(scope="session")
def sqlite_floor(place: Path) -> Iterator[Callable[[], Any]]:
    """The same of SQLite: a bare ``SELECT`` by three names, in a database with a log."""
    with closing(sqlite3.connect(place / "sqlite_floor", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(
            "CREATE TABLE raw (p TEXT, s TEXT, k TEXT, v BLOB, PRIMARY KEY (p, s, k))"
        )
        names = (NAMESPACE, SCOPE, request_id(0))
        connection.execute("INSERT INTO raw VALUES (?, ?, ?, ?)", (*names, AS_ONE_MAP))
        select = "SELECT v FROM raw WHERE p = ? AND s = ? AND k = ?"
        yield lambda: msgpack.unpackb(connection.execute(select, names).fetchone()[0])


@pytest.fixture(scope="session")
def filled(place: Path) -> Callable[..., str]:
    """Make and keep stores with so many live records, of LMDB or another engine; return URLs."""

    def filled(records: int, engine: str = "lmdb") -> str:
        folder = place / f"{engine}-{records}"
        url = f"{engine}:{folder}" + ("?map_size=64GiB" if engine == "lmdb" else "")
        if not folder.exists():
            with open_store(url) as store:
                fill(store, range(records), FAR)
        return url

    return filled
