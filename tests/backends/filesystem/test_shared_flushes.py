"""Threads that change one folder share its flush, and what it says of a failure."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends import durable_files
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.errors import OutcomeUnknownError

MANY = 6


class Flushes:
    """The flushes of the folder ``p/s``: the first one waits until all others have come to wait."""

    def __init__(self, root: Path) -> None:
        self.folder = str(root / "p" / "s")
        self.fsync = os.fsync
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.count = 0
        self.fails: Callable[[int], bool] = lambda _: False

    def __call__(self, fd: int) -> None:
        ours = os.readlink(f"/proc/self/fd/{fd}") == self.folder
        self.count += ours
        if ours and self.fails(self.count):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.fsync(fd)
        if ours and self.count == 1:
            self.begun.set()
            assert self.go_on.wait(30)


class Numbers:
    """The numbers of changes and flushes, which go on: it tells when so many more were given."""

    def __init__(self, more: int, reached: threading.Event) -> None:
        self.numbers = count(1000)
        self.least = 999 + more
        self.reached = reached

    def __next__(self) -> int:
        number = next(self.numbers)
        if number >= self.least:
            self.reached.set()
        return number


def changes_beside_a_flush(
    store: FilesystemStore, flushes: Flushes, monkeypatch: pytest.MonkeyPatch
) -> list[Future[None]]:
    """Begin a change, and during its flush some more; return how they ended."""
    all_wait = threading.Event()
    monkeypatch.setattr(os, "fsync", flushes)
    # The first change and its flush have a number, and each of the others before it waits.
    monkeypatch.setattr(store._entries.folders, "_numbers", Numbers(2 + MANY, all_wait))
    with ThreadPoolExecutor(1 + MANY) as pool:
        futures = [pool.submit(store.write, "p", "s", "first", b"v")]
        assert flushes.begun.wait(30)
        futures += [pool.submit(store.write, "p", "s", f"k{n}", b"v") for n in range(MANY)]
        assert all_wait.wait(30)
        assert flushes.count == 1
        assert not any(each.done() for each in futures)
        flushes.go_on.set()
    return futures


def test_one_flush_serves_all_that_wait_for_it(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush that was under way serves none of them: it may have begun before their changes."""
    store.write("p", "s", "before", b"v")
    flushes = Flushes(root)
    for each in changes_beside_a_flush(store, flushes, monkeypatch):
        each.result()
    assert flushes.count == 2
    store.write("p", "s", "after", b"v")
    assert flushes.count == 3
    assert len(store.list("p", "s")) == MANY + 3


def test_a_flush_that_fails_fails_for_all_that_it_serves(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells only once, so a flush of their own might seem to go well."""
    store.write("p", "s", "before", b"v")
    flushes = Flushes(root)
    flushes.fails = lambda number: number == 2
    first, *others = changes_beside_a_flush(store, flushes, monkeypatch)
    first.result()
    for each in others:
        with pytest.raises(OutcomeUnknownError):
            each.result()
    assert flushes.count == 2
    store.write("p", "s", "after", b"v")


def test_a_removed_folder_needs_a_flush_of_its_own_when_it_is_back(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever removes a folder's last entry flushes the one above."""
    store.write("p", "s", "k", b"v")
    flushes = Flushes(root)
    flushes.go_on.set()
    monkeypatch.setattr(os, "fsync", flushes)
    store.remove("p", "s", "k")
    assert flushes.count == 0
    store.write("p", "s", "k", b"v")
    assert flushes.count >= 1


def test_what_is_known_of_flushes_has_a_bound(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable_files, "_MAX_KNOWN", 3)
    for n in range(8):
        store.write("p", f"s{n}", "k", b"v")
    known: Any = store._entries.folders._flushed
    assert len(known) <= 3
