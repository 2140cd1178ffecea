"""Folders that are empty go, and nobody who places a file there meanwhile is hurt."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvreplay.backends.durable_files import Folders
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.store import SweepResult
from support.file_stores import OLD, beside, value_of
from support.forking import Child


def names(root: Path) -> int:
    return sum(1 for folder in (root, beside(root)) for _ in folder.rglob("*"))


@pytest.mark.parametrize("how", ["sweep", "prune", "lazily"])
def test_a_scope_that_is_empty_leaves_nothing(root: Path, how: str) -> None:
    with FilesystemStore(root, durability="process") as store:
        before = names(root)
        for n in range(40):
            store.check_and_put("p", f"s{n}", "k", expected=None, value=b"v", expires_at=5)
        assert names(root) > before + 160
        if how == "sweep":
            assert store.sweep("p", 5, 30) == SweepResult(30, 30, True)
            assert store.sweep("p", 5, 30) == SweepResult(10, 10, False)
        else:
            for n in range(40):
                if how == "prune":
                    store.check_and_put("p", f"s{n}", "k", expected=b"v", value=None)
                else:
                    store.remove("p", f"s{n}", "k", lazy=how == "lazily")
            store.sweep("p", 60_000, 1000)
        assert names(root) <= before + 3  # the folder of the primary namespace, in each of three
        assert list(store.list_all_keys()) == []
        store.write("p", "s1", "k", OLD)
        assert store.read("p", "s1", "k") == OLD


def test_a_folder_with_another_entry_stays(store: FilesystemStore, root: Path) -> None:
    store.write("p", "s", "stays", OLD)
    store.check_and_put("p", "s", "k", expected=None, value=b"v", expires_at=5)
    assert store.sweep("p", 5, 9).removed == 1
    store.write("p", "s", "k", b"v")
    store.remove("p", "s", "k")
    assert store.list("p", "s") == ["stays"]


@pytest.mark.parametrize("durability", ["full", "process"])
def test_writers_race_with_those_who_remove_their_folder(root: Path, durability: str) -> None:
    """Every acknowledged entry is there, and every folder that is empty at the end is gone."""
    times = 20 if durability == "full" else 80
    with (
        FilesystemStore(root, durability=durability) as store,  # type: ignore[arg-type]
        ThreadPoolExecutor(4) as pool,
    ):
        start = threading.Barrier(4)

        def work(name: str) -> None:
            start.wait()
            for n in range(times):
                if n % 2:
                    store.write("p", "s", name, b"%d" % n)
                else:
                    put = store.check_and_put
                    assert put("p", "s", name, expected=None, value=b"%d" % n, expires_at=5) is None
                assert store.read("p", "s", name) == b"%d" % n
                store.remove("p", "s", name)
                assert name not in store.list("p", "s")

        for future in [pool.submit(work, name) for name in "abcd"]:
            future.result()
    assert [path.name for path in root.rglob("*")] == ["p"]
    assert [path.name for path in (beside(root) / "stamps").rglob("*")] == ["p"]


def test_a_sweep_that_was_killed_is_completed_by_the_next(root: Path) -> None:
    """At each step of it: in the end there is no folder."""
    for n in itertools.count():
        with FilesystemStore(root) as store:
            for s in ("a", "b"):
                store.check_and_put("p", s, "k", expected=None, value=b"v", expires_at=5)
            left = iter(range(n))

            def sweep(store: FilesystemStore = store, left: object = left) -> None:
                def dying(step: object) -> object:
                    def call(*args: object, **kwargs: object) -> object:
                        if next(left, None) is None:  # type: ignore[call-overload]
                            os.kill(os.getpid(), signal.SIGKILL)
                        return step(*args, **kwargs)  # type: ignore[operator]

                    return call

                for name in ("unlink", "rmdir", "fsync"):
                    setattr(os, name, dying(getattr(os, name)))
                store.sweep("p", 5, 9)

            code = Child(sweep).wait()
            assert code in (0, -signal.SIGKILL)
            store.sweep("p", 5, 9)
            assert store.list("p", "a") == store.list("p", "b") == []
            assert list((root / "p").iterdir()) == []
            assert list((beside(root) / "stamps" / "p").iterdir()) == []
            if code == 0:
                break
    assert n > 8


# Whoever finds a folder that somebody has just made again makes its place durable.


def test_the_place_of_a_folder_that_was_made_again_is_confirmed(
    store: FilesystemStore, root: Path, trace: list[str]
) -> None:
    store.write("p", "s", "k", OLD)
    trace.clear()
    store.write("p", "s", "k", OLD)
    assert "fsync store/p" not in trace, "it is known to be durable"
    folder = root / "p" / "s"
    (folder / "k").unlink()
    folder.rmdir()
    folder.mkdir()  # by another process, which has fsynced nothing yet; perhaps the same inode
    trace.clear()
    store.write("p", "s", "k", OLD)
    assert trace.index("fsync store") > trace.index("rename store/p/s/k")
    assert "fsync store/p" in trace
    assert value_of(store) == OLD


def test_a_removal_in_a_folder_that_is_gone_by_now_is_confirmed_above(
    tmp_path: Path, trace: list[str]
) -> None:
    folders = Folders(str(tmp_path), durable=True)
    (tmp_path / "p").mkdir()
    trace.clear()
    folders.confirm(("p", "gone"))
    assert trace == ["fsync p", "fsync ."]
    (tmp_path / "p").rmdir()
    trace.clear()
    folders.confirm(("p", "gone"))
    assert trace == ["fsync ."]
    with pytest.raises(FileNotFoundError):
        Folders(str(tmp_path / "gone"), durable=True).confirm(("p",))
    with pytest.raises(FileNotFoundError):
        Folders(str(tmp_path / "gone"), durable=True).confirm(())
