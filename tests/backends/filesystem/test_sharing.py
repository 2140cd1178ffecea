"""Threads and processes that share one store, and their locks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends import file_lock
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.filesystem.layout import EntryFile
from kvreplay.backends.filesystem.locks import flocked, lock_file
from support.file_stores import NEW, OLD, beside, index_files
from support.forking import Child

COUNT = """
import sys
from kvreplay.backends.filesystem import FilesystemStore
root, times = sys.argv[1], int(sys.argv[2])
with FilesystemStore(root, durability="process") as store:
    for _ in range(times):
        found, expected = store.read("p", "s", "n"), None
        while found != expected:
            expected = found
            value = str(int(expected) + 1).encode()
            found = store.check_and_put("p", "s", "n", expected=expected, value=value, expires_at=5)
"""


def test_check_and_put_is_atomic_over_processes(root: Path) -> None:
    with FilesystemStore(root) as store:
        store.write("p", "s", "n", b"0")
        command = [sys.executable, "-W", "error", "-c", COUNT, str(root), "150"]
        children = [subprocess.Popen(command) for _ in range(4)]
        assert [child.wait() for child in children] == [0] * 4
        assert store.read("p", "s", "n") == b"600"
        assert len(index_files(root)) == 2  # one marker, one stamp


def test_check_and_put_is_atomic_over_threads(root: Path) -> None:
    with FilesystemStore(root, durability="process") as store, ThreadPoolExecutor(8) as pool:
        store.write("p", "s", "n", b"0")
        start = threading.Barrier(8)

        def count() -> None:
            start.wait()
            for _ in range(100):
                found, expected = store.read("p", "s", "n"), None
                while found != expected:
                    expected = found
                    value = str(int(expected) + 1).encode()
                    found = (
                        store.check_and_put("p", "s", "n", expected=expected, value=value) or b""
                    )

        for future in [pool.submit(count) for _ in range(8)]:
            future.result()
        assert store.read("p", "s", "n") == b"800"
    assert index_files(root) == set()


def test_readers_and_lists_during_writes(root: Path) -> None:
    with FilesystemStore(root, durability="process") as store, ThreadPoolExecutor(4) as pool:
        store.write("p", "s", "stays", OLD)
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                assert store.read("p", "s", "stays") in (OLD, NEW)
                for names in (store.list("p", "s"), [k for _, _, k in store.list_all_keys()]):
                    assert names.count("stays") == 1
                    assert set(names) <= {"stays", "comes"}

        watchers = [pool.submit(watch) for _ in range(3)]
        try:
            for value in (OLD, NEW) * 100:
                store.write("p", "s", "stays", value)
                store.write("p", "s", "comes", value)
                store.remove("p", "s", "comes")
        finally:
            done.set()
        for watcher in watchers:
            watcher.result()


def test_writers_race_with_sweepers(root: Path) -> None:
    """Entries that are due at once: every one is removed, and once; no folder is missed."""
    with FilesystemStore(root, durability="process") as store, ThreadPoolExecutor(4) as pool:
        done = threading.Event()

        def write(name: str) -> None:
            for n in range(200):
                assert (
                    store.check_and_put(
                        "p", "s", f"{name}{n}", expected=None, value=b"v", expires_at=5
                    )
                    is None
                )

        def sweep() -> int:
            removed = 0
            while not done.is_set():
                removed += store.sweep("p", 5, 7).removed
            return removed

        sweepers = [pool.submit(sweep) for _ in range(2)]
        writers = [pool.submit(write, name) for name in "ab"]
        try:
            for writer in writers:
                writer.result()
        finally:
            done.set()
        removed = sum(sweeper.result() for sweeper in sweepers)
        assert removed + store.sweep("p", 5, 999).removed == 400
        assert store.list("p", "s") == []
    assert index_files(root) == set()
    assert list((beside(root) / "expiry" / "p").iterdir()) == []
    assert list((beside(root) / "stamps" / "p").iterdir()) == []
    assert list((root / "p").iterdir()) == []


def test_forked_child_goes_on(store: FilesystemStore) -> None:
    store.write("p", "s", "n", b"parent")

    def child() -> None:
        assert store.check_and_put("p", "s", "n", expected=b"parent", value=b"child") == b"parent"

    Child(child).join()
    assert store.read("p", "s", "n") == b"child"


ORPHANED_LOCK = """
import os, signal, sys, threading
from kvreplay.backends.filesystem import FilesystemStore
store = FilesystemStore(sys.argv[1])
reached = threading.Event()
def stop_here(*args):
    reached.set()
    threading.Event().wait()
os.rename = stop_here
threading.Thread(target=store.write, args=("p", "s", "k", b"1"), daemon=True).start()
reached.wait()
import warnings
warnings.simplefilter("ignore")  # 3.12 warns of a fork with threads: that is the case here
if os.fork() == 0:
    os.close(1)
    os.read(0, 1)  # until the test ends
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_forked_child_does_not_keep_its_dead_parents_lock(root: Path) -> None:
    """The parent dies in the middle of a write; its child lives on."""
    with FilesystemStore(root) as store:
        child = subprocess.Popen(
            [sys.executable, "-c", ORPHANED_LOCK, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.read() == b""  # the parent is dead, the child is past the fork
            with flocked(lock_file(str(beside(root)), EntryFile("p", "s", "k").stripe), wait=False):
                pass
            store.write("p", "s", "k", b"2")
        assert child.returncode == -signal.SIGKILL
        assert store.read("p", "s", "k") == b"2"


def test_a_copy_of_a_lock_does_not_keep_it(root: Path) -> None:
    """Such as a child has that a C library forked, or subprocess until it executes."""
    FilesystemStore(root).close()
    lock = lock_file(str(beside(root)), 0)
    with flocked(lock):
        copies = [os.dup(fd) for fd in file_lock._opened.files]
        with pytest.raises(BlockingIOError), flocked(lock, wait=False):
            pass
    with flocked(lock, wait=False):
        pass
    assert len(copies) == 1
    os.close(copies[0])


@pytest.mark.parametrize("module", [fcntl, os])
def test_a_lock_whose_release_fails_does_not_deny_the_change(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    """*No entry was changed* would be untrue; and no later call is locked out."""
    release = {fcntl: "flock", os: "close"}[module]
    original = getattr(module, release)
    lock = lock_file(str(beside(root)), EntryFile("p", "s", "k").stripe)
    failed = []

    def fail(fd: int, *operation: int) -> None:
        ours = os.readlink(f"/proc/self/fd/{fd}") == lock and operation in ((), (fcntl.LOCK_UN,))
        if module is os or not ours:
            original(fd, *operation)  # Linux gives a descriptor back whatever it reports
        if ours:
            failed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(module, release, fail)
        store.write("p", "s", "k", b"1")
    assert len(failed) == 1
    with flocked(lock, wait=False):
        pass
    assert store.read("p", "s", "k") == b"1"
