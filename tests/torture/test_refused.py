"""Folders and files of a store that may not be read or written: each of them, in turn."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kvreplay import InDoubtError, KVReplayError, Replay, StoreError, StoreFullError
from support.needs import needs_disks, needs_root
from torture.audit import sound
from torture.disks import Ext4, run
from torture.faults import ACT, Slate

PARAMS = {"amount_msat": 250_000}
ANSWERED, NEW = ("lsp", "answered"), ("lsp", "new")
NOBODY = 65534


def use(engine: Any, slate: Slate) -> list[str]:
    """What an old and a new request are told; the handler's runs are counted."""
    told = []
    for key in (ANSWERED, NEW):
        try:
            with engine.open() as store:
                outcome = Replay(store, "ns", ttl=3600).execute(key, PARAMS, slate.effect)
                told.append("replayed" if outcome.replayed else "ran")
        except InDoubtError as error:  # what holds its expiry is needed for an answer alone
            assert isinstance(error.__cause__, StoreError)
            told.append("in doubt")
        except KVReplayError as error:
            assert isinstance(error, StoreError), error
            assert not isinstance(error, StoreFullError), error
            told.append("refused")
    return told


def answered(engine: Any) -> None:
    with engine.open() as store:
        Replay(store, "ns", ttl=3600).execute(ANSWERED, PARAMS, lambda: None)


def parts(engine: Any) -> list[Path]:
    roots = [engine.path, Path(f"{engine.path}.kvreplay")]
    found = [each for root in roots if root.exists() for each in (root, *root.rglob("*"))]
    return [each for each in found if not each.is_symlink()]


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o555])
def test_each_part_is_denied(
    durable: Any, mode: int, tmp_path: Path, fork: Any, tally: Any
) -> None:
    """Refused, and then no handler has run, or the key is in doubt; or that part was not needed."""
    needs_root()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.stat().st_mode & 0o111 != 0o111:
            folder.chmod(0o755)
    durable.path = tmp_path / "parent" / "store"
    answered(durable)
    seen: Counter[str] = Counter()
    for part in [durable.path.parent, *parts(durable)]:
        if part.parent.name == "locks" and part.name > "03":
            continue  # they are all alike
        for each in [durable.path.parent, *parts(durable)]:
            os.chown(each, NOBODY, NOBODY)
        before = part.stat().st_mode
        part.chmod(mode)
        slate = Slate()

        def act(slate: Slate = slate) -> None:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            slate.say(use(durable, slate), at=ACT)

        fork(act).join()
        part.chmod(before)
        old, new = slate.said(at=ACT)
        assert old in ("replayed", "refused"), part
        assert new in ("ran", "in doubt", "refused"), part
        assert slate.effects == (new != "refused"), part
        seen[new] += 1
        tally("parts of a store that were denied", durable.name)
        with durable.open() as store:
            replay = Replay(store, "ns", ttl=3600)
            assert replay.execute(ANSWERED, PARAMS, never).replayed
            assert replay.release(NEW) is (new == "in doubt")
            assert replay.execute(NEW, PARAMS, lambda: None).replayed is (new == "ran")
            store.remove("ns", *NEW)
    assert seen["refused"]
    sound(durable)


def test_a_disk_that_is_read_only(durable: Any, tmp_path: Path, tally: Any) -> None:
    """Mounted so, as after an error of its own; then it is mounted for writing again."""
    needs_disks()
    disk = Ext4(tmp_path, "16M")
    durable.path = disk.path / "store"
    slate = Slate()
    with disk.mounted():
        answered(durable)
        run("mount", "-o", "remount,ro", disk.path)
        old, new = use(durable, slate)
        assert old == ("replayed" if durable.name == "filesystem" else "refused")
        assert (new, slate.effects) == ("refused", 0)
        tally("read-only disks", durable.name)
        run("mount", "-o", "remount,rw", disk.path)
        assert use(durable, slate) == ["replayed", "ran"]
        sound(durable)


def test_a_disk_that_turns_read_only_under_an_open_store(durable: Any, tmp_path: Path) -> None:
    needs_disks()
    disk = Ext4(tmp_path, "16M")
    durable.path = disk.path / "store"
    with disk.mounted():
        answered(durable)
        with durable.open() as store:
            remounted = subprocess.run(
                ["mount", "-o", "remount,ro", disk.path], capture_output=True, check=False
            )
            if durable.name != "filesystem":  # holds its file open for writing: the kernel refuses
                assert remounted.returncode
                return
            replay = Replay(store, "ns", ttl=3600)
            assert replay.execute(ANSWERED, PARAMS, never).replayed
            with pytest.raises(StoreError, match="read-only"):
                replay.execute(NEW, PARAMS, never)
            run("mount", "-o", "remount,rw", disk.path)
            assert not replay.execute(NEW, PARAMS, lambda: None).replayed


def never() -> None:
    raise AssertionError("it ran")
