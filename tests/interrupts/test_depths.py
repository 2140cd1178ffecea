"""Calls that have too little room on the stack: the harness for them, and what LMDB's queue must not keep."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interrupts.depths import Depths
from interrupts.programs import run_walk
from kvreplay import Change
from kvreplay.backends.file_lock import FileLock
from kvreplay.backends.filesystem.locks import flocked, read_locked
from support.group_commits import queue_of, waiting
from support.replaying import Caller

pytestmark = pytest.mark.untraced


def rooms_that_are_too_small(call: Callable[[], Any], after: Callable[[], None]) -> list[int]:
    """Make a call with room for 1, 2, 3, ... frames, until that is enough; check after each."""
    too_small: list[int] = []
    while True:
        room = len(too_small) + 1
        depths = Depths(room)
        ended = depths.run(lambda depths=depths: depths.enter(call))  # type: ignore[misc]
        after()
        if ended.point is None:
            assert ended.error is None
            return too_small
        assert isinstance(ended.error, RecursionError)
        too_small.append(room)


def test_every_depth_of_a_call_is_tried() -> None:
    def deep(levels: int) -> int:
        return levels and deep(levels - 1)

    depths = Depths(0)
    needed = depths.run(lambda: depths.enter(lambda: deep(4))).points
    assert needed == 5  # the lambda's frame and five of its own
    assert rooms_that_are_too_small(lambda: deep(4), lambda: None) == [1, 2, 3, 4, 5]


PLANTED = """
from interrupts import walk, world
from kvreplay.backends.memory import MemoryStore
def deep(levels):
    return levels and deep(levels - 1)
def leaky(self, primary, secondary, key, value):
    self._writer.acquire()
    deep(4)
    self._put((primary, secondary, key), (value, None, 1))
    self._writer.release()
world.PATIENCE = 1.0
if PLANT:
    MemoryStore.write = leaky
walk.main(["memory", "RecursionError", "1", "write"])
"""


@pytest.mark.parametrize("planted", [False, True])
def test_a_leak_planted_in_a_store_is_found(planted: bool) -> None:
    said = run_walk("-c", PLANTED.replace("PLANT:", f"{planted}:"))
    (figures,) = map(json.loads, said)
    assert figures["tried"] >= figures["points"]  # CPython 3.11 counts calls of C too
    assert bool(figures["damaged"]) is planted


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"], indirect=True)
@pytest.mark.parametrize("what", ["write", "batch", "transaction"])
def test_a_queue_keeps_nothing_of_a_call_without_room(store: Any, what: str) -> None:
    """What stayed at the head of the queue would stop every later write of this process."""

    def write() -> None:
        store.write("p", "s", "k", b"v")

    def batch() -> None:
        store.check_and_put_each([Change("p", "s", each, None, None) for each in "ab"])

    def transact() -> None:
        with store.transaction() as txn:
            txn.write("p", "s", "k", b"v")

    def check() -> None:
        assert waiting(store) == 0
        assert not queue_of(store).is_busy
        assert Caller(store.write, "p", "s", "other", b"v").result() is None

    call = {"write": write, "batch": batch, "transaction": transact}[what]
    assert len(rooms_that_are_too_small(call, check)) > 3


def _too_deep() -> Any:
    return _too_deep()


def _change(path: str) -> None:
    with flocked(path):
        _too_deep()


def _read(path: str) -> None:
    read_locked(path, lambda _: _too_deep(), None)


@pytest.mark.parametrize("use", [_change, _read])
def test_with_any_room_a_lock_that_was_taken_is_given_back(
    use: Callable[[str], None], tmp_path: Path
) -> None:
    path = tmp_path / "lock"
    path.touch()
    for room in range(1, 30):  # the last ones are more than taking it needs
        depths = Depths(room)
        ended = depths.run(lambda depths=depths: depths.enter(lambda: use(str(path))))  # type: ignore[misc]
        assert isinstance(ended.error, RecursionError)
        # The error lives on here, and what its traceback holds.
        other = FileLock(str(path), os.O_RDWR)
        other.lock()
        other.close()
