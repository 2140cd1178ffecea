"""A disk that gets full at each write of a request, in turn."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvreplay import InDoubtError, Replay, StoreFullError
from support.disks import mounted
from support.needs import needs_disks
from torture.audit import State, committed, look_up, sound
from torture.disks import Ext4
from torture.ledger import PARAMS, SCOPE
from torture.node import MODES, Mode

KEY = "session"
ANSWER = "." * 20_000  # of several pages
KINDS = {"tmpfs, its pages": "size=2m", "tmpfs, its inodes": "nr_inodes=400", "ext4": ""}


@contextmanager
def small_disk(kind: str, folder: Path) -> Iterator[Path]:
    if kind == "ext4":
        disk = Ext4(folder, "6M", "-b", "1024", "-N", "600")
        with disk.mounted():
            yield disk.path
    else:
        with mounted(folder / "disk", KINDS[kind]) as path:
            yield path


class Filler:
    """What fills a disk up to a given number of free units: pages, blocks or inodes."""

    def __init__(self, disk: Path, kind: str) -> None:
        self._folder = disk / "filler"
        self._inodes = "inodes" in kind
        self._unit = 1024 if kind == "ext4" else 4096

    @contextmanager
    def leaving(self, units: int) -> Iterator[None]:
        spare = self._folder / "spare"
        self._folder.mkdir()
        if not self._inodes:
            spare.write_bytes(bytes(units * self._unit))
            self._fill_pages()
            spare.unlink()
        else:
            files = self._fill_inodes()
            for file in files[-units:] if units else []:
                file.unlink()
        try:
            yield
        finally:
            for file in self._folder.iterdir():
                file.unlink()
            self._folder.rmdir()

    def _fill_pages(self) -> None:
        with (self._folder / "ballast").open("wb", buffering=0) as ballast:
            for size in (1 << 16, self._unit):
                with contextlib.suppress(OSError):
                    while ballast.write(bytes(size)) == size:
                        pass
            os.fsync(ballast.fileno())

    def _fill_inodes(self) -> list[Path]:
        files = []
        with contextlib.suppress(OSError):
            for n in itertools.count():
                file = self._folder / str(n)
                file.touch()
                files.append(file)
        return files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["sync", "sync-without-lease", "sync-in-transaction"])
def test_full_at_each_write(durable: Any, mode: str, kind: str, tmp_path: Path, tally: Any) -> None:
    """With no room at all, with room for one page, for two, and so on until there is enough."""
    needs_disks()
    said: list[str] = []
    with small_disk(kind, tmp_path) as disk:
        durable.path = disk / "store"
        filler = Filler(disk, kind)
        for units in itertools.count():
            with durable.open() as store:
                said.append(ask(store, MODES[mode], filler.leaving(units)))
            sound(durable)
            for each in disk.glob(f"{durable.path.name}*"):
                shutil.rmtree(each) if each.is_dir() else each.unlink()
            if said[-2:] == ["answer"] * 2:
                break
            tally("full disks", durable.name)
    if durable.name in ("lmdb", "sqlite") and "inodes" in kind:
        assert set(said) == {"answer"}  # it makes no file
    else:
        refused = {"sync": {"nothing changed", "in doubt"}, "sync-without-lease": {"in doubt"}}
        assert set(said) == {"answer"} | refused.get(mode, {"nothing changed"})


def ask(store: Any, mode: Mode, full: Any) -> str:
    """Ask on the full disk, and again when it is not any more; return what was said at first."""
    face = mode.face(store, "ns", ttl=60, lease=mode.lease, wait_timeout=0)
    execute = face.execute_in_transaction if mode.transaction else face.execute
    effects = []

    def handler(*transaction: Any) -> str:
        effects.append("effect")
        for txn in transaction:
            txn.write("ledger", "", KEY, b"effect")
        return ANSWER

    with full:
        try:
            assert execute((SCOPE, KEY), PARAMS, handler).response == ANSWER
            said = "answer"
        except StoreFullError:
            said = "nothing changed"
        except InDoubtError as error:
            assert isinstance(error.__cause__, StoreFullError)
            said = "in doubt"
        state, response = look_up(Replay(store, "ns", ttl=60), KEY)  # even while it is full
    assert effects == [] or said != "nothing changed" or mode.transaction
    if said == "answer":
        assert response == ANSWER
    else:
        assert state is (State.IN_DOUBT if said == "in doubt" and mode.claims else State.FREE)
        assert committed(store, KEY) == []
        face.release((SCOPE, KEY))
        assert execute((SCOPE, KEY), PARAMS, handler).response == ANSWER
    assert execute((SCOPE, KEY), PARAMS, handler).replayed
    return said
