"""File locks: a wait that is bounded, who holds the lock, and descriptors that are another's by now."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvreplay.backends.file_lock import FileLock, lock_within
from kvreplay.errors import StoreUnavailableError
from support.programs import Program, unmeasured

HOLDER = """
import os, sys
from kvreplay.backends.file_lock import FileLock
file = FileLock(sys.argv[1], os.O_RDWR)
file.lock()
print("holding", flush=True)
sys.stdin.readline()
file.unlock()
print("free", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "lock"
    file.touch()
    return str(file)


@pytest.fixture
def holder(path: str) -> Iterator[Program]:
    with Program([sys.executable, "-W", "error", "-c", HOLDER, path], unmeasured()) as process:
        assert process.hear() == "holding"
        yield process


def is_locked(path: str) -> bool:
    other = FileLock(path, os.O_RDWR)
    try:
        other.lock()
    except BlockingIOError:
        return True
    finally:
        other.close()
    return False


def test_a_wait_for_a_stopped_process_ends_and_names_it(
    path: str, holder: Program, caplog: pytest.LogCaptureFixture
) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    file = FileLock(path, os.O_RDWR)
    assert is_locked(path)
    began = time.monotonic()
    with (
        caplog.at_level(logging.WARNING, "kvreplay"),
        pytest.raises(StoreUnavailableError, match=rf"the turn .* 0\.2 s .*{holder.pid} has it"),
    ):
        lock_within(file, "the turn", 0.2, bound=0.2)
    assert 0.2 <= time.monotonic() - began < 5
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"process {holder.pid} has it" in caplog.text
    os.kill(holder.pid, signal.SIGCONT)
    holder.tell()
    assert holder.hear() == "free"
    assert not is_locked(path)  # the wait that ended has not taken it later
    file.close()


def test_a_wait_ends_as_soon_as_the_lock_is_free(
    path: str, holder: Program, caplog: pytest.LogCaptureFixture
) -> None:
    file = FileLock(path, os.O_RDWR)
    assert not file.lock_within(0)
    holder.tell()
    lock_within(file, "the turn", 50, bound=50)
    assert is_locked(path)
    assert caplog.records == []
    assert file.unlock()
    assert not is_locked(path)
    file.close()


def test_a_shared_lock_waits_for_others_only(path: str) -> None:
    one, two, three = (FileLock(path, os.O_RDWR) for _ in range(3))
    assert one.lock_within(0, shared=True)
    assert two.lock_within(0, shared=True)
    assert not three.lock_within(0.01)
    one.close()
    two.close()
    assert three.lock_within(0.01)
    three.close()


def test_who_comes_to_an_empty_lock_lets_the_first_in_the_line_go_first(path: str) -> None:
    """And goes on after a moment: the one in the line may be stopped."""
    first, second = FileLock(path, os.O_RDWR), FileLock(path, os.O_RDWR)
    assert first._enter_line()
    began = time.monotonic()
    assert second.lock_within(50)
    assert time.monotonic() - began >= 0.05
    second.unlock()
    for _ in range(2):
        assert second.lock_within(50)
        second.unlock()
    assert second.lock_within(0)  # the line has not moved three times, so it is passed by
    second.unlock()
    assert first.lock_within(0)
    first.unlock()
    assert not second._others_wait()  # who got the lock has left the line
    first.close()
    second.close()


def test_a_lock_file_that_is_removed_or_replaced_is_out_of_its_place(path: str) -> None:
    file = FileLock(path, os.O_RDWR)
    assert file.is_in_place
    os.rename(path, path + ".old")
    assert not file.is_in_place
    Path(path).touch()
    assert not file.is_in_place
    os.rename(path + ".old", path)
    assert file.is_in_place
    file.close()


@pytest.mark.parametrize("ending", ["close", "unlock", "__del__"])
def test_a_descriptor_that_is_another_files_by_now_is_left_alone(
    path: str, tmp_path: Path, ending: str
) -> None:
    """A daemon closes all descriptors and opens its own."""
    file = FileLock(path, os.O_RDWR)
    number = file._fds[0]
    assert file.is_open
    theirs = os.open(tmp_path, os.O_RDONLY)
    os.dup2(theirs, number)
    fcntl.flock(number, fcntl.LOCK_EX)
    assert not file.is_open
    getattr(file, ending)()
    assert os.path.samestat(os.fstat(number), os.stat(tmp_path))
    again = FileLock(str(tmp_path), os.O_RDONLY)
    assert not again.lock_within(0)  # nor was their lock given back
    again.close()
    os.close(number)
    os.close(theirs)


def test_the_holder_of_a_free_lock_is_nobody(path: str) -> None:
    file = FileLock(path, os.O_RDWR)
    assert file.holder() is None
    file.lock()
    assert file.holder() == os.getpid()
    file.close()


def test_only_a_lock_that_is_open_has_a_finalizer(path: str) -> None:
    """An interrupt that comes in a finalizer is lost."""
    file = FileLock(path, os.O_RDWR)
    assert hasattr(file, "__del__")
    file.close()
    assert not hasattr(file, "__del__")
    lost = FileLock(path, os.O_RDWR)
    lost.lock()
    assert is_locked(path)
    del lost
    assert not is_locked(path)
