"""Readers: their slots, those of killed ones, and walks that keep no old pages."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb import entries as lmdb_entries
from kvreplay.backends.lmdb import readers as lmdb_readers
from kvreplay.errors import StoreUnavailableError
from support.lmdb_stores import KIB, Process, environment_of, handle_of, in_process, map_size

READ = """
with LMDBStore(path) as store:
    store._opened().handle.read(lambda txn: (say("reading"), wait()))
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
            # LMDB cannot free them while it opens: a process that has it open already does.
            assert in_process(OPEN, root).strip() == "unavailable"
            if call == "read":
                assert store.read("p", "s", "k") == b"v"
            else:
                assert store.list("p", "s") == ["k"]
            assert in_process(OPEN, root).strip() == "opened"


def test_opening_frees_the_slots_of_killed_readers(root: Path) -> None:
    """And with them the old pages that such a reader still keeps."""
    with LMDBStore(root) as store:
        handle = handle_of(store)
        with Process(READ, root) as process:
            assert process.hear() == "reading"
            pid = str(process.pid)
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

        staying = pool.submit(environment_of(store).handle.read, stay)
        assert inside.wait(30)
        with pytest.raises(StoreUnavailableError):
            store.read("p", "s", "k")
        over.set()
        staying.result()
        assert store.read("p", "s", "k") == b"v"


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


def overwrite(store: LMDBStore, times: int) -> int:
    """Overwrite some entries again and again; return how large the file is then."""
    for n in range(times):
        store.write("p", "s", f"k{n % 10}", bytes(3000))
    return (store._path / "data.mdb").stat().st_size


@pytest.fixture
def quick(root: Path) -> Iterator[LMDBStore]:
    with LMDBStore(root, durability="process") as store:
        yield store


def test_a_killed_reader_does_not_make_the_file_grow(quick: LMDBStore, root: Path) -> None:
    before = overwrite(quick, 100)
    with Process(READ, root) as reader:
        assert reader.hear() == "reading"
        reader.kill()
    assert str(reader.pid) in handle_of(quick).readers()
    assert overwrite(quick, 400) <= before + 600 * KIB
    assert str(reader.pid) not in handle_of(quick).readers()


def test_a_stopped_reader_is_told_of_and_keeps_its_pages(
    quick: LMDBStore,
    root: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, by its pid. Its slot is its own, however the file grows."""
    code = """
def stay(txn):
    first = txn.get(b"p\\0s\\0k0", None, store._opened().handle.entries)
    say("reading")
    wait()
    say(str(first == txn.get(b"p\\0s\\0k0", None, store._opened().handle.entries)))
with LMDBStore(path, durability="process") as store:
    store._opened().handle.read(stay)
"""
    monkeypatch.setattr(lmdb_readers, "_OLD", 100)
    before = overwrite(quick, 100)
    with Process(code, root) as reader, caplog.at_level(logging.WARNING, "kvreplay"):
        assert reader.hear() == "reading"
        os.kill(reader.pid, signal.SIGSTOP)
        assert overwrite(quick, 400) > before + 1000 * KIB
        assert str(reader.pid) in handle_of(quick).readers()
        os.kill(reader.pid, signal.SIGCONT)
        reader.tell()
        assert reader.hear() == "True"
        reader.join()
    told = [each.message for each in caplog.records if "grows" in each.message]
    assert len(told) == 1
    assert f"process {reader.pid} " in told[0]


def test_a_full_map_does_not_grow_for_a_killed_reader(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_readers, "_LEAST", 1000)  # pages: it is not looked for before
    with LMDBStore(root, map_size=1024 * KIB, durability="process") as store:
        overwrite(store, 50)
        with Process(READ.replace("path)", 'path, durability="process")'), root) as reader:
            assert reader.hear() == "reading"
            reader.kill()
        overwrite(store, 300)
        assert map_size(store) == 1024 * KIB
