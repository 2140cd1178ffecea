"""Files that are damaged under an open store: what cannot be read is told, and is never absent."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.errors import CorruptStoreError, StoreError
from kvreplay.store import Entry
from kvreplay.testing.faults import fill, is_refusal, looks_at, outcome_of

PAGE = 4096


def wrong(looks: Any, truths: Any) -> tuple[dict[str, Any], list[StoreError]]:
    """What is neither the truth nor an error, and the errors."""
    found = {name: outcome_of(look) for name, look in looks.items()}
    refused = [each for each in found.values() if is_refusal(each)]
    others = {name: each for name, each in found.items() if not is_refusal(each)}
    return {name: each for name, each in others.items() if each != truths[name]}, refused


def is_another_value(found: Any, truth: Any) -> bool:
    """Whether only values differ: LMDB's pages have no checksums."""
    if isinstance(truth, list):
        return [key for key, _ in found] == [key for key, _ in truth]
    return isinstance(truth, bytes | Entry) and type(found) is type(truth)


def cut(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def overwritten(source: str, first: int) -> Callable[[Path], None]:
    """By another process: to close a file of SQLite's would end the locks that this one has."""

    def damage(path: Path) -> None:
        command = ["dd", f"if={source}", f"of={path}", f"bs={PAGE}", f"seek={first}", "count=30"]
        subprocess.run([*command, "conv=notrunc"], check=True, capture_output=True)

    return damage


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        *(cut(size) for size in (0, PAGE, 5 * PAGE, 5 * PAGE + 100)),
        *(
            overwritten(source, first)
            for source in ("/dev/zero", "/dev/urandom")
            for first in (0, 1)
        ),
    ],
)
def test_a_damaged_database_of_sqlite(
    damage: Callable[[Path], None], warm: bool, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    with SQLiteStore(path) as store:
        fill(store)
    with SQLiteStore(path) as store:
        looks = looks_at(store)
        with SQLiteStore(path) as another:
            truths = {name: outcome_of(look) for name, look in looks_at(another).items()}
        if warm:  # it has the pages in its memory, and may go on with them
            assert wrong(looks, truths) == ({}, [])
        damage(path)
        false, refused = wrong(looks, truths)
        assert false == {}
        assert refused or warm
        assert {type(each) for each in refused} <= {CorruptStoreError, StoreError}


@pytest.mark.any_python
def test_each_damaged_page_of_lmdb(tmp_path: Path, fork: Any) -> None:
    """Each page in turn, in a child: what LMDB has mapped is the file."""
    path = tmp_path / "store"
    with LMDBStore(path) as store:
        fill(store)
        for n in range(8):
            store.write("many", "s", f"k{n}", b"v" * 900)
    data = (path / "data.mdb").read_bytes()

    def damaged(first: int) -> None:
        with LMDBStore(path) as store:
            looks = looks_at(store)
            truths = {name: outcome_of(look) for name, look in looks.items()}
            with open(path / "data.mdb", "r+b") as file:
                file.seek(first)
                file.write(b"\xff" * PAGE)
                file.flush()
                false, refused = wrong(looks, truths)
                assert {type(each) for each in refused} <= {CorruptStoreError}
                for name, found in false.items():
                    assert is_another_value(found, truths[name]), name
                os._exit(7 if refused else 0)

    refused = 0
    for first in range(2 * PAGE, len(data), PAGE):
        child = fork(lambda first=first: damaged(first))
        refused += {7: 1, 0: 0}[child.wait()]
        (path / "data.mdb").write_bytes(data)
    assert refused > 5
