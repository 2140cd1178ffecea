"""A neighbour that is stopped while it holds a lock: who waits, how long, and what is said."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay import StoreUnavailableError
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.filesystem.layout import EntryFile
from kvreplay.backends.filesystem.locks import flocked, lock_file
from kvreplay.errors import KeyNotFoundError, StoreError
from kvreplay.store import Entry
from support.file_stores import NEW, OLD, beside, value_of

# Every stripe, as docs/format.md names them.
HOLD = """
import fcntl, sys
files = [open(f"{sys.argv[1]}/locks/{stripe:02x}", "a") for stripe in range(256)]
for file in files:
    fcntl.flock(file, fcntl.LOCK_EX)
print("holding", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stopped(root: Path) -> Iterator[int]:
    """The pid of a process that holds every lock of the store, and is stopped."""
    FilesystemStore(root).close()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(beside(root))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"holding\n"
            holder.send_signal(signal.SIGSTOP)
            _, status = os.waitpid(holder.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            with (
                pytest.raises(BlockingIOError),
                flocked(lock_file(f"{root}.kvreplay", 0), wait=False),
            ):
                pass
            yield holder.pid
        finally:
            holder.kill()


@pytest.fixture
def hurried(root: Path) -> Iterator[FilesystemStore]:
    with FilesystemStore(root) as store:
        store.write("p", "s", "k", OLD)
        store.check_and_put("p", "s", "due", expected=None, value=b"v", expires_at=5)
    with FilesystemStore(root, lock_timeout=0.2) as store:
        yield store


def test_a_change_waits_within_its_bound_and_never_happens(
    hurried: FilesystemStore, stopped: int, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Any] = [
        lambda: hurried.write("p", "s", "k", NEW),
        lambda: hurried.remove("p", "s", "k"),
        lambda: hurried.check_and_put("p", "s", "k", expected=OLD, value=NEW),
        lambda: hurried.sweep("p", 5, 9),
    ]
    for call in calls:
        began = time.monotonic()
        with caplog.at_level(logging.WARNING), pytest.raises(StoreUnavailableError) as caught:
            call()
        assert 0.2 <= time.monotonic() - began < 5
        assert f"the process {stopped} has it" in str(caught.value)
        assert "nothing was changed" in str(caught.value)
        assert f"the process {stopped} has it" in caplog.text
        caplog.clear()
    os.kill(stopped, signal.SIGKILL)
    hurried.write("p", "s", "after", NEW)
    assert value_of(hurried) == OLD
    assert hurried.sweep("p", 5, 9).removed == 1


def test_a_reader_and_an_opener_do_not_wait(
    hurried: FilesystemStore, stopped: int, root: Path
) -> None:
    began = time.monotonic()
    assert hurried.read("p", "s", "k") == OLD
    assert hurried.read_entry("p", "s", "due") == Entry(b"v", 5)
    with pytest.raises(KeyNotFoundError):
        hurried.read("p", "s", "absent")
    with pytest.raises(KeyNotFoundError):
        hurried.read("q", "s", "absent")
    assert sorted(hurried.list("p", "s")) == ["due", "k"]
    assert len(list(hurried.list_all_keys())) == 2
    with FilesystemStore(root, lock_timeout=50) as another:
        assert another.read("p", "s", "k") == OLD
    assert time.monotonic() - began < 5


def test_others_are_let_in_when_the_holder_ends(hurried: FilesystemStore, stopped: int) -> None:
    with FilesystemStore(hurried._root, lock_timeout=60) as patient:
        writer = threading.Thread(target=patient.write, args=("p", "s", "k", NEW))
        writer.start()
        os.kill(stopped, signal.SIGKILL)
        writer.join()
    assert value_of(hurried) == NEW


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), True, "10 x", None])
def test_a_bound_is_a_number_of_seconds(bad: Any, root: Path) -> None:
    from kvreplay import ConfigError

    with pytest.raises(ConfigError, match="lock_timeout must be"):
        FilesystemStore(root, lock_timeout=bad)
    assert not root.exists()


# What a read returns is durable.


def test_a_read_beside_a_writer_makes_durable_what_it_returns(
    store: FilesystemStore, root: Path, trace: list[str]
) -> None:
    """Between its rename and the folder's fsync a value can be seen, and lost to a power cut."""
    store.write("p", "s", "k", OLD)
    lock = lock_file(f"{root}.kvreplay", EntryFile("p", "s", "k").stripe)

    def elsewhere() -> None:
        trace.clear()
        found.append(store.read("p", "s", "k"))
        found.append([step for step in trace if step.startswith("fsync")])

    for held in (True, False):
        found: list[Any] = []
        reader = threading.Thread(target=elsewhere)
        if held:
            with flocked(lock):
                reader.start()
                reader.join()
        else:
            reader.start()
            reader.join()
        assert found == [OLD, ["fsync store/p/s"] if held else []]


@pytest.mark.parametrize("what", ["put", "removed", "put in a new folder"])
def test_a_read_in_the_middle_of_a_change(
    root: Path, trace: list[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The writer is held just before it makes its change durable; the reader sees it, and does so."""
    store = FilesystemStore(root)
    if what != "put in a new folder":
        store.write("p", "s", "k", OLD)
    confirm = type(store._entries.folders).confirm
    reached, go_on = threading.Event(), threading.Event()

    def hold(folders: Any, parts: tuple[str, ...]) -> None:
        if threading.current_thread() is writer:
            reached.set()
            assert go_on.wait(30)
        confirm(folders, parts)

    monkeypatch.setattr(type(store._entries.folders), "confirm", hold)
    change = store.remove if what == "removed" else store.write
    arguments = ("p", "s", "k") if what == "removed" else ("p", "s", "k", NEW)
    writer = threading.Thread(target=change, args=arguments)
    writer.start()
    try:
        assert reached.wait(30)
        trace.clear()
        assert value_of(store) == (None if what == "removed" else NEW)
        folder = "store/p" if what == "removed" else "store/p/s"
        assert f"fsync {folder}" in trace
    finally:
        go_on.set()
        writer.join()
    store.close()


def test_a_read_that_cannot_make_durable_what_it_saw_does_not_return_it(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("p", "s", "k", OLD)
    outcomes: list[Any] = []

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def read() -> None:
        try:
            outcomes.append(store.read("p", "s", "k"))
        except StoreError as error:
            outcomes.append(type(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        reader = threading.Thread(target=read)
        with flocked(lock_file(f"{root}.kvreplay", EntryFile("p", "s", "k").stripe)):
            reader.start()
            reader.join()
    assert outcomes == [StoreError]


def test_less_durable_reads_take_no_lock(root: Path, trace: list[str]) -> None:
    with FilesystemStore(root, durability="process") as store:
        store.write("p", "s", "k", OLD)
        with flocked(lock_file(str(beside(root)), EntryFile("p", "s", "k").stripe)):
            trace.clear()
            assert store.read("p", "s", "k") == OLD
            assert trace == []
