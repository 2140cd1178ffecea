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
    is_marked,
    killed_at_each_batch,
    order,
    url_of,
)
from support.nursery import ForkedProgram

pytestmark = pytest.mark.any_python


def source_of(engine: str, folder: Path, entries: int = 9) -> Copied:
    url = url_of(engine, folder / "source")
    with open_store(url) as store:
        fill(store, entries)
        return Copied(url, content(store), order(store))


# The other pairs, and LDK's own files: tests/torture/test_migrations.py.
@pytest.mark.parametrize(("one", "other"), [("sqlite", "sqlite"), ("lmdb", "filesystem")])
def test_killed_at_each_batch_it_goes_on(one: str, other: str, tmp_path: Path) -> None:
    copied = source_of(one, tmp_path)
    # At the begin and the end of looking and comparing, at the begin of copying and at each batch.
    assert killed_at_each_batch(copied, other, tmp_path) >= 2 + 1 + 3 + 2
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
        before, _ = hot_in(copied.source)
        assert copied.run(destination, until_written=True) == {"differences": 1}
        after, _ = hot_in(copied.source)
        number, expires_at = hot_in(destination)
        assert number == expires_at  # of one moment,
        assert before <= number < after  # which was during the call
        assert is_marked(destination)
        writer.tell()
        last = int(writer.hear())
    assert copied.run(destination)["copied"] == 1
    assert hot_in(destination) == (last, last)
    with open_store(copied.source) as one, open_store(destination) as other:
        assert content(other) == content(one)
