"""Power cuts under writing nodes on SQLite, with every disk that its flushes allow.

Its log grows with each commit, and the power cut of ``test_power_cut.py`` may lose what a growing file
has flushed. So here what the nodes write is recorded, and the disks are made from that.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGSTOP
from typing import Any

import pytest

from kvreplay import CorruptRecordError, StoreError
from kvreplay.backends.sqlite import committer
from support.engines import Engine
from support.needs import needs_strace
from torture.audit import State, audit, every_record, sound
from torture.ledger import Ledger
from torture.lost_writes import Recording, Unflushed, record
from torture.node import MODES, Node

CUTS = 120  # of each mode, in CI's budget
KEYS = [f"key-{n}" for n in range(40)]


class Cuts:
    """What two processes wrote, and what a power cut may leave of it."""

    def __init__(self, folder: Path, ledger: Ledger, fork: Any) -> None:
        self._folder, self._ledger, self._fork = folder, ledger, fork
        self._numbers = itertools.count()
        self._log = folder / "log"

    def record(self, mode: str, **options: Any) -> None:
        """Let two processes make a store, and serve keys of their own, with many checkpoints."""
        engine = Engine("sqlite", self._folder / "recorded" / "store")
        engine.path.parent.mkdir()

        def serve(keys: list[str]) -> None:
            os.kill(os.getpid(), SIGSTOP)
            committer._CHECKPOINT_PAGES = 40  # type: ignore[misc]
            with engine.open(**options) as store:
                Node(store, self._ledger, MODES[mode]).serve(keys, threads=2)

        children = [self._fork(lambda keys=keys: serve(keys)) for keys in (KEYS[::2], KEYS[1::2])]
        for child in children:
            assert child.wait_for_stop() is None
        record(children, self._log)

    def disks(
        self, number: int, seed: int = 0, lies: Callable[[str], bool] = lambda path: False
    ) -> Iterator[tuple[Engine, Ledger]]:
        """Yield stores as they are found after a cut, each with what was noted before it."""
        rng = random.Random(seed)
        recording = Recording(self._log, self._folder / "recorded", self._ledger, lies)
        assert len(recording) > number, "too little was recorded"
        moments = set(rng.sample(range(len(recording)), number))
        for disk, unflushed in zip(
            recording.moments(moments), itertools.cycle(Unflushed), strict=False
        ):
            folder = self._folder / f"cut-{next(self._numbers)}"
            disk.lay_down(folder, unflushed, rng)
            ledger = Ledger(folder / "ledger")
            ledger.path.write_bytes(disk.notes)
            yield Engine("sqlite", folder / "store"), ledger


@pytest.fixture
def cuts(ledger: Ledger, fork: Any) -> Iterator[Cuts]:
    needs_strace()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Cuts(Path(folder), ledger, fork)


def hold(engine: Engine, ledger: Ledger, mode: str, **options: Any) -> Counter[State]:
    """Hold the promises against what was found; it is whole, and can be used."""
    with engine.open() as store:
        promised = MODES[mode].promised | options
        states = audit(store, ledger, KEYS, fails=True, rebooted=True, **promised)
        every_record(store)
        store.write("p", "s", "afterwards", b"fine")
    with contextlib.closing(sqlite3.connect(engine.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return states


@pytest.mark.parametrize("mode", ["sync", "async", "sync-in-transaction"])
def test_what_sqlite_has_answered_is_there_after_each_cut(
    cuts: Cuts, mode: str, tally: Any, times: int
) -> None:
    cuts.record(mode)
    seen: Counter[State] = Counter()
    for engine, ledger in itertools.chain.from_iterable(
        cuts.disks(CUTS, seed) for seed in range(times)
    ):
        seen += hold(engine, ledger, mode)
        tally("power cuts that lost, tore and reordered writes", "sqlite")
    assert set(seen) == (set(State) if MODES[mode].claims else {State.FREE, State.ANSWERED})
    sound(engine)


def test_nothing_is_torn_that_is_less_durable(cuts: Cuts, tally: Any, times: int) -> None:
    cuts.record("sync", durability="process")
    lost = 0
    for engine, ledger in itertools.chain.from_iterable(
        cuts.disks(CUTS, seed) for seed in range(times)
    ):
        states = hold(engine, ledger, "sync", forgets=True)
        lost += states[State.ANSWERED] < sum(
            bool(each.answers) for each in ledger.accounts().values()
        )
        tally('such power cuts with durability="process"', "sqlite")
    assert lost, "nothing was forgotten: nothing was tested"


@pytest.mark.parametrize("where", ["/store-wal", "/store", ""], ids=["log", "database", "folder"])
def test_a_lie_about_flushing_is_caught(cuts: Cuts, where: str) -> None:
    cuts.record("sync")
    assert any(found_out(*disk) for disk in cuts.disks(2 * CUTS, lies=where.__eq__))


def found_out(engine: Engine, ledger: Ledger) -> bool:
    """Whether anything is not as promised, or damaged."""
    try:
        hold(engine, ledger, "sync")
    except (AssertionError, StoreError, CorruptRecordError, sqlite3.DatabaseError):
        return True
    return False
