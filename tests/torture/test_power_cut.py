"""Power cuts under writing nodes: the file system is shut down without its journal's last part."""

from __future__ import annotations

import functools
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from signal import SIGBUS
from typing import Any

import pytest

from kvreplay import StoreError
from kvreplay.backends.lmdb import files as lmdb_files
from support.engines import Engine
from support.needs import needs_disks
from torture.audit import State, audit, every_record, sound
from torture.disks import Ext4
from torture.ledger import Ledger
from torture.node import MODES, Node

CUTS = 50  # of each engine, in CI's budget
CUTS_OF_PROCESS = 10  # likewise, with durability="process"
THREADS = 4


@pytest.fixture
def disk(tmp_path: Path) -> Ext4:
    needs_disks()
    return Ext4(tmp_path, "64M")


class Cuts:
    """A store on a disk whose power is cut again and again, and the keys asked for so far."""

    def __init__(self, engine: Engine, disk: Ext4, ledger: Ledger, fork: Any) -> None:
        self.engine, self._disk, self._ledger, self._fork = engine, disk, ledger, fork
        self.modes = [mode for mode in MODES if engine.transactional or "transaction" not in mode]
        self._served: list[tuple[str, list[str]]] = []  # for each cut: the mode, and the keys
        with disk.mounted(), engine.open():
            pass

    def cut(self, mode: str, spoil: Callable[[], object] = lambda: None, **options: Any) -> None:
        """Cut the power while two processes serve, each keys of its own."""
        keys = [f"{len(self._served)}-{n}" for n in range(80)]
        self._served.append((mode, keys))
        ready, tell = os.pipe()

        def serve(keys: list[str]) -> None:
            spoil()
            with self.engine.open(**options) as store:
                os.write(tell, b"!")
                Node(store, self._ledger, MODES[mode]).serve(keys, THREADS)

        with self._disk.mounted():
            children = [
                self._fork(lambda share=share: serve(share)) for share in (keys[::2], keys[1::2])
            ]
            for _ in children:
                assert os.read(ready, 1) == b"!"
            time.sleep(random.expovariate(1 / 0.1))  # the random instant
            self._disk.cut_power()
            ends = [child.wait() for child in children]
            # LMDB reads from a map, and a page of it that is not in memory is gone with the disk.
            assert set(ends) <= {0, -SIGBUS}, ends
        os.close(ready)
        os.close(tell)

    def audit(self, last: int | None = 5, **options: Any) -> Counter[State]:
        """What the keys of the last cuts are found to be once the power is back."""
        of_mode: dict[str, list[str]] = defaultdict(list)
        for mode, keys in self._served[-last if last else 0 :]:
            of_mode[mode] += keys
        seen: Counter[State] = Counter()
        with self._disk.mounted(), self.engine.open() as store:
            for mode, keys in of_mode.items():
                promised = MODES[mode].promised | options
                seen += audit(store, self._ledger, keys, fails=True, rebooted=True, **promised)
            if options.get("forgets"):
                every_record(store)  # nothing is torn
        return seen

    def sound(self) -> None:
        with self._disk.mounted():
            sound(self.engine)


@pytest.fixture
def cuts(durable: Engine, disk: Ext4, ledger: Ledger, fork: Any) -> Cuts:
    durable.path = disk.path / "store"
    return Cuts(durable, disk, ledger, fork)


def test_no_power_cut_takes_an_answer(cuts: Cuts, tally: Any, times: int) -> None:
    for turn in range(times * CUTS):
        cuts.cut(cuts.modes[turn % len(cuts.modes)])
        cuts.audit()
        tally("power cuts", cuts.engine.name)
    seen = cuts.audit(last=None)
    tally("answers there after the last power cut", cuts.engine.name, seen[State.ANSWERED])
    assert set(seen) == set(State)
    cuts.sound()


def test_a_power_cut_tears_nothing_that_is_less_durable(cuts: Cuts, tally: Any, times: int) -> None:
    for turn in range(times * CUTS_OF_PROCESS):
        cuts.cut(cuts.modes[turn % len(cuts.modes)], durability="process")
        cuts.audit(forgets=True)
        tally('power cuts with durability="process"', cuts.engine.name)
    cuts.sound()


def lie(engine: Engine) -> None:
    """Flush nothing, and say that it is done."""
    if engine.name == "lmdb":
        lmdb_files.lmdb.open = functools.partial(lmdb_files.lmdb.open, sync=False)
    else:
        os.fsync = lambda fd: None


def test_a_disk_that_lies_about_flushing_is_caught(cuts: Cuts) -> None:
    with pytest.raises((AssertionError, StoreError)) as caught:
        for _ in range(20):
            cuts.cut("sync", spoil=lambda: lie(cuts.engine))
            cuts.audit()
    assert isinstance(caught.value, StoreError) or "lost" in str(caught.value)
