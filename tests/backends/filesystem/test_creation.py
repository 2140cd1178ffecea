"""The creation order on a file system: modification times that grow, and what other programs leave."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.filesystem.locks import flocked
from kvreplay.errors import StoreUnavailableError
from support.file_stores import beside
from support.forking import Child

DAY = 86_400 * 10**9  # nanoseconds


def newest(root: Path) -> Path:
    return beside(root) / "locks" / "newest"


def keys(store: FilesystemStore) -> list[str]:
    return list(store.list_paginated("p", "s").keys)


def test_a_clock_that_was_set_back(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even over a restart, and although the newest entry is gone."""
    store.write("p", "s", "first", b"v")
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() - DAY)
    for key in ("z", "b", "gone"):
        store.write("p", "s", key, b"v")
    store.remove("p", "s", "gone")
    first = store.list_paginated("p", "s", limit=1)
    with FilesystemStore(root) as again:
        again.write("p", "s", "a", b"v")
        assert keys(again) == ["a", "b", "z", "first"]
        second = again.list_paginated("p", "s", first.next_page_token)
        assert list(second.keys) == ["z", "first"]


def test_creation_times_are_the_time_of_day(store: FilesystemStore, root: Path) -> None:
    before = time.time_ns()
    store.write("p", "s", "k", b"v")
    assert before < (root / "p" / "s" / "k").stat().st_mtime_ns < time.time_ns()


@pytest.mark.parametrize("step", [1, 100, 1000, 10**6, 10**9, 2 * 10**9])
def test_a_file_system_that_rounds_its_times(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Where time goes by seconds, as on ext4 with small inodes, the times go ahead."""
    utime = os.utime

    def coarse(path: Any, *, ns: tuple[int, int]) -> None:
        utime(path, ns=(ns[0] // step * step, ns[1] // step * step))

    monkeypatch.setattr(os, "utime", coarse)
    created = [f"k{n * 7 % 10}" for n in range(10)]
    for key in created:
        store.write("p", "s", key, b"v")
    assert keys(store) == created[::-1]


def test_a_file_system_that_knows_no_later_time(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing is refused, and keys make the order."""
    utime = os.utime
    monkeypatch.setattr(os, "utime", lambda path, *, ns: utime(path, ns=(5, 5)))
    for key in ("b", "c", "a"):
        store.write("p", "s", key, b"v")
    assert keys(store) == ["c", "b", "a"]
    first = store.list_paginated("p", "s", limit=1)
    assert list(store.list_paginated("p", "s", first.next_page_token).keys) == ["b", "a"]


def test_what_ldk_leaves_is_in_its_order(store: FilesystemStore, root: Path) -> None:
    """Equal times, times before 1970, and beyond what a token can hold."""
    times = {"a": 7, "b": 7, "old": -5, "older": -DAY, "c": 8}
    for key, created in times.items():
        store.write("p", "s", key, b"v")
        os.utime(root / "p" / "s" / key, ns=(created, created))
    (root / "p" / "s" / "k.5.tmp").write_bytes(b"")
    (root / "p" / "s" / "folder").mkdir()
    (root / "p" / "s" / "circle").symlink_to("circle")
    assert keys(store) == ["c", "b", "a", "older", "old"]
    pages, token = list[str](), None
    while not pages or token is not None:
        page = store.list_paginated("p", "s", token, limit=1)
        pages += page.keys
        token = page.next_page_token
    assert pages == keys(store)


def test_an_entry_behind_a_link(store: FilesystemStore, root: Path, tmp_path: Path) -> None:
    """It was created when the file was to which the link leads, even after an update."""
    (tmp_path / "kept").write_bytes(b"linked")
    os.utime(tmp_path / "kept", ns=(DAY, DAY))
    store.write("p", "s", "k", b"v")
    (root / "p" / "s" / "link").symlink_to(tmp_path / "kept")
    entries = [("k", b"v"), ("link", b"linked")]
    assert list(store.list_paginated_with_values("p", "s").entries) == entries
    store.write("p", "s", "link", b"new")
    assert keys(store) == ["k", "link"]


def test_an_entry_that_is_made_anew_while_its_page_is_read(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is new, so it is not on this page. One that is only updated meanwhile is."""
    for key in ("a", "b", "c"):
        store.write("p", "s", key, b"old")
    page = store._page

    def then_changed(*args: Any) -> Any:
        found = page(*args)
        store.remove("p", "s", "a")
        store.write("p", "s", "a", b"new")
        store.write("p", "s", "b", b"new")
        store.remove("p", "s", "c")
        return found

    monkeypatch.setattr(store, "_page", then_changed)
    assert list(store.list_paginated_with_values("p", "s").entries) == [("b", b"new")]


def test_creations_of_many_at_once_have_one_order(root: Path) -> None:
    """Of threads and processes: all times differ, and each writer's own grow."""
    with FilesystemStore(root, durability="process") as store, ThreadPoolExecutor(4) as pool:

        def create(name: str) -> None:
            for n in range(50):
                store.write("p", "s", f"{name}-{n}", b"v")

        children = [Child(lambda each=each: create(f"child{each}")) for each in range(2)]  # type: ignore[misc]
        for done in [pool.submit(create, f"thread{each}") for each in range(4)]:
            done.result()
        for child in children:
            child.join()
        times = {each.name: each.stat().st_mtime_ns for each in (root / "p" / "s").iterdir()}
        assert len(set(times.values())) == 300
        for name in {key.partition("-")[0] for key in times}:
            own = [times[f"{name}-{n}"] for n in range(50)]
            assert own == sorted(own)


def test_a_creator_that_is_stopped_is_not_waited_for_long(root: Path) -> None:
    """And an update waits for no creation."""
    with FilesystemStore(root, lock_timeout=0.2) as store:
        store.write("p", "s", "k", b"1")
        with ThreadPoolExecutor(1) as other, flocked(str(newest(root))):
            with pytest.raises(StoreUnavailableError, match="locks/newest.*lock_timeout"):
                other.submit(store.write, "p", "s", "new", b"v").result()
            other.submit(store.write, "p", "s", "k", b"2").result()
        assert keys(store) == ["k"]
        assert store.read("p", "s", "k") == b"2"
