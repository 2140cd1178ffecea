"""Backups and compactions that are killed, run out of room, or are disturbed by other processes."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from lmdb.verify import verify

from kvreplay import open_store
from kvreplay.backends.lmdb import LMDBStore, copying
from kvreplay.backends.sqlite import SQLiteStore, connections
from kvreplay.errors import (
    ConfigError,
    StoreFullError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from kvreplay.testing.backups import fill, told_by
from kvreplay.testing.entries import content
from kvreplay.testing.processes import Process
from kvreplay.testing.threads import elsewhere
from support.disks import mounted
from support.forking import Child

ENGINES = ("filesystem", "lmdb", "sqlite")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(engine: str, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``opened("name")`` opens a store of the engine in the test's folder."""
    stores = []

    def opened(name: str = "store", **options: Any) -> Any:
        stores.append(open_store({"url": f"{engine}:{tmp_path / name}", **options}))
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(number: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the call, which kills its process instead at so many calls from now."""
    left = [number]

    def counted(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        return die() if not left[0] else call(*args, **options)

    return counted


STEPS = ("fdatasync", "fsync", "rename", "link", "sendfile", "pwrite", "mkdir", "unlink")


@pytest.mark.any_python
@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("step", STEPS)
def test_a_backup_that_is_killed_leaves_no_store(
    step: str,
    number: int,
    opened: Callable[..., Any],
    tmp_path: Path,
) -> None:
    store = opened()
    fill(store)
    told = told_by(store)

    def back_up() -> None:
        setattr(os, step, dies_at(number, getattr(os, step)))
        store.backup(tmp_path / "copy")

    code = Child(back_up).wait()
    assert code in (0, -signal.SIGKILL)
    assert told_by(store) == told
    place = tmp_path / "copy"
    if code and not place.exists():  # else it was killed after the copy was in place
        with pytest.raises((StoreNotFoundError, ConfigError)):
            opened("copy", create=False)
        store.backup(tmp_path / "another")
        place = tmp_path / "another"
    assert told_by(opened(place.name, create=False)) == told


def test_what_is_cut_short_is_no_lmdb_file(tmp_path: Path) -> None:
    with LMDBStore(tmp_path / "store") as store:
        fill(store)

        def back_up() -> None:
            os.pwrite = die  # type: ignore[assignment]  # where the first page is written, the last
            store.backup(tmp_path / "copy")

        assert Child(back_up).wait() == -signal.SIGKILL
        (left,) = tmp_path.glob("copy.*.tmp")
        with pytest.raises(Exception, match="nothing was"):
            LMDBStore(left, create=False)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("step", ["fsync", "pwrite", "rename", "ftruncate"])
def test_a_compaction_of_lmdb_that_is_killed(step: str, number: int, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with LMDBStore(path) as store:
        fill(store)
        told = told_by(store)

    def compact() -> None:
        with LMDBStore(path) as store:
            setattr(os, step, dies_at(number, getattr(os, step)))
            store.compact()

    assert Child(compact).wait() in (0, -signal.SIGKILL)
    with LMDBStore(path) as store:
        assert told_by(store) == told
        store.compact()
        assert told_by(store) == told
    assert verify(str(path)) == []
    assert sorted(each.name for each in path.iterdir() if "compacting" in each.name) == []


def test_a_compaction_of_sqlite_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with SQLiteStore(path) as store:
        fill(store)
        for n in range(2000):
            store.write("p", "large", f"{n % 200}", os.urandom(2000))
        told = told_by(store)

    def compact() -> None:
        with SQLiteStore(path) as store:
            threading.Timer(0.003, die).start()
            while True:
                store.compact()

    assert Child(compact).wait() == -signal.SIGKILL
    with SQLiteStore(path) as store:
        assert told_by(store) == told
        assert list(store.check()) == []


def test_no_room(engine: str, opened: Callable[..., Any], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    store = opened()
    for n in range(100):
        store.write("p", "s", f"secret{n}", os.urandom(10_000))
    told = told_by(store)
    with mounted(disk, "size=512k"):
        with pytest.raises(StoreFullError, match="no room for the backup") as caught:
            store.backup(disk / "copy")
        assert "secret" not in str(caught.value)
        assert list(disk.iterdir()) == []
    assert told_by(store) == told


@pytest.mark.parametrize("kind", [LMDBStore, SQLiteStore])
def test_no_room_to_compact(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(tmp_path / "disk", "size=40m") as disk, kind(disk / "store") as store:
        monkeypatch.setenv("SQLITE_TMPDIR", str(disk))
        for n in range(1200):
            store.write("p", "s", f"k{n}", os.urandom(10_000))
        (disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - 1_000_000))
        told = told_by(store)
        with pytest.raises(StoreFullError):
            store.compact()
        assert told_by(store) == told
        (disk / "ballast").unlink()
        store.compact()
        assert told_by(store) == told
        assert [each.name for each in disk.glob("*/*compacting*")] == []


def test_into_the_store_itself(tmp_path: Path) -> None:
    with open_store(f"filesystem:{tmp_path / 'store'}") as store:
        store.write("p", "s", "k", b"v")
        backup: Any = store
        for place in ("store/copy", "store/p/s/copy", "store.kvreplay/copy"):
            with pytest.raises(ConfigError, match="inside of the store"):
                backup.backup(tmp_path / place)
        assert content(store) == {("p", "s", "k"): b"v"}


def test_a_folder_that_cannot_be_made(opened: Callable[..., Any], tmp_path: Path) -> None:
    store = opened()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Exception, match="none was made") as caught:
        store.backup(tmp_path / "file" / "copy")
    assert not isinstance(caught.value, OSError)


def test_in_a_transaction_of_its_own_thread(tmp_path: Path) -> None:
    with LMDBStore(tmp_path / "store") as store:
        with store.transaction() as transaction:
            for call in (store.compact, lambda: store.backup(tmp_path / "copy")):
                with pytest.raises(Exception, match="through the transaction"):
                    call()
            transaction.write("p", "s", "k", b"v")
        assert content(store) == {("p", "s", "k"): b"v"}
    assert not (tmp_path / "copy").exists()


def test_a_forked_child_makes_a_backup(opened: Callable[..., Any], tmp_path: Path) -> None:
    store = opened()
    fill(store)
    Child(lambda: store.backup(tmp_path / "copy")).join()
    store.backup(tmp_path / "own")
    assert told_by(opened("copy")) == told_by(opened("own")) == told_by(store)


# LMDB: what a backup pins, and who must be away for a compaction.


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What is done after the first part of a copy; each only once."""
    actions: list[Callable[[], object]] = []
    flush = os.fdatasync

    def flush_and_act(number: int) -> None:
        flush(number)
        if actions:
            elsewhere(actions.pop())

    monkeypatch.setattr(os, "fdatasync", flush_and_act)
    monkeypatch.setattr(copying, "_PART", 16 * 1024)
    monkeypatch.setattr(connections, "_COPIED_AT_ONCE", 4)
    return actions


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"], indirect=True)
def test_one_moment(
    engine: str, opened: Callable[..., Any], tmp_path: Path, slowly: list[Any]
) -> None:
    """What others write between two parts is not in the copy, and it is sound."""
    store = opened()
    for n in range(300):
        store.write("p", "s", f"k{n:03}", b"before" * 100)
    told = told_by(store)

    def change() -> None:
        for n in range(0, 300, 2):
            store.write("p", "s", f"k{n:03}", b"after" * 200)
            store.remove("p", "s", f"k{n + 1:03}")

    def change_again() -> None:
        change()
        store.write("p", "s", "later", b"v")

    slowly += [change_again, change, change]
    store.backup(tmp_path / "copy")
    assert slowly == []
    if engine == "lmdb":
        assert verify(str(tmp_path / "copy")) == []
    assert told_by(opened("copy")) == told
    assert store.read("p", "s", "later") == b"v"


def grow(store: Any) -> None:
    for n in range(40):
        store.write("p", "grown", f"{n}", bytes(20_000))


def fork(store: Any) -> None:
    """Let a child close what it has inherited."""
    Child(lambda: store.write("p", "s", "child", b"v")).join()


@pytest.mark.parametrize("disturb", [grow, fork], ids=["grows", "forks"])
def test_a_lost_pin_is_noticed(
    disturb: Callable[[Any], None],
    tmp_path: Path,
    slowly: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pins = []
    pin = copying.Pin.is_kept
    monkeypatch.setattr(
        copying.Pin, "is_kept", lambda self, handle: pins.append(pin(self, handle)) or pins[-1]
    )
    with LMDBStore(tmp_path / "store", map_size=256 * 1024) as store:
        for n in range(10):
            store.write("p", "s", f"k{n}", bytes(9000))
        slowly.append(lambda: disturb(store))
        store.backup(tmp_path / "copy")
        assert pins == [False, True]
        assert verify(str(tmp_path / "copy")) == []
        with LMDBStore(tmp_path / "copy") as copy:
            assert told_by(copy) == told_by(store)


def test_a_backup_that_is_always_disturbed_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying.Pin, "is_kept", lambda self, handle: False)
    with LMDBStore(tmp_path / "store") as store:
        fill(store)
        with pytest.raises(StoreUnavailableError, match="no backup"):
            store.backup(tmp_path / "copy")
        assert [each.name for each in tmp_path.iterdir()] == ["store"]


def test_a_backup_leaves_no_reader(tmp_path: Path) -> None:
    """Else the file would grow with each change, for ever."""
    with LMDBStore(tmp_path / "store") as store:
        fill(store)
        for n in range(3):
            store.backup(tmp_path / f"copy{n}")
        environment = store._environment
        assert environment is not None
        store.write("p", "s", "k", b"v")
        last = environment.handle.files.env.info()["last_txnid"]
        readers = environment.handle.files.env.readers().splitlines()[1:]
        assert all(line.split()[-1] in ("-", str(last)) for line in readers if line.strip())
        size = (tmp_path / "store" / "data.mdb").stat().st_size
        for _ in range(300):
            store.write("p", "s", "k", bytes(3000))
        assert (tmp_path / "store" / "data.mdb").stat().st_size <= size + 2**20


def test_lmdb_is_not_compacted_while_another_process_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with LMDBStore(path) as store:
        store.write("p", "s", "k", b"v")
        process = Process(LMDBStore, path, _wait_for_a_key)
        process.go()
        try:
            while ("p", "s", "here") not in store.list_all_keys():
                os.sched_yield()
            with pytest.raises(StoreUnavailableError, match=r"process \d+ has .*nothing was"):
                store.compact()
            store.write("p", "s", "go", b"v")
            process.result()
        finally:
            process.kill()
        store.compact()
        assert store.read("p", "s", "k") == b"v"


def _wait_for_a_key(store: Any) -> None:
    store.write("p", "s", "here", b"v")
    while ("p", "s", "go") not in store.list_all_keys():
        os.sched_yield()


def test_lmdb_counts_on_after_a_compaction(tmp_path: Path) -> None:
    """The ids of transactions tell two states of an entry apart, and older copies of the file."""
    with LMDBStore(tmp_path / "store") as store, LMDBStore(tmp_path / "store") as other:
        for n in range(50):
            store.write("p", "s", f"k{n}", b"v")
        assert store._environment is not None
        env = store._environment.handle
        before = env.files.env.info()["last_txnid"]
        store.compact()
        other.write("p", "s", "k", b"v")
        assert env.files.env.info()["last_txnid"] > before
        assert other.identity == store.identity
        store.compact()
        assert verify(str(tmp_path / "store")) == []


# SQLite.


def test_sqlite_is_compacted_while_another_process_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with SQLiteStore(path) as store:
        store.write("p", "s", "k", b"v")
        process = Process(SQLiteStore, path, _wait_for_a_key)
        process.go()
        try:
            while ("p", "s", "here") not in store.list_all_keys():
                os.sched_yield()
            store.compact()
            store.write("p", "s", "go", b"v")
            process.result()
        finally:
            process.kill()
        assert sorted(store.list("p", "s")) == ["go", "here", "k"]


def test_a_compaction_keeps_the_identities_of_rows(tmp_path: Path) -> None:
    """By them a process knows what it has removed lazily; see removals.py."""
    path = tmp_path / "store"

    def rows() -> list[Any]:
        with closing(sqlite3.connect(path)) as db:
            sql = "SELECT primary_namespace, secondary_namespace, key, sort_order, rowid"
            return db.execute(f"{sql} FROM ldk_node_data ORDER BY 1, 2, 3").fetchall()

    with SQLiteStore(path) as store:
        fill(store)
        before = rows()
        store.compact()
        assert rows() == before
        assert len(before) == len({row[4] for row in before}) < max(row[4] for row in before)


def test_sqlite_waits_for_its_turn_to_compact(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "store", lock_timeout=0.1) as store:
        store.write("p", "s", "k", b"v")
        with closing(sqlite3.connect(tmp_path / "store", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match="nothing was changed"):
                store.compact()
            db.execute("ROLLBACK")
        store.compact()
        assert content(store) == {("p", "s", "k"): b"v"}
