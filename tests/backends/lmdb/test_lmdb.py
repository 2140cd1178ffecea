"""The LMDB store: each known trap of LMDB, on real files, with real processes and faults.

What could only be made with a stub says so. Who runs this without the right to mount, to
trace or to change the user sees those tests skipped; where ``CI`` is set they fail instead.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb import entries as lmdb_entries
from kvreplay.backends.lmdb import environment as lmdb_environment
from kvreplay.backends.lmdb import files as lmdb_files
from kvreplay.backends.lmdb import shared as lmdb_sharing
from kvreplay.errors import (
    ConfigError,
    CorruptStoreError,
    InvalidNameError,
    KeyNotFoundError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from kvreplay.store import SweepResult, TransactionalKVStore

KIB = 1024
MARKER = "kvreplay.format"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[LMDBStore]:
    with LMDBStore(root) as store:
        yield store


def content(store: Any) -> dict[tuple[str, str, str], bytes]:
    return {address: store.read(*address) for address in store.list_all_keys()}


def map_size(store: LMDBStore) -> int:
    environment = store._opened()
    handle = environment.gate.enter()
    try:
        size: int = handle.info()["map_size"]
        return size
    finally:
        environment.gate.leave()


def told(error: BaseException | None) -> str:
    """All that a log of this exception and of those behind it would say."""
    return (
        ""
        if error is None
        else f"{error!r} {error} {told(error.__cause__)}{told(error.__context__)}"
    )


def unavailable(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


# Other processes.


def _unmeasured() -> dict[str, str]:
    """This environment without what makes a child measure its coverage, in files of its own.

    What these tests count and break are the system calls of the store alone.
    """
    return {name: value for name, value in os.environ.items() if "COVERAGE" not in name}


class Process:
    """Python code in a process of its own: ``say`` and ``wait`` speak with the test."""

    HEAD = """
import os, sys, signal
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.errors import *
path = sys.argv[1]
def say(text): print(text, flush=True)
def wait(): return sys.stdin.readline().strip()
signal.alarm(100)
"""

    def __init__(
        self, code: str, path: Path, *, before: tuple[str, ...] = (), **environment: str
    ) -> None:
        self._stderr = tempfile.TemporaryFile("w+")
        self.popen = subprocess.Popen(
            [*before, sys.executable, "-W", "error", "-c", self.HEAD + code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=_unmeasured() | environment,
        )
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self._stdin, self._stdout = self.popen.stdin, self.popen.stdout

    def hear(self) -> str:
        line = self._stdout.readline().strip()
        assert line, f"the process said nothing more: {self._complaint()}"
        return line

    def tell(self, text: str = "") -> None:
        self._stdin.write(text + "\n")
        self._stdin.flush()

    def kill(self) -> str:
        self.popen.kill()
        return self.rest()

    def rest(self) -> str:
        said = self._stdout.read()
        self.popen.wait()
        return said

    def join(self) -> str:
        said = self.rest()
        assert self.popen.returncode == 0, self._complaint()
        return said

    def _complaint(self) -> str:
        self.popen.wait()
        self._stderr.seek(0)
        return self._stderr.read()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        for file in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                file.close()


def in_process(code: str, path: Path, **options: Any) -> str:
    with Process(code, path, **options) as process:
        return process.join()


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        problem = str(error)
    if problem:
        unavailable(f"needs the right to mount a tmpfs: {problem}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def needs_strace() -> None:
    works = (
        shutil.which("strace")
        and not subprocess.run(
            ["strace", "-o", "/dev/null", "true"], capture_output=True, check=False
        ).returncode
    )
    if not works:
        unavailable("needs strace, and the right to trace")


def needs_root() -> None:
    if os.geteuid() != 0:
        unavailable("needs root, to act as another user")


# What it is, and what it stores.


def test_what_it_is(store: LMDBStore, root: Path) -> None:
    typed: TransactionalKVStore = store
    assert isinstance(typed, TransactionalKVStore)
    assert repr(store) == f"<LMDBStore {root} open>"
    found = (root / "data.mdb").stat()
    assert store.identity == ("lmdb", (found.st_dev, found.st_ino))
    assert LMDBStore.LOCATION == "path"
    assert set(LMDBStore.OPTIONS) == {"map_size", "durability", "max_readers"}
    store.close()
    assert repr(store) == f"<LMDBStore {root} closed>"


def test_stored_bytes(store: LMDBStore, root: Path) -> None:
    """The format, pinned: whoever changes it changes the marker too."""
    store.write("p", "", "k", b"value")
    store.write("", "", "k", b"")
    store.check_and_put("p", "s", "k", expected=None, value=b"v", expires_at=0)
    store.check_and_put("p", "s", "last", expected=None, value=b"v", expires_at=2**63 - 1)
    store.close()
    with lmdb.open(str(root), max_dbs=8, lib_version=0) as env, env.begin() as txn:
        databases = {
            name: dict(txn.cursor(env.open_db(name, txn, create=False)))
            for name in (b"meta", b"entries", b"expiry")
        }
    assert databases == {
        b"meta": {b"format": b"1"},
        b"entries": {
            b"\0\0k": bytes(8),
            b"p\0\0k": bytes(8) + b"value",
            b"p\0s\0k": bytes(7) + b"\1v",
            b"p\0s\0last": b"\x80" + bytes(7) + b"v",
        },
        b"expiry": {
            b"p\0" + bytes(7) + b"\1s\0k": b"",
            b"p\0\x80" + bytes(7) + b"s\0last": b"",
        },
    }
    assert sorted(path.name for path in root.iterdir()) == ["data.mdb", MARKER, "lock.mdb"]
    assert (root / MARKER).read_bytes() == b"kvreplay lmdb 1\n"


def test_no_index_entry_lingers(store: LMDBStore) -> None:
    """A sweep visits what is due and no left-over of an entry that was changed."""

    def put(value: bytes | None, expires_at: int | None = None) -> None:
        try:
            expected = store.read("p", "s", "k")
        except KeyNotFoundError:
            expected = None
        store.check_and_put("p", "s", "k", expected=expected, value=value, expires_at=expires_at)

    for change in (
        lambda: put(b"v", 500),
        lambda: put(b"v"),
        lambda: put(None, 5),
        lambda: store.write("p", "s", "k", b"v"),
        lambda: store.remove("p", "s", "k"),
    ):
        put(b"v", 5)
        change()
        assert store.sweep("p", 499, 10) == SweepResult(0, 0, False)
    put(b"v", 5)
    put(b"w", 5)
    assert store.sweep("p", 499, 10) == SweepResult(1, 1, False)


def test_a_stray_index_entry_removes_nothing(store: LMDBStore) -> None:
    """Both databases change together, so it is another program's; a sweep drops just that."""
    store.check_and_put("p", "s", "later", expected=None, value=b"v", expires_at=500)
    store.write("p", "s", "never", b"v")
    environment = store._opened()

    def stray(txn: Any) -> None:
        for key in ("later", "never", "absent"):
            entry = lmdb_entries.entry_key("p", "s", key)
            index = lmdb_entries.index_key(entry, (6).to_bytes(8, "big"))
            txn.put(index, b"", db=environment.expiry)

    environment.write(stray)
    assert store.sweep("p", 5, 10) == SweepResult(3, 0, False)
    assert sorted(store.list("p", "s")) == ["later", "never"]
    assert store.sweep("p", 500, 10) == SweepResult(1, 1, False)


def test_an_illegal_name_is_told_by_its_part() -> None:
    for names, says in [
        (("p q", "s", "k"), "the primary namespace has a character"),
        (("p", "s t", "k"), "the secondary namespace has a character"),
        (("p", "s", "k l"), "the key has a character"),
        (("p", "s", ""), "the key is empty"),
        (("p", "s", b"k"), "the key is bytes"),
    ]:
        with pytest.raises(InvalidNameError, match=says):
            lmdb_entries.entry_key(*names)
    assert lmdb_entries.entry_key("p", "s", "k") == b"p\0s\0k"


def test_namespaces_are_not_remembered_for_ever() -> None:
    for number in range(2000):
        lmdb_entries.prefix_of("p", str(number))
    assert lmdb_entries.prefix_of.cache_info().currsize < 2000


def test_longest_names_can_expire(store: LMDBStore) -> None:
    names = ("N" * 120,) * 3
    assert store.check_and_put(*names, expected=None, value=b"v", expires_at=5) is None
    assert store.sweep(names[0], 5, 1) == SweepResult(1, 1, False)


@pytest.mark.parametrize(
    "options",
    [
        {"durability": "none"},
        {"map_size": 65535},
        {"map_size": 2**63},
        {"map_size": "1GiB"},
        {"map_size": True},
        {"max_readers": 0},
        {"max_readers": -1},
        {"max_readers": 2**32},
        {"max_readers": 1.5},
    ],
)
def test_absurd_options(root: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LMDBStore(root, **options)
    assert not root.exists()


@pytest.mark.parametrize("path", ["", "a\0b", b"bytes", None, 1])
def test_absurd_paths(path: Any) -> None:
    with pytest.raises(ConfigError, match="path"):
        LMDBStore(path)


@pytest.mark.parametrize("size", [64 * KIB, 64 * KIB + 1, 2**40])
def test_map_sizes(root: Path, size: int) -> None:
    with LMDBStore(root, map_size=size) as store:
        store.write("p", "s", "k", b"v")
    assert (root / "data.mdb").stat().st_blocks < 200
    with LMDBStore(root) as store:
        assert store.read("p", "s", "k") == b"v"


def test_a_map_that_cannot_be_had(root: Path) -> None:
    with pytest.raises(StoreError, match="map_size"):
        LMDBStore(root, map_size=2**62)
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")


@pytest.mark.parametrize(("durability", "metasync"), [("full", True), ("process", False)])
def test_durability(root: Path, durability: Any, metasync: bool) -> None:
    """Data pages are flushed in both; never the two modes in which a power cut may corrupt."""
    with LMDBStore(root, durability=durability) as store:
        flags = store._opened().gate.handle.flags()  # type: ignore[union-attr]
        assert flags["metasync"] is metasync
        assert flags["sync"]
        assert not flags["writemap"]
        assert not flags["map_async"]


@pytest.mark.parametrize(("durability", "meta_pages"), [("full", 5), ("process", 0)])
def test_flushes_of_commits(root: Path, tmp_path: Path, durability: str, meta_pages: int) -> None:
    """The data pages of each are flushed; the page that makes them count, if ``full``."""
    needs_strace()
    log = tmp_path / "log"
    calls = "openat,fdatasync,pwrite64"
    before = (
        "strace",
        "-f",
        "--seccomp-bpf",
        "-o",
        str(log),
        "-P",
        str(root / "data.mdb"),
        "-e",
        f"trace={calls}",
    )
    code = f"""
with LMDBStore(path, durability={durability!r}) as store:
    for _ in range(COUNT):
        store.write("p", "s", "k", b"v")
"""
    LMDBStore(root).close()
    seen = []
    for count in (0, 5):
        in_process(code.replace("COUNT", str(count)), root, before=before)
        lines = log.read_text().splitlines()
        (synchronous,) = (line.split("= ")[1] for line in lines if "O_DSYNC" in line)
        flushes = sum("fdatasync(" in line for line in lines)
        seen.append((flushes, sum(f"pwrite64({synchronous}," in line for line in lines)))
    assert seen[1][0] - seen[0][0] == 5
    assert seen[1][1] - seen[0][1] == meta_pages


def test_an_unclosed_store_warns(root: Path) -> None:
    store = LMDBStore(root)
    environment = store._opened()
    with pytest.warns(ResourceWarning, match="was not closed"):
        del store
    lmdb_sharing.release(environment)


def test_the_environment_variable_does_not_switch_the_format(root: Path) -> None:
    code = 'LMDBStore(path).close(); import lmdb; say(lmdb.open(path + "x").lib_version()[0])'
    newer = in_process(code, root, LMDB_DEFAULT_LIB_VERSION="1")
    assert newer.strip() == "1", "the variable does what its documentation says"
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")
    assert (root / "data.mdb").read_bytes()[16:24] == (0xBEEFC0DE).to_bytes(4, sys.byteorder) + (
        1
    ).to_bytes(4, sys.byteorder)


# The map.


def test_the_map_grows_by_itself(root: Path) -> None:
    with LMDBStore(root, map_size=64 * KIB) as store:
        for n in range(100):
            store.write("p", "s", f"k{n}", bytes([n]) * 2000)
        assert map_size(store) > 200_000
        for n in range(100):
            assert store.read("p", "s", f"k{n}") == bytes([n]) * 2000
    with LMDBStore(root, map_size=64 * KIB) as store:
        assert len(store.list("p", "s")) == 100
        store.write("p", "s", "more", bytes(2000))


def test_one_value_that_is_larger_than_the_map(root: Path) -> None:
    value = random.Random(1).randbytes(1024 * KIB)
    with LMDBStore(root, map_size=64 * KIB) as store:
        store.write("p", "s", "k", value)
        assert store.check_and_put("p", "s", "k", expected=value, value=value[:-1]) == value
        assert store.read("p", "s", "k") == value[:-1]


def fill_transaction(store: LMDBStore) -> None:
    with store.transaction() as txn:
        txn.write("p", "s", "first", b"v")
        for n in range(40):
            txn.write("p", "s", f"secret{n}", b"hidden" * 500)


def test_a_transaction_in_a_full_map(root: Path) -> None:
    with LMDBStore(root, map_size=128 * KIB) as store:
        store.write("p", "s", "k", b"v")
        with pytest.raises(StoreUnavailableError) as caught:
            fill_transaction(store)
        assert isinstance(caught.value.__cause__, lmdb.MapFullError)
        assert "secret" not in told(caught.value)
        assert "hidden" not in told(caught.value)
        assert content(store) == {("p", "s", "k"): b"v"}
        fill_transaction(store)
        assert len(store.list("p", "s")) == 42


def test_a_transaction_that_hides_the_failure(root: Path) -> None:
    with LMDBStore(root, map_size=64 * KIB) as store:
        with pytest.raises(StoreUnavailableError), store.transaction() as txn:
            txn.write("p", "s", "first", b"v")
            for call in (
                lambda: txn.write("p", "s", "k", bytes(100 * KIB)),
                lambda: txn.write("p", "s", "k", b"small"),
                lambda: txn.read("p", "s", "first"),
                lambda: txn.list("p", "s"),
            ):
                with pytest.raises(StoreUnavailableError):
                    call()
        assert content(store) == {}
        assert map_size(store) > 64 * KIB
        store.write("p", "s", "k", b"v")


def test_a_crowded_map_grows_before_a_transaction(root: Path) -> None:
    """So that a transaction of ordinary size needs no second run."""
    with LMDBStore(root, map_size=512 * KIB) as store:
        for n in range(25):
            store.write("p", "s", f"k{n}", bytes(15 * KIB))
        assert map_size(store) == 512 * KIB
        with store.transaction() as txn:
            assert map_size(store) == 1024 * KIB
            txn.write("p", "s", "k", bytes(300 * KIB))
        assert store.read("p", "s", "k") == bytes(300 * KIB)


def test_growth_while_threads_read(root: Path) -> None:
    with LMDBStore(root, map_size=64 * KIB) as store, ThreadPoolExecutor(2) as pool:
        store.write("p", "s", "k", b"v" * 3000)
        done = threading.Event()

        def watch() -> int:
            reads = 0
            while not done.is_set():
                assert store.read("p", "s", "k") == b"v" * 3000
                assert "k" in store.list("p", "s")
                reads += 1
            return reads

        watchers = [pool.submit(watch) for _ in range(2)]
        try:
            for n in range(12):
                store.write("p", "s", f"more{n}", bytes(60 * KIB))
        finally:
            done.set()
        assert all(watcher.result() > 0 for watcher in watchers)
        assert map_size(store) >= 512 * KIB


@pytest.mark.parametrize("how", ["raises", "map full", "a single write"])
def test_a_transaction_is_undone_while_threads_read(root: Path, how: str) -> None:
    """The driver's own ``abort()`` waits for a moment without a reader, which may never come."""
    with LMDBStore(root, map_size=64 * KIB) as store, ThreadPoolExecutor(5) as pool:
        store.write("p", "s", "k", b"v" * 3000)
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                assert store.read("p", "s", "k") == b"v" * 3000
                assert store.list("p", "s")

        def undo() -> None:
            for n in range(5):
                if how == "a single write":
                    store.write("p", "s", f"k{n}", bytes(map_size(store)))
                    continue
                with pytest.raises((ZeroDivisionError, StoreUnavailableError)):
                    with store.transaction() as txn:
                        txn.write("p", "s", "k", b"w")
                        if how == "raises":
                            raise ZeroDivisionError
                        txn.write("p", "s", "k", bytes(map_size(store)))

        watchers = [pool.submit(watch) for _ in range(4)]
        try:
            pool.submit(undo).result(20)
        finally:
            done.set()
        for watcher in watchers:
            watcher.result()


GROW = """
with LMDBStore(path, map_size=64 * 1024) as store:
    store.write("p", "s", "other", bytes(1024 * 1024))
"""


@pytest.mark.parametrize("call", ["read", "list", "write", "transaction", "sweep"])
def test_resized_by_another_process(root: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    met = []
    repair = lmdb_environment.Environment.repair

    def spy(self: Any, env: Any, error: Exception) -> bool:
        met.append(type(error))
        return repair(self, env, error)

    monkeypatch.setattr(lmdb_environment.Environment, "repair", spy)
    with LMDBStore(root, map_size=64 * KIB) as store:
        store.write("p", "s", "k", b"v")
        in_process(GROW, root)
        if call == "read":
            assert store.read("p", "s", "other") == bytes(1024 * KIB)
        elif call == "list":
            assert sorted(store.list("p", "s")) == ["k", "other"]
        elif call == "write":
            store.write("p", "s", "k", b"w")
        elif call == "sweep":
            assert store.sweep("p", 5, 5) == SweepResult(0, 0, False)
        else:
            with store.transaction() as txn:
                assert txn.read("p", "s", "other") == bytes(1024 * KIB)
                txn.write("p", "s", "k", b"w")
        # Before a transaction, which cannot be run again, the map's size is looked at anyway.
        assert met == ([] if call == "transaction" else [lmdb.MapResizedError])
        assert store.read("p", "s", "other") == bytes(1024 * KIB)
        assert map_size(store) >= 1024 * KIB


def test_two_processes_grow_in_turn(root: Path) -> None:
    """Upstream calls growth by several processes fragile: what is acknowledged stays."""
    code = """
name = wait()
for part in range(3):
    with LMDBStore(path, map_size=64 * 1024) as store:
        for n in range(20):
            store.write("p", name, f"k{part}-{n}", bytes(5000))
            assert store.read("p", name, f"k{part}-{n}") == bytes(5000)
"""
    with Process(code, root) as one, Process(code, root) as other:
        one.tell("one")
        other.tell("other")
        one.join()
        other.join()
    with LMDBStore(root, map_size=64 * KIB) as store:
        for name in ("one", "other"):
            assert len(store.list("p", name)) == 60
            assert all(store.read("p", name, key) == bytes(5000) for key in store.list("p", name))


def test_a_map_that_cannot_grow(root: Path) -> None:
    """The process may address no more: nothing is written, and small changes go on."""
    code = """
import resource
store = LMDBStore(path, map_size=64 * 1024 * 1024)
store.write("p", "s", "k", b"v")
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (now + 40 * 1024 * 1024,) * 2)
for again in range(2):
    try:
        for n in range(100):
            store.write("p", "s", f"k{n}", bytes(2 * 1024 * 1024))
    except StoreFullError as error:
        say(f"{n} {error}")
    try:
        with store.transaction() as txn:
            txn.write("p", "t", "k", bytes(4 * 1024 * 1024))
    except StoreFullError as error:
        say(str(error))
    assert store.read("p", "s", "k") == b"v"
    assert len(store.list("p", "s")) == n + 1
    assert store.list("p", "t") == []
    for key in store.list("p", "s"):
        store.remove("p", "s", key)
    store.write("p", "s", "k", b"v")
store.close()
"""
    said = in_process(code, root).splitlines()
    assert len(said) == 4
    assert all("cannot grow" in line for line in said)


# The disk.


def fill(store: LMDBStore, name: str, size: int) -> int:
    """Write until the disk is full; return how many entries were acknowledged."""
    for n in range(10_000):
        try:
            store.write("p", name, f"secret{n}", b"hidden" * (size // 6))
        except StoreFullError as error:
            assert "secret" not in told(error)
            assert "hidden" not in told(error)
            return n
    raise AssertionError("the disk was never full")


def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=1m"):
        root = disk / "store"
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(400 * KIB))
        with LMDBStore(root) as store:
            store.check_and_put("p", "s", "due", expected=None, value=b"v", expires_at=5)
            count = fill(store, "small", 600) + fill(store, "big", 20 * KIB)
            before = content(store)
            assert len(before) == count + 1
            for call in (
                lambda: store.write("p", "s", "due", bytes(100 * KIB)),
                lambda: store.check_and_put(
                    "p", "s", "due", expected=b"v", value=bytes(100 * KIB), expires_at=9
                ),
                lambda: store.check_and_put("p", "s", "x", expected=None, value=bytes(100 * KIB)),
            ):
                with pytest.raises(StoreFullError):
                    call()
            with pytest.raises(StoreFullError), store.transaction() as txn:
                txn.write("p", "s", "due", b"w")
                txn.write("p", "s", "x", bytes(100 * KIB))
            assert content(store) == before
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(content, store).result(30) == before
        with LMDBStore(root) as store:
            assert content(store) == before
            ballast.unlink()
            store.write("p", "s", "x", bytes(100 * KIB))
            assert store.sweep("p", 5, 5) == SweepResult(1, 1, False)
            assert set(content(store)) == (set(before) | {("p", "s", "x")}) - {("p", "s", "due")}


def test_full_disk_at_each_page(tmp_path: Path) -> None:
    """From *no page is free* to *all that are needed are*: applied as a whole, or not at all."""
    disk = tmp_path / "disk"
    with mounted(disk, "size=1m"):
        root, spare = disk / "store", disk / "spare"
        outcomes = []
        for pages in range(14):
            shutil.rmtree(root, ignore_errors=True)
            with LMDBStore(root) as store:
                store.write("p", "s", "k", b"old")
                spare.write_bytes(bytes(pages * 4 * KIB))
                with (disk / "ballast").open("wb", buffering=0) as ballast:
                    with contextlib.suppress(OSError):
                        while ballast.write(bytes(4 * KIB)):
                            pass
                spare.unlink()
                try:
                    with store.transaction() as txn:
                        txn.write("p", "s", "k", b"new")
                        txn.write("p", "s", "more", bytes(6 * 4 * KIB))
                    outcomes.append("applied")
                except StoreFullError:
                    outcomes.append("full")
                applied = outcomes[-1] == "applied"
                assert store.read("p", "s", "k") == (b"new" if applied else b"old")
                assert (("p", "s", "more") in content(store)) is applied
                (disk / "ballast").unlink()
            with LMDBStore(root) as store:
                assert store.read("p", "s", "k") == (b"new" if applied else b"old")
                store.write("p", "s", "k", bytes(50 * KIB))
                assert (("p", "s", "more") in content(store)) is applied
        assert outcomes == sorted(outcomes, reverse=True)
        assert set(outcomes) == {"applied", "full"}


def test_a_full_disk_at_each_page_of_opening(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=512k"):
        root, spare, ballast = disk / "store", disk / "spare", disk / "ballast"
        outcomes = []
        for pages in range(24):
            shutil.rmtree(root, ignore_errors=True)
            spare.write_bytes(bytes(pages * 4 * KIB))
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4 * KIB)):
                    pass
            spare.unlink()
            try:
                LMDBStore(root, max_readers=4).close()
                outcomes.append("opened")
            except StoreFullError:
                outcomes.append("full")
            ballast.unlink()
            with LMDBStore(root) as store:
                store.write("p", "s", "k", b"v")
            with LMDBStore(root) as store:
                assert content(store) == {("p", "s", "k"): b"v"}
        assert set(outcomes) == {"opened", "full"}


def test_a_limit_on_the_size_of_files(root: Path) -> None:
    """A full disk that needs no root: here the kernel cuts writes short, which is no ENOSPC."""
    code = """
import resource
with LMDBStore(path) as store:
    size = os.path.getsize(path + "/data.mdb")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, resource.RLIM_INFINITY))
    for n in range(10):
        try:
            store.write("p", "s", f"k{n}", bytes(3000))
        except OutcomeUnknownError:
            raise
        except StoreError as error:
            break
    assert n < 9
    assert store.list("p", "s") == [f"k{m}" for m in range(n)]
    say(n)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    store.write("p", "s", "later", bytes(30000))
"""
    count = int(in_process(code, root))
    with LMDBStore(root) as store:
        assert set(store.list("p", "s")) == {f"k{n}" for n in range(count)} | {"later"}


# Readers.

READ = """
with LMDBStore(path) as store:
    store._opened().read(lambda txn: (say("reading"), wait()))
"""


OPEN = """
try:
    LMDBStore(path).close()
    say("opened")
except StoreUnavailableError:
    say("unavailable")
"""


def test_reader_slots(root: Path) -> None:
    with LMDBStore(root, max_readers=2) as store:
        store.write("p", "s", "k", b"v")
        with Process(READ, root) as one, Process(READ, root) as other:
            assert one.hear() == "reading"
            assert other.hear() == "reading"
            for call in (
                lambda: store.read("p", "s", "k"),
                lambda: store.list("p", "s"),
                lambda: list(store.list_all_keys()),
            ):
                with pytest.raises(StoreUnavailableError, match="max_readers") as caught:
                    call()
                assert isinstance(caught.value.__cause__, lmdb.ReadersFullError)
            store.write("p", "s", "k", b"w")  # a writer needs no slot
            one.tell()
            one.join()
            assert store.read("p", "s", "k") == b"w"
            other.tell()
            other.join()


@pytest.mark.parametrize("call", ["read", "list"])
def test_slots_of_killed_readers_are_freed(root: Path, call: str) -> None:
    with LMDBStore(root, max_readers=2) as store:
        store.write("p", "s", "k", b"v")
        for _ in range(2):
            with Process(READ, root) as one, Process(READ, root) as other:
                assert one.hear() == other.hear() == "reading"
                one.kill()
                other.kill()
            # LMDB cannot free them while it opens: who has it open already does.
            assert in_process(OPEN, root).strip() == "unavailable"
            if call == "read":
                assert store.read("p", "s", "k") == b"v"
            else:
                assert store.list("p", "s") == ["k"]
            assert in_process(OPEN, root).strip() == "opened"


def test_opening_frees_the_slots_of_killed_readers(root: Path) -> None:
    """And with them the old pages that such a reader still keeps."""
    with LMDBStore(root) as store:
        handle = store._opened().gate.handle
        assert handle is not None
        with Process(READ, root) as process:
            assert process.hear() == "reading"
            pid = str(process.popen.pid)
            process.kill()
        assert pid in handle.readers()
        in_process("LMDBStore(path).close()", root)
        assert pid not in handle.readers()


def test_threads_that_share_few_slots(root: Path) -> None:
    """Slots of this process's own threads are in use for moments; nobody waits for ever."""
    with LMDBStore(root, max_readers=1) as store, ThreadPoolExecutor(4) as pool:
        store.write("p", "s", "k", b"v")
        inside, over = threading.Event(), threading.Event()

        def stay(_txn: Any) -> None:
            inside.set()
            assert over.wait(30)

        staying = pool.submit(store._opened().read, stay)
        assert inside.wait(30)
        with pytest.raises(StoreUnavailableError):
            store.read("p", "s", "k")
        over.set()
        staying.result()
        assert store.read("p", "s", "k") == b"v"


# Sharing within a process.


def open_files_of(root: Path) -> list[str]:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [link for link in links if f"{link}/".startswith(f"{root.resolve()}/")]


def test_a_closed_store_keeps_no_file_open(root: Path) -> None:
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")
        assert str(root.resolve()) in open_files_of(root)  # for the turn among processes
    assert open_files_of(root) == []


def test_a_change_that_comes_after_the_end_keeps_no_file_open(root: Path) -> None:
    """It takes its turn, and learns only then that the store was closed."""
    store = LMDBStore(root)
    environment = store._opened()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        environment.write(lambda txn: None)
    del environment
    gc.collect()
    assert open_files_of(root) == []


def test_opened_twice(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir()
    link = root.with_name("link")
    link.symlink_to(root)
    monkeypatch.chdir(root.parent)
    stores = [LMDBStore(root), LMDBStore(link), LMDBStore("store"), LMDBStore(str(root) + "/.")]
    assert len({store.identity for store in stores}) == 1
    assert len({id(store._opened()) for store in stores}) == 1
    stores[0].write("p", "s", "k", b"v")
    while stores:
        assert [store.read("p", "s", "k") for store in stores] == [b"v"] * len(stores)
        assert open_files_of(root)
        closing = stores.pop(0)
        closing.close()
        closing.close()
        with pytest.raises(StoreError, match="closed"):
            closing.read("p", "s", "k")
    assert open_files_of(root) == []
    assert lmdb_sharing._open == {}
    with LMDBStore(link) as store:
        assert store.read("p", "s", "k") == b"v"


def test_a_relative_path_does_not_follow_a_chdir(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    with LMDBStore("store") as store:
        monkeypatch.chdir("/")
        store._opened().gate.alone(lambda env: env and env.close())
        store.write("p", "s", "k", b"v")
    with LMDBStore(root) as store:
        assert store.read("p", "s", "k") == b"v"


def test_another_durability_is_refused(root: Path) -> None:
    with LMDBStore(root, durability="process") as store:
        with pytest.raises(ConfigError, match="durability=process"):
            LMDBStore(root)
        store.write("p", "s", "k", b"v")
        with LMDBStore(root, durability="process", map_size=64 * KIB, max_readers=3) as same:
            assert same.read("p", "s", "k") == b"v"
    with LMDBStore(root, durability="full") as store:
        assert store.read("p", "s", "k") == b"v"


def test_open_without_kvreplay_in_this_process(root: Path) -> None:
    LMDBStore(root).close()
    with (
        lmdb.open(str(root), max_dbs=8, lib_version=0),
        pytest.raises(StoreError, match="open already") as caught,
    ):
        LMDBStore(root)
    assert not isinstance(caught.value, CorruptStoreError)
    LMDBStore(root).close()


def test_the_files_are_replaced_while_open(root: Path, tmp_path: Path) -> None:
    with LMDBStore(tmp_path / "backup") as backup:
        backup.write("p", "s", "k", b"backup")
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")
        os.replace(tmp_path / "backup" / "data.mdb", root / "data.mdb")
        with pytest.raises(StoreError, match="replaced"):
            LMDBStore(root)
        assert store.read("p", "s", "k") == b"v"
    with LMDBStore(root) as store:
        assert store.read("p", "s", "k") == b"backup"


def test_a_marker_that_cannot_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(lmdb_files, "replace_file", fail)
        with pytest.raises(StoreFullError) as caught:
            LMDBStore(root)
        assert caught.value.__cause__ is not None  # while its traceback lives, too
        assert open_files_of(root) == []
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")
    assert (root / MARKER).exists()


def test_a_failed_opening_leaves_nothing_open(root: Path) -> None:
    root.mkdir()
    (root / MARKER).write_bytes(b"kvreplay lmdb 2\n")
    for _ in range(2):
        with pytest.raises(CorruptStoreError):
            LMDBStore(root)
    assert open_files_of(root) == []
    assert lmdb_sharing._open == {}


def test_files_that_vanish_while_they_are_opened_are_not_left_open(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB would refuse every later opening in this process."""

    def vanished(path: Path) -> None:
        raise StoreError("cannot be looked at")

    with monkeypatch.context() as patch:
        patch.setattr(lmdb_environment, "identity_of", vanished)
        with pytest.raises(StoreError, match="looked at") as kept:
            LMDBStore(root)
    assert kept.value
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")


def test_opened_while_the_last_one_closes(root: Path) -> None:
    """Closing waits for another thread's transaction; who opens meanwhile gets a usable store."""
    first = LMDBStore(root)
    inside, over = threading.Event(), threading.Event()

    def transact() -> None:
        with first.transaction() as txn:
            txn.write("p", "s", "k", b"v")
            inside.set()
            assert over.wait(30)

    with ThreadPoolExecutor(2) as pool:
        transacting = pool.submit(transact)
        assert inside.wait(30)
        closing = pool.submit(first.close)
        while first._environment is not None or first_users(root):
            pass
        second = LMDBStore(root)
        over.set()
        transacting.result(30)
        closing.result(30)
        assert second.read("p", "s", "k") == b"v"
        second.write("p", "s", "k", b"w")
        second.close()
    assert lmdb_sharing._open == {}
    assert open_files_of(root) == []


def first_users(root: Path) -> int:
    identity = lmdb_files.identity_of(root)
    return lmdb_sharing._open[identity].users


def test_opened_inside_a_transaction_while_another_thread_closes(root: Path) -> None:
    """No deadlock: the transaction's thread is told to end it first."""
    first = LMDBStore(root)
    with ThreadPoolExecutor(1) as pool:
        with first.transaction() as txn:
            txn.write("p", "s", "k", b"v")
            closing = pool.submit(first.close)
            environment = txn._environment  # type: ignore[attr-defined]
            while environment.gate.handle is not None:
                pass
            with LMDBStore(root) as second:
                with pytest.raises(StoreUnavailableError, match="end it first"):
                    second.read("p", "s", "k")
                with pytest.raises(StoreError, match="transaction"):
                    second.write("p", "s", "k", b"w")
                assert txn.read("p", "s", "k") == b"v"
                third = LMDBStore(root)
        closing.result(30)
    assert third.read("p", "s", "k") == b"v"
    third.close()


def test_a_close_that_is_refused_counts_nothing(root: Path) -> None:
    store = LMDBStore(root)
    for _ in range(3):
        with store.transaction() as txn:
            txn.write("p", "s", "k", b"v")
            with pytest.raises(StoreError, match="transaction"):
                store.close()
            with LMDBStore(root) as other:  # not the last one: may close
                assert other.list("p", "s") in ([], ["k"])
    assert store.read("p", "s", "k") == b"v"
    store.close()
    assert lmdb_sharing._open == {}


def test_an_interrupt_during_the_last_close(root: Path) -> None:
    """It leaves the files open, and the next one who opens them shares and closes them."""
    store = LMDBStore(root)
    environment = store._opened()
    handle = environment.gate.handle
    environment.gate.inside.append(None)  # someone is inside

    def interrupt(_timeout: float | None) -> bool:
        raise KeyboardInterrupt

    environment.gate.left.wait = interrupt  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        store.close()
    environment.gate.inside.pop()
    environment.gate.left = threading.Event()
    assert environment.gate.handle is handle, "who is inside goes on with it"
    with LMDBStore(root) as again:
        again.write("p", "s", "k", b"v")
    assert lmdb_sharing._open == {}
    assert open_files_of(root) == []


# Forking. That a child goes on, idle or forked among busy threads, is in the contract.


def test_a_child_cannot_commit_its_parents_transaction(store: LMDBStore, fork: Any) -> None:
    def child(block: Any, txn: Any) -> None:
        for call in (
            lambda: txn.write("p", "s", "k", b"child"),
            lambda: txn.read("p", "s", "k"),
            lambda: txn.list("p", "s"),
            lambda: txn.remove("p", "s", "k"),
            lambda: txn.check_and_put("p", "s", "k", expected=None, value=b"child"),
        ):
            with pytest.raises(StoreError, match="forked"):
                call()
        with pytest.raises(StoreError, match="forked child"):
            block.__exit__(None, None, None)
        with pytest.raises(StoreError, match="ended"):
            txn.write("p", "s", "k", b"child")

    block = store.transaction()
    with block as txn:
        txn.write("p", "s", "k", b"parent")
        fork(lambda: child(block, txn)).join()
        fork(lambda: child(block, txn)).join()
        assert txn.read("p", "s", "k") == b"parent"
        txn.write("p", "s", "more", b"parent")
    assert content(store) == {("p", "s", "k"): b"parent", ("p", "s", "more"): b"parent"}


def test_a_child_that_raises_inside_its_parents_transaction(store: LMDBStore, fork: Any) -> None:
    def child(block: Any) -> None:
        assert not block.__exit__(ZeroDivisionError, ZeroDivisionError(), None)

    block = store.transaction()
    with block as txn:
        txn.write("p", "s", "k", b"parent")
        fork(lambda: child(block)).join()
        assert txn.read("p", "s", "k") == b"parent"
    assert store.read("p", "s", "k") == b"parent"


def test_a_child_waits_for_its_parents_transaction(store: LMDBStore, root: Path, fork: Any) -> None:
    """It closes the parent's handle, and so must not free the parent's lock or spoil its pages."""
    reader, writer = os.pipe()

    def child() -> None:
        os.write(writer, b"1")
        store.write("p", "s", "child", b"v")  # opens, and waits for the lock
        assert store.read("p", "s", "k") == b"parent"
        store.close()

    with store.transaction() as txn:
        txn.write("p", "s", "k", b"parent")
        forked = fork(child)
        os.read(reader, 1)
        for n in range(200):
            txn.write("p", "s", f"k{n}", bytes(3000))
        assert os.waitpid(forked.pid, os.WNOHANG) == (0, 0)
        with Process('with LMDBStore(path) as store: say(store.list("p", "s"))', root) as other:
            assert other.popen.poll() is None
    forked.join()
    os.close(reader)
    os.close(writer)
    assert len(store.list("p", "s")) == 202
    assert all(store.read("p", "s", f"k{n}") == bytes(3000) for n in range(200))


STRANDED = """
import threading
from kvreplay.backends.lmdb import gate as lmdb_gate
lmdb_gate.FORK_PATIENCE = 0.05
store = LMDBStore(path)
store.write("p", "s", "k", b"old")
inside, over = threading.Event(), threading.Event()
def transact():
    with store.transaction() as txn:
        txn.write("p", "s", "k", b"new")
        inside.set()
        over.wait()
thread = threading.Thread(target=transact)
thread.start()
inside.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    def refused(call):
        try:
            call()
        except StoreError as error:
            assert "forked" in str(error), error
        else:
            raise AssertionError
    def use():
        refused(lambda: store.read("p", "s", "k"))
        refused(lambda: store.write("p", "s", "k", b"child"))
        refused(lambda: store.transaction().__enter__())
        with LMDBStore(path) as same:
            refused(lambda: same.read("p", "s", "k"))
    use()
    grandchild = os.fork()
    if grandchild == 0:
        use()
        sys.exit(0)
    assert os.waitpid(grandchild, 0)[1] == 0
    use()
    store.close()
    store.close()
    sys.exit(7)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert store.read("p", "s", "k") == b"old"
over.set()
thread.join()
assert store.read("p", "s", "k") == b"new"
pid = os.fork()
if pid == 0:
    store.write("p", "s", "k", b"child")
    store.close()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert store.read("p", "s", "k") == b"child"
store.close()
"""


def test_a_child_forked_in_another_threads_long_transaction(root: Path) -> None:
    """The fork does not wait for ever, and the child says what is wrong instead of hanging."""
    code = STRANDED
    if sys.version_info >= (3, 12):  # it warns, rightly, of forking with threads
        code = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + code
    in_process(code, root)


def test_a_fork_while_another_thread_closes(
    root: Path, fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closing waits for the transaction, whose thread forks: no deadlock."""
    monkeypatch.setattr("kvreplay.backends.lmdb.gate.FORK_PATIENCE", 0.05)
    store = LMDBStore(root)
    store.write("p", "s", "k", b"v")

    def child(environment: Any) -> None:
        with LMDBStore(root) as same, pytest.raises(StoreError, match="forked"):
            same.read("p", "s", "k")

    with ThreadPoolExecutor(1) as pool:
        with store.transaction() as txn:
            environment = txn._environment  # type: ignore[attr-defined]
            closing = pool.submit(store.close)
            while environment.gate.handle is not None:
                pass
            fork(lambda: child(environment)).join()
            txn.write("p", "s", "k", b"w")
        closing.result(30)
    with LMDBStore(root) as store:
        assert store.read("p", "s", "k") == b"w"


def test_a_fork_while_another_thread_opens(
    root: Path, tmp_path: Path, fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another store's opening takes its time; the fork waits in reason, and this one is usable."""
    monkeypatch.setattr("kvreplay.backends.lmdb.shared.FORK_PATIENCE", 0.05)
    opening, over = threading.Event(), threading.Event()
    prepare = lmdb_files._prepare

    def slowly(path: Path, max_readers: int, creating: bool) -> bool:
        if path.name == "slow":
            opening.set()
            assert over.wait(30)
        return prepare(path, max_readers, creating)

    monkeypatch.setattr(lmdb_files, "_prepare", slowly)
    with LMDBStore(root) as store, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(LMDBStore, tmp_path / "slow")
        assert opening.wait(30)

        def child() -> None:
            store.write("p", "s", "k", b"child")
            over.set()
            with LMDBStore(tmp_path / "other") as other:
                other.write("p", "s", "k", b"child")

        fork(child).join()
        assert store.read("p", "s", "k") == b"child"
        over.set()
        with slow.result(30) as other:
            other.write("p", "s", "k", b"v")


def test_a_child_leaves_the_parents_readers_alone(store: LMDBStore, fork: Any) -> None:
    """It does not free their slots when it closes the parent's handle: their pages are safe."""
    store.write("p", "s", "k", b"old" * 1000)
    fork(lambda: (store.read("p", "s", "k"), store.close())).join()

    def stay(txn: Any) -> bytes:
        environment = store._opened()
        first = txn.get(b"p\0s\0k", None, environment.entries)
        for n in range(300):
            store.write("p", "s", "k", bytes([n % 256]) * 3000)
        return first if first == txn.get(b"p\0s\0k", None, environment.entries) else b""

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(store._opened().read, stay).result(60) == bytes(8) + b"old" * 1000


# The marker, and files that are not what they should be.


def filled(root: Path) -> dict[tuple[str, str, str], bytes]:
    with LMDBStore(root) as store:
        for n in range(50):
            store.write("p", "s", f"k{n}", bytes([n]) * 3000)
        return content(store)


def test_an_emptied_data_file_is_no_new_store(root: Path) -> None:
    before = filled(root)
    data = (root / "data.mdb").read_bytes()
    (root / "data.mdb").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match="data.mdb is empty"):
            LMDBStore(root)
        assert (root / "data.mdb").read_bytes() == b""
    (root / "data.mdb").write_bytes(data)
    with LMDBStore(root) as store:
        assert content(store) == before


@pytest.mark.parametrize("marked", [True, False])
def test_an_empty_data_file_is_never_taken_for_a_new_store(root: Path, marked: bool) -> None:
    filled(root)
    os.truncate(root / "data.mdb", 0)
    if not marked:
        (root / MARKER).unlink()
    with pytest.raises(CorruptStoreError, match="data.mdb is empty"):
        LMDBStore(root)
    (root / "data.mdb").unlink()  # as the message says, to accept the loss
    (root / MARKER).unlink(missing_ok=True)
    LMDBStore(root).close()


def test_a_deleted_data_file_is_no_new_store(root: Path) -> None:
    filled(root)
    (root / "data.mdb").unlink()
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match="data.mdb is missing"):
            LMDBStore(root)
        assert not (root / "data.mdb").exists()
    (root / MARKER).unlink()  # as the message says, to accept the loss
    with LMDBStore(root) as store:
        assert content(store) == {}


@pytest.mark.parametrize(
    "left", ["half", "pages", 1, 100, 4096, 4200, 8192, 8193, 12288, -4096, -1]
)
def test_a_cut_data_file_is_refused(root: Path, left: Any) -> None:
    """Touching a page beyond its end would kill the process with SIGBUS: so in a process."""
    filled(root)
    size = (root / "data.mdb").stat().st_size
    if left == "half":
        left = size // 2
    elif left == "pages":
        left = size // 2 // 4096 * 4096
    elif left < 0:
        left += size
    os.truncate(root / "data.mdb", left)
    cut = (root / "data.mdb").read_bytes()
    code = """
try:
    LMDBStore(path)
except CorruptStoreError as error:
    say(str(error))
"""
    assert "restore it from a backup" in in_process(code, root)
    assert (root / "data.mdb").read_bytes() == cut


def test_a_sound_file_may_be_shorter_than_its_page_count(root: Path) -> None:
    """LMDB never writes the pages that a transaction takes and frees again."""
    with LMDBStore(root) as store:
        with store.transaction() as txn:
            txn.write("p", "s", "k", b"v")
            txn.write("p", "s", "big", bytes(200 * KIB))
            txn.remove("p", "s", "big")
        info = store._opened().gate.handle.info()  # type: ignore[union-attr]
    assert (root / "data.mdb").stat().st_size < (info["last_pgno"] + 1) * 4096
    with LMDBStore(root) as store:
        assert content(store) == {("p", "s", "k"): b"v"}
        store.write("p", "s", "more", bytes(300 * KIB))


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    "garbage", [b"not LMDB", b"\0" * 20000, b"SQLite format 3\0" * 1000, os.urandom(20000)]
)
def test_garbage_is_refused(root: Path, garbage: bytes, marked: bool) -> None:
    filled(root)
    (root / "data.mdb").write_bytes(garbage)
    if not marked:
        (root / MARKER).unlink()
    with pytest.raises(CorruptStoreError, match="damaged"):
        LMDBStore(root)
    assert (root / "data.mdb").read_bytes() == garbage
    assert (root / MARKER).exists() is marked


@pytest.mark.parametrize("marked", [True, False])
def test_the_format_of_lmdb_1_is_refused(root: Path, marked: bool) -> None:
    root.mkdir()
    with lmdb.open(str(root), lib_version=1, max_dbs=8) as env, env.begin(write=True) as txn:
        txn.put(b"k", b"v")
    data = (root / "data.mdb").read_bytes()
    if marked:
        (root / MARKER).write_bytes(b"kvreplay lmdb 1\n")
    with pytest.raises(CorruptStoreError, match="LMDB 0.9"):
        LMDBStore(root)
    assert (root / "data.mdb").read_bytes() == data


@pytest.mark.parametrize("text", [b"kvreplay lmdb 2\n", b"", b"kvreplay lmdb 1", b"\xff" * 1000])
def test_another_marker_is_refused(root: Path, text: bytes) -> None:
    before = filled(root)
    (root / MARKER).write_bytes(text)
    data = (root / "data.mdb").read_bytes()
    with pytest.raises(CorruptStoreError, match="another format"):
        LMDBStore(root)
    assert (root / MARKER).read_bytes() == text
    assert (root / "data.mdb").read_bytes() == data
    (root / MARKER).write_bytes(b"kvreplay lmdb 1\n")
    with LMDBStore(root) as store:
        assert content(store) == before


@pytest.mark.parametrize("inside", [b"2", None])
@pytest.mark.parametrize("marked", [True, False])
def test_another_format_inside_is_refused(root: Path, inside: bytes | None, marked: bool) -> None:
    filled(root)
    with lmdb.open(str(root), max_dbs=8, lib_version=0) as env:
        meta = env.open_db(b"meta", create=False)
        with env.begin(write=True) as txn:
            if inside is None:
                txn.delete(b"format", db=meta)
            else:
                txn.put(b"format", inside, db=meta)
    if not marked:
        (root / MARKER).unlink()
    data = (root / "data.mdb").read_bytes()
    with pytest.raises(CorruptStoreError, match="another format"):
        LMDBStore(root)
    assert (root / "data.mdb").read_bytes() == data


def test_databases_that_are_missing_are_refused(root: Path) -> None:
    filled(root)
    with lmdb.open(str(root), max_dbs=8, lib_version=0) as env:
        expiry = env.open_db(b"expiry", create=False)
        with env.begin(write=True) as txn:
            txn.drop(expiry)
    with pytest.raises(CorruptStoreError):
        LMDBStore(root)


def test_a_missing_marker_is_written(root: Path) -> None:
    before = filled(root)
    (root / MARKER).unlink()
    with LMDBStore(root) as store:
        assert content(store) == before
    assert (root / MARKER).read_bytes() == b"kvreplay lmdb 1\n"
    (root / "data.mdb").write_bytes(b"")
    with pytest.raises(CorruptStoreError):
        LMDBStore(root)


@pytest.mark.parametrize("named", [True, False])
def test_a_foreign_environment_is_refused_and_untouched(root: Path, named: bool) -> None:
    root.mkdir()
    with lmdb.open(str(root), max_dbs=8, lib_version=0) as env:
        database = env.open_db(b"theirs") if named else None
        with env.begin(write=True) as txn:
            txn.put(b"k", b"v", db=database)
    data = (root / "data.mdb").read_bytes()
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match="another program"):
            LMDBStore(root)
        assert (root / "data.mdb").read_bytes() == data
        assert not (root / MARKER).exists()


@pytest.mark.parametrize("left", ["nothing", "lock.mdb", "data.mdb.0.tmp", "lock.mdb.0.tmp"])
def test_what_a_crash_at_the_very_beginning_leaves(root: Path, left: str) -> None:
    root.mkdir()
    if left != "nothing":
        (root / left).touch()
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")
    with LMDBStore(root) as store:
        assert store.read("p", "s", "k") == b"v"


def test_killed_at_each_step_of_making_a_store(root: Path, tmp_path: Path) -> None:
    """Whatever step it came to, the next opening goes on; a complete one is known as such."""
    needs_strace()
    deep = root.parent / "deep" / "store"
    marked = []
    for step in ("mkdir", "pwrite64", "fdatasync", "fsync", "link", "unlink", "rename"):
        for n in range(1, 50):
            shutil.rmtree(deep.parent, ignore_errors=True)
            before = (
                "strace", "-f", "-o", "/dev/null", "-e", f"trace={step}",
                "-e", f"inject={step}:signal=SIGKILL:when={n}",
            )  # fmt: skip
            with Process('LMDBStore(path).close(); say("made")', deep, before=before) as process:
                made = process.rest().strip() == "made"
            marked.append((deep / MARKER).exists())
            with LMDBStore(deep) as store:
                assert content(store) == {}
                store.write("p", "s", "k", b"v")
            with LMDBStore(deep) as store:
                assert content(store) == {("p", "s", "k"): b"v"}
            if made:
                break
        assert made
    assert len(marked) > 25
    assert set(marked) == {True, False}


@contextmanager
def damaged(root: Path, store: LMDBStore) -> Iterator[None]:
    """Scribble over the pages of the entries, below an open store."""
    store.close()
    pages = (root / "data.mdb").read_bytes()
    with (root / "data.mdb").open("r+b") as file:
        for at in range(2 * 4096, len(pages), 4096):
            if b"secret" in pages[at : at + 4096]:
                file.seek(at + 8)
                file.write(b"\xff" * 8)
    yield
    (root / "data.mdb").write_bytes(pages)


def test_damaged_pages_that_lmdb_notices(root: Path) -> None:
    """It notices few; then the caller is told, and no key is."""
    store = LMDBStore(root)
    store.write("p", "s", "secret", b"v")
    with damaged(root, store), LMDBStore(root) as again:
        for call in (
            lambda: again.read("p", "s", "secret"),
            lambda: again.list("p", "s"),
            lambda: again.write("p", "s", "secret", b"w"),
        ):
            with pytest.raises(CorruptStoreError, match="damaged") as caught:
                call()
            assert "secret" not in told(caught.value)
        with pytest.raises(CorruptStoreError), again.transaction() as txn:
            txn.read("p", "s", "secret")


# Directories, permissions, places that cannot be used.


def test_the_directories_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB flushes none. The marker comes last: it vouches for all that was flushed before."""
    flushed: list[str] = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}")
        marked = (tmp_path / "a" / "b" / MARKER).exists()
        data = (tmp_path / "a" / "b" / "data.mdb").exists()
        short = os.path.relpath(name, tmp_path)
        flushed.append("temporary" if short.endswith(".tmp") else f"{short} {data:d}{marked:d}")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    with LMDBStore(tmp_path / "a" / "b"):
        pass
    assert set(flushed[:4]) == {"a 00", ". 00", "a/b 00"}
    assert flushed[-3:] == ["a/b 10", "temporary", "a/b 11"]
    flushed.clear()
    with LMDBStore(tmp_path / "a" / "b"):
        pass
    assert flushed == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_permissions_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with LMDBStore(tmp_path / "a" / "store") as store:
            store.write("p", "s", "k", b"v")
            modes = {
                str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
                for path in tmp_path.rglob("*")
            }
    finally:
        os.umask(before)
    assert modes == {
        "a": 0o700,
        "a/store": 0o700,
        "a/store/data.mdb": 0o600,
        "a/store/lock.mdb": 0o600,
        f"a/store/{MARKER}": 0o600,
    }


def test_a_path_that_is_a_file(root: Path) -> None:
    root.write_bytes(b"precious")
    with pytest.raises(StoreError, match="not a directory"):
        LMDBStore(root)
    with pytest.raises(StoreError):
        LMDBStore(root / "below")
    assert root.read_bytes() == b"precious"


def test_a_path_of_links_that_go_round(root: Path) -> None:
    root.symlink_to(root)
    with pytest.raises(StoreError, match="symbolic links"):
        LMDBStore(root)


def test_a_link_that_leads_nowhere(root: Path) -> None:
    root.symlink_to(root.with_name("nowhere"))
    with pytest.raises(StoreError):
        LMDBStore(root)
    assert not root.with_name("nowhere").exists()


def test_a_read_only_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=4m"):
        with LMDBStore(disk / "store") as store:
            store.write("p", "s", "k", b"v")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("store", "new"):
            with pytest.raises(StoreError, match="writable") as caught:
                LMDBStore(disk / name)
            assert not isinstance(caught.value, CorruptStoreError | StoreFullError)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        with LMDBStore(disk / "store") as store:
            assert store.read("p", "s", "k") == b"v"


@pytest.mark.parametrize("what", ["folder", "data.mdb", "lock.mdb", MARKER, "parent"])
def test_permission_denied(tmp_path: Path, what: str) -> None:
    needs_root()
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    root = tmp_path / "parent" / "store"
    before = filled(root)
    for path in [root.parent, root, *root.iterdir()]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    denied = {"folder": root, "parent": root.parent}.get(what, root / what)
    denied.chmod(0)
    code = """
LMDBStore(path).close()  # whom nothing is denied; and all is imported that another user may not read
os.setgid(65534); os.setuid(65534)
try:
    LMDBStore(path)
except StoreError as error:
    assert type(error) is StoreError, type(error)
    say(str(error))
"""
    assert "permissions" in in_process(code, root)
    denied.chmod(0o777)
    with LMDBStore(root) as store:
        assert content(store) == before


def test_the_same_process_id_in_two_pid_namespaces(root: Path) -> None:
    """Two containers that share a volume: LMDB cannot tell their processes apart."""
    before = ("unshare", "--pid", "--fork", "--kill-child")
    try:
        able = not subprocess.run([*before, "true"], capture_output=True, check=False).returncode
    except FileNotFoundError:
        able = False
    if not able:
        unavailable("needs the right to make a PID namespace")
    code = """
try:
    store = LMDBStore(path)
    say(f"opened as {os.getpid()}")
    wait()
    store.close()
except StoreUnavailableError as error:
    say(str(error))
"""
    with Process(code, root, before=before) as one, Process(code, root, before=before) as other:
        first = one.hear()
        second = other.hear()
        said = sorted([first, second])
        assert said[1].startswith("opened as ")
        assert "PID namespace" in said[0]
        for process, line in ((one, first), (other, second)):
            if line.startswith("opened"):
                process.tell()
    in_process("LMDBStore(path).close()", root)


# Crashes and failing I/O.


def test_a_writer_that_is_killed_inside_a_transaction(root: Path) -> None:
    code = """
store = LMDBStore(path)
with store.transaction() as txn:
    txn.write("p", "s", "k", b"killed")
    for n in range(100):
        txn.write("p", "s", f"k{n}", bytes(3000))
    say("inside")
    wait()
"""
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"old")
        for n in range(3):
            with Process(code, root) as process, ThreadPoolExecutor(1) as pool:
                assert process.hear() == "inside"
                assert store.read("p", "s", "k") == (b"old" if n == 0 else b"w%d" % (n - 1))
                waiting = pool.submit(store.write, "p", "s", "k", b"w%d" % n)
                process.kill()
                waiting.result(60)
            assert content(store) == {("p", "s", "k"): b"w%d" % n}


COUNT = """
with LMDBStore(path, map_size=64 * 1024) as store:
    say("ready")
    while True:
        expected = store.read("p", "s", "n")
        while True:
            value = str(int(expected) + 1).encode()
            found = store.check_and_put("p", "s", "n", expected=expected, value=value, expires_at=9)
            if found == expected:
                break
            expected = found
        say(value.decode())
"""


def test_killed_at_random_while_counting(root: Path) -> None:
    """Every acknowledged increment is there, and at most one more for each process."""
    rng = random.Random(7)
    with LMDBStore(root) as store:
        store.write("p", "s", "n", b"0")
    for _ in range(8):
        with LMDBStore(root) as store:
            before = int(store.read("p", "s", "n"))
        with Process(COUNT, root) as one, Process(COUNT, root) as other:
            assert one.hear() == other.hear() == "ready"
            last = before
            for _ in range(rng.randrange(1, 150)):
                last = int(one.hear())
            one.popen.kill()
            other.popen.kill()
            said = [
                int(line)
                for process in (one, other)
                for line in process.rest().splitlines()
                if line
            ]
        acknowledged = max([last, *said])
        assert len(set(said)) == len(said), "no increment was acknowledged twice"
        with LMDBStore(root) as store:
            assert acknowledged <= int(store.read("p", "s", "n")) <= acknowledged + 2
            found = store.read("p", "s", "n")
            assert store.sweep("p", 8, 9) == SweepResult(0, 0, False)
            assert len(store.list("p", "s")) == 1
            store.check_and_put("p", "s", "n", expected=found, value=found)


FAULTY = """
import json
store = LMDBStore(path)
def transact():
    with store.transaction() as txn:
        txn.write("p", "s", "secret-b", b"hidden-b" * 2000)
        txn.write("p", "t", "secret-c", b"hidden-c")
def put(key, value, expires_at):
    assert store.check_and_put(
        "p", "s", key, expected=None, value=value, expires_at=expires_at) is None
steps = [
    lambda: put("secret-a", b"hidden-a", None),
    lambda: put("secret-due", b"hidden" * 3000, 5),
    transact,
    lambda: store.sweep("p", 5, 5),
    lambda: store.write("p", "s", "secret-d", b"hidden-d" * 1000),
    lambda: store.remove("p", "s", "secret-d"),
]
def told(error):
    return "" if error is None else f"{error!r} {error}" + told(error.__cause__) + told(error.__context__)
def content():
    found = {"/".join(address): len(store.read(*address)) for address in store.list_all_keys()}
    return json.dumps(found, sort_keys=True)
for step in steps:
    before = content()
    try:
        step()
        outcome = "ok"
    except StoreError as error:
        assert "secret" not in told(error) and "hidden" not in told(error), told(error)
        assert isinstance(error.__cause__, __import__("lmdb").Error), told(error)
        outcome = type(error).__name__
        if outcome != "OutcomeUnknownError":
            assert content() == before, (content(), before)
    say(json.dumps([outcome, before, content()]))
store.close()
"""


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("pwrite64", "error=EIO"),
        ("pwrite64", "error=ENOSPC"),
        ("pwrite64", "retval=16"),  # a short write
        ("writev", "error=EIO"),
        ("writev", "error=EDQUOT"),
        ("writev", "retval=16"),
        ("fdatasync", "error=EIO"),
        ("fdatasync", "error=ENOSPC"),
    ],
)
def test_each_step_of_each_commit_fails(root: Path, tmp_path: Path, call: str, fault: str) -> None:
    """Applied, not applied, or unknown, and never acknowledged and lost; usable again after."""
    needs_strace()
    log = tmp_path / "log"
    outcomes = set()
    for n in range(1, 100):
        shutil.rmtree(root, ignore_errors=True)
        LMDBStore(root).close()
        before = (
            "strace", "-f", "--seccomp-bpf", "-o", str(log), "-P", str(root / "data.mdb"),
            "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={n}",
        )  # fmt: skip
        said = [json.loads(line) for line in in_process(FAULTY, root, before=before).splitlines()]
        assert len(said) == 6
        for (_, _, after), (_, earlier, _) in zip(said, said[1:], strict=False):
            assert after == earlier
        last = json.loads(said[-1][2])
        with LMDBStore(root) as store:
            assert {"/".join(at): len(value) for at, value in content(store).items()} == last
        failed = [outcome for outcome, _, _ in said if outcome != "ok"]
        assert len(failed) == log.read_text().count("INJECTED"), "the next one works again"
        outcomes.update(failed)
        if not failed:
            assert last == {"p/s/secret-a": 8, "p/s/secret-b": 16000, "p/t/secret-c": 8}
            break
    assert n > 3
    known = {"error=EIO": "StoreError", "retval=16": "StoreError"}.get(fault, "StoreFullError")
    assert outcomes == ({known, "OutcomeUnknownError"} if call == "pwrite64" else {known})


def test_an_unknown_outcome_may_have_happened(root: Path, tmp_path: Path) -> None:
    """The page that makes it count reached the disk, only its confirmation did not."""
    needs_strace()
    code = """
store = LMDBStore(path)
try:
    store.write("p", "s", "k", b"v")
    say("ok")
except OutcomeUnknownError:
    say("unknown")
except StoreError:
    assert "k" not in store.list("p", "s")
    say("not")
store.list("p", "s")
try:
    store.write("p", "s", "later", b"v")
except StoreError:
    store.write("p", "s", "later", b"v")
store.close()
"""
    LMDBStore(root).close()
    data = str(root / "data.mdb")
    seen = set()
    for n in range(1, 10):
        with LMDBStore(root) as store:
            store.remove("p", "s", "k")
        before = (
            "strace", "-f", "--seccomp-bpf", "-o", str(tmp_path / "log"), "-P", data, "-e", "trace=pwrite64",
            "-e", f"inject=pwrite64:retval=0:when={n}",
        )  # fmt: skip
        said = in_process(code, root, before=before).split()
        seen.add(said[0])
        with LMDBStore(root) as store:
            assert "later" in store.list("p", "s")
    assert seen == {"ok", "not", "unknown"}


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the next commit happen, and then report that nobody knows.

    For what comes after an unknown outcome; the tests above make real ones.
    """

    def arm() -> None:
        commit = lmdb_environment.Environment.commit

        def fail(self: Any, env: Any, txn: Any) -> None:
            monkeypatch.setattr(lmdb_environment.Environment, "commit", commit)
            commit(self, env, txn)
            raise OutcomeUnknownError("may or may not") from lmdb.Error("meta page")

        monkeypatch.setattr(lmdb_environment.Environment, "commit", fail)

    return arm


def test_after_an_unknown_outcome_the_files_are_opened_again(
    store: LMDBStore, unknown: Callable[[], None]
) -> None:
    for n in range(3):
        handle = store._opened().gate.handle
        unknown()
        with pytest.raises(OutcomeUnknownError):
            store.write("p", "s", "k", b"%d" % n)
        assert store.read("p", "s", "k") == b"%d" % n
        assert store._opened().gate.handle is not handle
    unknown()
    with pytest.raises(OutcomeUnknownError), store.transaction() as txn:
        txn.write("p", "s", "k", b"txn")
    assert store.read("p", "s", "k") == b"txn"


@pytest.mark.parametrize("transaction", [True, False])
def test_an_unknown_outcome_stays_one_when_the_files_cannot_be_opened_again(
    store: LMDBStore, root: Path, unknown: Callable[[], None], transaction: bool
) -> None:
    """*Nothing changed* would be untrue; and the store is usable once the files are back."""
    unknown()
    away = root.with_name("away")
    with pytest.raises(OutcomeUnknownError):
        if transaction:
            with store.transaction() as txn:
                txn.write("p", "s", "k", b"v")
                os.rename(root / "data.mdb", away)
        else:
            os.rename(root / "data.mdb", away)
            store.write("p", "s", "k", b"v")
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match="data.mdb is missing"):
            store.read("p", "s", "k")
        with pytest.raises(CorruptStoreError, match="data.mdb is missing"):
            store.write("p", "s", "k", b"w")
        with pytest.raises(CorruptStoreError, match="data.mdb is missing"), store.transaction():
            pass
    os.rename(away, root / "data.mdb")
    assert store.read("p", "s", "k") == b"v"
    store.write("p", "s", "k", b"w")


def test_closing_after_the_files_could_not_be_opened_again(
    root: Path, unknown: Callable[[], None]
) -> None:
    store = LMDBStore(root)
    unknown()
    with pytest.raises(OutcomeUnknownError):
        store.write("p", "s", "k", b"v")
    store.close()
    assert lmdb_sharing._open == {}
    assert open_files_of(root) == []


def test_other_errors_inside_a_transaction_are_the_callers_own(store: LMDBStore) -> None:
    """Also if they are of another LMDB environment, or of another store."""
    handle = store._opened().gate.handle
    for error in (lmdb.MapFullError("theirs"), OutcomeUnknownError("theirs")):
        with pytest.raises(type(error)) as caught, store.transaction() as txn:
            txn.write("p", "s", "k", b"v")
            raise error
        assert caught.value is error
        assert content(store) == {}
        assert store._opened().gate.handle is handle
        assert map_size(store) == 16 * 1024**3


# What an error of LMDB means: those that nothing here could make real.


class Stub:
    """An environment whose ``begin`` answers with a real error of LMDB's."""

    def __init__(self, error: lmdb.Error | None) -> None:
        self._error = error

    def begin(self) -> Any:
        if self._error is not None:
            raise self._error
        return self

    def abort(self) -> None:
        pass


def an_error(kind: type[lmdb.Error], code: int = 0) -> Any:
    error: Any = kind(f"mdb_txn_commit: {os.strerror(code) if code > 0 else 'told'}")
    error.code, error.what, error.reason = code, "mdb_txn_commit", "told"
    return error


@pytest.mark.parametrize("kind", [lmdb.PanicError, lmdb.ReadersFullError, lmdb.Error])
def test_a_commit_whose_outcome_cannot_be_told_is_unknown(root: Path, kind: Any) -> None:
    """LMDB looks for a reader slot before it reports a panic: then no slot hides the panic."""
    failure = an_error(lmdb.Error, errno.EIO)
    env: Any = Stub(an_error(kind))
    assert type(lmdb_files.commit_error(env, failure, root)) is OutcomeUnknownError
    env = Stub(None)
    assert type(lmdb_files.commit_error(env, failure, Path("/proc"))) is not OutcomeUnknownError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (an_error(lmdb.PanicError, -30795), StoreUnavailableError),
        (an_error(lmdb.MapResizedError, -30785), StoreUnavailableError),
        (an_error(lmdb.MemoryError, errno.ENOMEM), StoreUnavailableError),
        (an_error(lmdb.CorruptedError, -30796), CorruptStoreError),
        (an_error(lmdb.PageNotFoundError, -30797), CorruptStoreError),
        (an_error(lmdb.DiskError, errno.ENOSPC), StoreFullError),
        (an_error(lmdb.Error, errno.EFBIG), StoreFullError),
        (an_error(lmdb.BadTxnError, -30782), CorruptStoreError),
        (an_error(lmdb.BadValsizeError, -30781), StoreError),
        (StoreFullError("as it is"), StoreFullError),
    ],
)
def test_what_an_error_means(root: Path, error: Any, expected: type[StoreError]) -> None:
    root.mkdir()
    assert type(lmdb_files.store_error(error, root)) is expected


def test_a_failure_on_a_disk_that_cannot_be_asked(root: Path) -> None:
    error = an_error(lmdb.Error, errno.EIO)
    assert type(lmdb_files.store_error(error, root / "gone")) is StoreError


def transact(store: LMDBStore) -> None:
    with store.transaction() as txn:
        txn.write("p", "s", "k", txn.read("p", "s", "k"))


def test_a_panic_that_is_met_later(store: LMDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's commit has panicked the environment: it is opened again, by who meets it."""
    store.write("p", "s", "k", b"v")
    gate = store._opened().gate
    for use in (
        lambda: store.read("p", "s", "k"),
        lambda: store.write("p", "s", "k", b"v"),
        lambda: transact(store),
    ):
        handle = gate.handle
        assert handle is not None

        class Panicked:
            def begin(self, write: bool = False) -> Any:
                raise an_error(lmdb.PanicError, -30795)

            def info(self, handle: Any = handle) -> Any:
                return handle.info()

            def stat(self, handle: Any = handle) -> Any:
                return handle.stat()

            def close(self, handle: Any = handle) -> None:
                handle.close()

        gate.handle = Panicked()  # type: ignore[assignment]
        use()
        assert isinstance(gate.handle, lmdb.Environment)
        assert gate.handle is not handle


# Long walks.


def test_a_walk_takes_pages(store: LMDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_entries, "PAGE", 3)
    addresses = [("p", s, f"k{n}") for s in ("", "s", "t") for n in range(7)]
    for count in range(len(addresses) + 1):
        assert list(store.list_all_keys()) == addresses[:count]
        assert len(store.list("p", "s")) == min(max(count - 7, 0), 7)
        if count < len(addresses):
            store.write(*addresses[count], b"v")
    seen = []
    for n, address in enumerate(store.list_all_keys()):
        seen.append(address)
        if n % 2:
            store.remove(*address)
            store.write(address[0], address[1], f"0{n}", b"new")
    assert seen == addresses


def test_a_paused_walk_keeps_no_old_pages(root: Path) -> None:
    """A read transaction held over 1000 commits would keep every page that they replaced."""
    with LMDBStore(root, durability="process") as store:
        with store.transaction() as txn:
            for n in range(2500):
                txn.write("p", "s", f"k{n:04}", b"v")
        walks = [store.list_all_keys() for _ in range(3)]
        for walk in walks:
            next(walk)
        for n in range(50):
            store.write("p", "s", "k0000", bytes([n]) * 3000)
        settled = (root / "data.mdb").stat().st_size
        for n in range(1000):
            store.write("p", "s", "k0000", bytes([n % 256]) * 3000)
        assert (root / "data.mdb").stat().st_size < settled + 100 * KIB
        for walk in walks:
            assert len(list(walk)) == 2499


# Threads.


def test_a_blocked_writer_can_be_interrupted_without_harm(root: Path) -> None:
    """Ctrl-C while another process holds the lock: seen when it is free, and nothing is stuck."""
    hold = """
store = LMDBStore(path)
with store.transaction() as txn:
    say("inside")
    wait()
store.close()
"""
    blocked = """
store = LMDBStore(path)
say("ready")
wait()
for enter in (lambda: store.write("p", "s", "k", b"v"), lambda: store.transaction().__enter__()):
    try:
        say("blocking")
        enter()
    except KeyboardInterrupt:
        say("interrupted")
    else:
        say("no")
    wait()
store.write("p", "s", "k", b"w")
store.close()
say("closed")
"""
    LMDBStore(root).close()
    with Process(blocked, root) as process:
        assert process.hear() == "ready"
        for _ in range(2):
            with Process(hold, root) as holder:
                assert holder.hear() == "inside"
                process.tell()
                assert process.hear() == "blocking"
                until_it_waits(process.popen.pid)
                process.popen.send_signal(signal.SIGINT)
                holder.tell()
                assert process.hear() == "interrupted"
                holder.join()
        process.tell()
        assert process.hear() == "closed"
        process.join()


def until_it_waits(pid: int) -> None:
    """Until a process waits for a lock that another one holds."""
    while "lock" not in Path(f"/proc/{pid}/wchan").read_text():
        pass


def test_no_thread_and_no_file_before_it_is_opened(root: Path) -> None:
    code = """
import threading
say(len(threading.enumerate()))
store = LMDBStore(path)
say(len(threading.enumerate()))
store.close()
say(sum("mdb" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")))
"""
    assert in_process(code, root).split() == ["1", "1", "0"]


def test_the_source_of_errors_is_the_drivers(store: LMDBStore) -> None:
    with pytest.raises(KeyNotFoundError) as caught:
        store.read("p", "s", "secret")
    assert "secret" not in told(caught.value)
