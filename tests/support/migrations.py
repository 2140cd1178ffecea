"""What tests of migrations share: entries, what a store holds, and processes that are killed."""

from __future__ import annotations

import json
import os
import sqlite3
from itertools import count
from pathlib import Path
from typing import Any

from kvreplay import KeyNotFoundError, open_store
from support import migrating_process
from support.nursery import ForkedProgram

__all__ = [
    "LDK",
    "MARK",
    "SCRIPT",
    "Copied",
    "content",
    "fill",
    "is_marked",
    "killed_at_each_batch",
    "ldk_files",
    "node_file",
    "order",
    "url_of",
]

MARK = ("kvreplay-migration", "", "unfinished")
SCRIPT = Path(migrating_process.__file__)


def fill(store: Any, entries: int = 25) -> None:
    """Make entries in an order that is not that of their names, with and without expiry."""
    namespaces = [("", ""), ("p", ""), ("p", "s"), ("q", "s")]
    for number in range(entries):
        address = (*namespaces[number % 4], f"k{number * 7 % entries:03}")
        expires_at = None if number % 3 else 10**12 + number
        value = bytes([number % 256]) * number
        store.check_and_put(*address, expected=None, value=value, expires_at=expires_at)
    store.write("p", "s", f"k{14 % entries:03}", b"updated, and not moved")


def content(store: Any) -> dict[tuple[str, str, str], Any]:
    return {address: store.read_entry(*address) for address in store.list_all_keys()}


def order(store: Any) -> dict[tuple[str, str], list[str]] | None:
    """Return the keys of each namespace as its pages have them, if the store knows an order."""
    if not hasattr(store, "list_paginated"):
        return None
    found = {}
    for namespace in {address[:2] for address in store.list_all_keys()}:
        found[namespace] = list(store.list_paginated(*namespace, limit=1000).keys)
    return found


def url_of(engine: str, path: Path) -> str:
    return f"{engine}:{path}"


class Copied:
    """A source, from which processes migrate, and what a destination must hold afterwards."""

    def __init__(self, source: str, wanted: Any, in_order: Any) -> None:
        self.source = source
        self._wanted = wanted
        self._in_order = in_order

    def run(self, destination: str, *, kill_at: int = 0, **more: Any) -> Any:
        """Migrate in a process; return what it said, or ``None`` if it was killed."""
        told = {"source": self.source, "destination": destination, "batch": 3, "kill_at": kill_at}
        with ForkedProgram(SCRIPT, {**told, **more}) as process:
            said = process.rest()
            code = process.popen.returncode
            assert code == (0 if said else -9), f"it ended by {code}"
        return json.loads(said) if said else None

    def check(self, destination: str) -> None:
        """Compare entry by entry, and the pages' order if both sides know one."""
        with open_store(destination) as store:
            assert content(store) == self._wanted
            there = order(store)
            if there is not None and self._in_order is not None:
                assert there == self._in_order


def is_marked(destination: str) -> bool:
    with open_store(destination) as store:
        try:
            return bool(store.read(*MARK))
        except KeyNotFoundError:
            return False


def killed_at_each_batch(copied: Copied, engine: str, folder: Path) -> int:
    """Kill a migration at each of its steps and resume it, each time into a new destination.

    Then kill one again and again, each time one step later. Return how many steps there are.
    """
    for at in count(1):
        destination = url_of(engine, folder / f"at-{at}")
        said = copied.run(destination, kill_at=at)
        if said is not None:  # it has no such step
            break
        if os.path.lexists(folder / f"at-{at}"):
            assert is_marked(destination)
        assert copied.run(destination) is not None
        copied.check(destination)
    steps = at - 1
    destination = url_of(engine, folder / "again")
    for at in range(1, steps + 1):
        assert copied.run(destination, kill_at=at) is None
    assert copied.run(destination) is not None
    copied.check(destination)
    return steps


# LDK's own files.

LDK = {
    ("", "", "manager"): b"1",
    ("monitors", "", "a_0"): b"2",
    ("monitor_updates", "a_0", "7"): b"3",
}


def ldk_files(root: Path, layout: str) -> None:
    for number, ((primary, secondary, key), value) in enumerate(LDK.items()):
        folder = root / primary / secondary
        if layout == "ldk-v2":
            folder = root / (primary or "[empty]") / (secondary or "[empty]")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(value)
        os.utime(folder / key, (1000 - number, 1000 - number))
        (folder / f"{key}.7.tmp").write_bytes(b"left behind")


def node_file(path: Path, version: int) -> None:
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TABLE ldk_node_data (primary_namespace TEXT NOT NULL, secondary_namespace TEXT"
            " DEFAULT \"\" NOT NULL, key TEXT NOT NULL CHECK (key <> ''), value BLOB, sort_order"
            " INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (primary_namespace, secondary_namespace, key))"
        )
        for number, (address, value) in enumerate(LDK.items()):
            db.execute(
                "INSERT INTO ldk_node_data VALUES (?, ?, ?, ?, ?)", (*address, value, 9 - number)
            )
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
