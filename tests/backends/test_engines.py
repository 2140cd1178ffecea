"""What our engines promise beyond the store contract: what each is, and what its errors say."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.errors import ConfigError, StoreError, StoreUnavailableError
from kvreplay.store import ExpiringKVStore, SweepResult, TransactionalKVStore
from kvreplay.testing.entries import every_call, put
from support.waiting import HeldTransaction


def test_a_capability_is_there_or_absent(engine: Any, store: Any) -> None:
    assert isinstance(store, ExpiringKVStore)
    assert isinstance(store, TransactionalKVStore) is engine.transactional


def test_reads_are_local(engine: Any, store: Any) -> None:
    is_here = engine.has_files or not engine.durable
    assert getattr(store, "reads_are_local", False) is is_here
    assert getattr(store, "spans_machines", False) is not is_here


@pytest.mark.parametrize("wrong", ["false", 0, None])
def test_create_is_a_bool(wrong: Any, tmp_path: Path) -> None:
    """A text from the environment, such as "false", would count as true, and make a store."""
    engines: list[Callable[[], Any]] = [
        lambda: MemoryStore(create=wrong),
        lambda: LMDBStore(tmp_path / "store", create=wrong),
        lambda: FilesystemStore(tmp_path / "store", create=wrong),
    ]
    for opening in engines:
        with pytest.raises(ConfigError, match="create must be"):
            opening()
    assert list(tmp_path.iterdir()) == []


BOUNDED = {"filesystem": FilesystemStore, "lmdb": LMDBStore, "sqlite": SQLiteStore}


@pytest.mark.parametrize("bound", [0.05, "50ms", "0.05", timedelta(milliseconds=50)])
@pytest.mark.parametrize("name", BOUNDED)
def test_the_time_to_wait_is_any_duration(name: str, bound: Any, tmp_path: Path) -> None:
    with BOUNDED[name](tmp_path / "store", lock_timeout=bound) as store:
        store.write("p", "s", "k", b"v")
        with held(store, tmp_path), pytest.raises(StoreUnavailableError, match=r"within 0\.05 s"):
            store.write("p", "s", "k", b"w")
        assert store.read("p", "s", "k") == b"v"


@contextlib.contextmanager
def held(store: Any, folder: Path) -> Iterator[None]:
    """Somebody else has the turn to write."""
    if hasattr(store, "transaction"):
        transaction = HeldTransaction(store)
        yield
        transaction.end()
    else:
        with contextlib.ExitStack() as files:
            for path in (folder / "store.kvreplay" / "locks").iterdir():
                fcntl.flock(files.enter_context(open(path, "rb")), fcntl.LOCK_EX)
            yield


@pytest.mark.parametrize("bound", ["soon", "5 parsec", "0s", timedelta(0), 10**400, True])
@pytest.mark.parametrize("name", BOUNDED)
def test_the_time_to_wait_is_a_duration_above_0(name: str, bound: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match='lock_timeout must be above 0.*"10s"; nothing was opened'
    ):
        BOUNDED[name](tmp_path / "store", lock_timeout=bound)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_at_its_limit_knows_that_nothing_is_left(store: Any) -> None:
    put(store, "due", b"v", 5)
    put(store, "live", b"v", 500)
    assert store.sweep("p", 5, 1) == SweepResult(1, 1, False)


def test_a_closed_store_says_so(store: Any) -> None:
    store.write("p", "s", "k", b"v")
    store.close()
    for call in [*every_call(store), lambda: store.list_all_keys()]:
        with pytest.raises(StoreError, match="closed"):
            call()
    assert "closed" in repr(store)


def calls_in(txn: Any) -> list[Any]:
    return [
        lambda: txn.read("p", "s", "k"),
        lambda: txn.write("p", "s", "k", b"w"),
        lambda: txn.check_and_put("p", "s", "k", expected=b"v", value=b"w"),
    ]


def test_a_refusal_about_transactions_says_why(transactional: Any) -> None:
    with transactional.transaction() as txn:
        with pytest.raises(StoreError, match="holds a transaction"):
            transactional.write("p", "s", "k", b"v")
        with ThreadPoolExecutor(1) as pool:
            for call in calls_in(txn):
                with pytest.raises(StoreError, match="thread"):
                    pool.submit(call).result(30)
    for call in calls_in(txn):
        with pytest.raises(StoreError, match="ended"):
            call()


@pytest.mark.parametrize("store_class", [FilesystemStore, LMDBStore])
def test_a_current_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_class: Any
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="does not exist any more; nothing was opened"):
        store_class("store")
    with store_class(tmp_path / "store") as store:
        store.write("p", "s", "k", b"v")
