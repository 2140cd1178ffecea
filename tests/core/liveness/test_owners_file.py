"""The owners file: one descriptor of it, since to close any ends the lock, and only while handlers run."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from kvreplay._protocol.record import Claim
from kvreplay._runtime import liveness
from kvreplay._runtime.liveness import Liveness, begin, end, look_up, new_token
from support.owners import as_seen_by_another, descriptors
from support.replaying import Caller
from support.waiting import PATIENCE

RUNNING = Liveness.RUNNING
INODE = 2  # its place in an owner


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each begin comes so late that no look at the file is fresh."""
    monkeypatch.setattr(liveness, "_FRESH", -1.0)


def test_a_file_is_open_only_while_a_handler_runs(path: str, owner: Any) -> None:
    _, claim = owner()
    assert look_up(claim, path) is RUNNING
    assert descriptors(path) == []
    tokens = [new_token() for _ in range(2)]
    for each in tokens:
        begin(each, path)
        assert len(descriptors(path)) == 1
    assert look_up(claim, path) is RUNNING
    end(tokens[0])
    assert len(descriptors(path)) == 1
    end(tokens[1])
    assert descriptors(path) == []


def test_looking_for_another_owner_does_not_end_the_own_lock(
    owner: Any, path: str, token: bytes, tmp_path: Path
) -> None:
    _, claim = owner()
    mine = Claim(token, 0, begin(token, path))
    again = new_token()
    (tmp_path / "alias").symlink_to(tmp_path)
    alias = str(tmp_path / "alias" / "owners")
    for spelling in (path, alias):
        assert look_up(claim, spelling) is RUNNING
        begin(again, spelling)
        assert len(descriptors(path)) == 1
        end(again)
        assert as_seen_by_another(mine, path) == "RUNNING"


def test_a_first_run_on_one_store_during_a_run_on_another(path: str, token: bytes) -> None:
    begin(token, path)
    other, file = new_token(), path + ".of-another-store"
    theirs = Claim(other, 0, begin(other, file))
    assert as_seen_by_another(theirs, file) == "RUNNING"
    end(other)
    assert as_seen_by_another(theirs, file) == "GONE"


@pytest.mark.usefixtures("later")
def test_a_descriptor_that_somebody_closed_is_opened_anew(
    path: str, token: bytes, tmp_path: Path
) -> None:
    """As daemonising does. Its number may be another file's by then, which stays open."""
    lost = new_token()
    begin(lost, path)
    (fd,) = descriptors(path)
    os.close(fd)
    with open(tmp_path / "strange", "wb", buffering=0) as strange:
        assert strange.fileno() == fd
        mine = Claim(token, 0, begin(token, path))
        assert mine.owner.split(":")[INODE] == str(os.stat(path).st_ino)
        assert as_seen_by_another(mine, path) == "RUNNING"
        end(lost)
        assert as_seen_by_another(mine, path) == "RUNNING"
        end(token)
        assert as_seen_by_another(mine, path) == "GONE"
        strange.write(b"still open")
    assert descriptors(path) == []


@pytest.mark.usefixtures("later")
def test_a_lock_that_a_copying_program_ended_is_taken_again(path: str, token: bytes) -> None:
    first = new_token()
    mine = Claim(token, 0, begin(first, path))
    open(path).close()  # as shutil.copytree does in this process
    assert as_seen_by_another(mine, path) == "GONE"
    begin(token, path)
    assert as_seen_by_another(mine, path) == "RUNNING"
    end(first)


@pytest.mark.usefixtures("later")
def test_a_file_that_was_removed_is_made_anew(path: str, token: bytes) -> None:
    first = new_token()
    old = Claim(first, 0, begin(first, path))
    os.unlink(path)
    new = Claim(token, 0, begin(token, path))
    assert as_seen_by_another(new, path) == "RUNNING"
    assert as_seen_by_another(old, path) == "UNKNOWN"  # not gone: its file cannot be asked
    assert look_up(old, path) is RUNNING
    end(first)
    assert as_seen_by_another(new, path) == "RUNNING"


def test_threads_begin_and_end_at_the_same_time(path: str, token: bytes, owner: Any) -> None:
    """One run goes on all the while, and its lock is never lost."""
    _, claim = owner()
    mine = Claim(token, 0, begin(token, path))
    wrong: list[object] = []

    def work() -> None:
        for _ in range(200):
            own = new_token()
            begin(own, path)
            if look_up(claim, path) is not RUNNING or len(descriptors(path)) != 1:
                wrong.append("look")
            end(own)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        wrong.extend([] if as_seen_by_another(mine, path) == "RUNNING" else ["seen"])
    assert wrong == []
    assert len(descriptors(path)) == 1


def test_runs_that_begin_at_the_same_time_share_a_look(
    path: str, token: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look lets other threads run, which is dear where many of them want to."""
    looks: list[int] = []
    take = liveness._take
    monkeypatch.setattr(liveness, "_take", lambda *args: (looks.append(1), take(*args)))
    monkeypatch.setattr(liveness, "_FRESH", PATIENCE)
    others = [new_token() for _ in range(5)]
    owner = begin(token, path)
    assert [begin(each, path) for each in others] == [owner] * 5
    assert looks == [1]
    for each in [token, *others[1:]]:
        end(each)
    # One of those that did not look holds on to the lock.
    assert as_seen_by_another(Claim(others[0], 0, owner), path) == "RUNNING"
    end(others[0])
    assert descriptors(path) == []
    begin(token, path)
    assert looks == [1, 1]


@pytest.mark.parametrize("joins", ["before the file is closed", "after it was closed"])
def test_whoever_joins_just_as_the_last_user_leaves(
    joins: str, path: str, token: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads, step by step: this one has seen a user, and then that user leaves."""
    monkeypatch.setattr(liveness, "_FRESH", PATIENCE)
    last, process = new_token(), liveness._known_process()
    owner = begin(last, path)
    (file,) = process.files.values()

    class Files(dict[Any, Any]):
        def __delitem__(self, place: Any) -> None:
            if joins == "before the file is closed" and last in process.running:
                file.users.add(token)
            super().__delitem__(place)

    class Running(dict[Any, Any]):
        def __setitem__(self, run: Any, used: Any) -> None:
            super().__setitem__(run, used)
            if used is file and last in self:
                end(last)

    process.files, process.running = Files(process.files), Running(process.running)
    try:
        assert begin(token, path) == owner
        kept = list(process.files.values()) == [file]
        assert kept is (joins == "before the file is closed")
        assert as_seen_by_another(Claim(token, 0, owner), path) == "RUNNING"
        end(token)
        assert descriptors(path) == []
        assert not process.files
        assert not process.running
    finally:
        process.files, process.running = dict(process.files), dict(process.running)


def test_a_pipe_in_the_files_place_blocks_nobody(path: str) -> None:
    """Whoever opens a pipe to read waits for a writer, if nobody says otherwise."""
    os.mkfifo(path)
    place = os.stat(path)
    owner = f"{liveness.boot_id()}:{place.st_dev}:{place.st_ino}:5:0:1:1"
    looking = Caller(look_up, Claim(new_token(), 0, owner), path)
    assert looking.result() is not None
