"""Migrations with real processes: killed at every batch, and beside one that writes to the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvreplay import open_store
from support.migrating_process import HOT
from support.migrations import (
    SCRIPT,
    Copied,
    content,
    fill,
    killed_at_each_batch,
    order,
    url_of,
)
from support.nursery import ForkedProgram

pytestmark = pytest.mark.any_python


def source_of(engine: str, folder: Path, entries: int = 13) -> Copied:
    url = url_of(engine, folder / "source")
    with open_store(url) as store:
        fill(store, entries)
        return Copied(url, content(store), order(store))


# The other pairs, and LDK's own files: tests/torture/test_migrations.py.
@pytest.mark.parametrize(
    ("one", "other"), [("lmdb", "sqlite"), ("sqlite", "sqlite"), ("filesystem", "lmdb")]
)
def test_killed_at_each_batch_it_goes_on(one: str, other: str, tmp_path: Path) -> None:
    copied = source_of(one, tmp_path)
    assert killed_at_each_batch(copied, other, tmp_path) >= 2 + 5 + 2  # look, copy, compare
    copied.check(copied.source)


@pytest.mark.parametrize("engine", ["lmdb", "sqlite", "filesystem"])
def test_beside_a_process_that_writes_to_the_source(engine: str, tmp_path: Path) -> None:
    """Each entry is copied as it was at one moment; a call after the last write makes all equal."""
    copied = source_of(engine, tmp_path, entries=100)
    destination = url_of("sqlite", tmp_path / "destination")

    def hot_in(url: str) -> tuple[int, int | None]:
        store: Any
        with open_store(url) as store:
            entry = store.read_entry(*HOT)
            return int(entry.value), entry.expires_at

    with ForkedProgram(SCRIPT, {"writes": copied.source}) as writer:
        assert writer.hear() == "writing"
        equal = False
        for _ in range(3):
            before, _ = hot_in(copied.source)
            said = copied.run(destination)
            after, _ = hot_in(copied.source)
            assert before < after  # it did write meanwhile
            number, expires_at = hot_in(destination)
            assert number == expires_at  # of one moment,
            assert before <= number <= after  # and of a moment of this very call
            if equal := "entries" in said:  # no write came between the two passes
                break
            assert said == {"differences": 1}
        writer.tell()
        last = int(writer.hear())
    if not equal:
        assert "entries" in copied.run(destination)
        assert hot_in(destination) == (last, last)
        with open_store(copied.source) as one, open_store(destination) as other:
            assert content(other) == content(one)
