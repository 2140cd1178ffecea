"""Many clients swap values all at once, some are killed in the middle: no value is ever swapped out twice.

What is seen of statements that are wrong, in the place of the engine's own, is rejected.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kvreplay import open_store
from support.postgres import VERSIONS, Schema, new_schema
from support.shared_postgres import shared_server
from support.swaps import Swap, last_values, read_swaps, swapping, wrongs
from support.waiting import until

pytestmark = pytest.mark.any_python


@pytest.fixture(params=VERSIONS)
def schema(request: pytest.FixtureRequest) -> Iterator[Schema]:
    with new_schema(shared_server(request.param)) as schema:
        yield schema


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "history"
    folder.mkdir()
    return folder


def test_no_value_is_swapped_out_twice(
    schema: Schema, folder: Path, tell: Callable[[str], None]
) -> None:
    """By threads and tasks of several processes, beside others that are killed in flight."""
    began = time.monotonic()
    with open_store(schema.url) as store:
        with ExitStack() as stack:
            crew = [
                stack.enter_context(swapping(schema.url, folder, name, face=face, calls=150))
                for name, face in (("one", "sync"), ("two", "sync"), ("three", "async"))
            ]
            for each in crew:
                each.tell()
            for n in range(6):
                face = ("sync", "async")[n % 2]
                with swapping(schema.url, folder, f"victim{n}", face=face) as victim:
                    victim.tell()
                    log = folder / f"victim{n}-0"
                    until(lambda log=log: log.stat().st_size > 1000)  # type: ignore[misc]
                    victim.kill()
            for each in crew:
                assert each.says() == []
        swaps, at_last = read_swaps(folder), last_values(store)
    ends = Counter("made" if swap.is_made else swap.end for swap in swaps)
    tell(f"{len(swaps)} calls, {dict(ends)}, in {time.monotonic() - began:.1f} s")
    assert wrongs(swaps, at_last) == []
    assert ends["made"] > 500
    assert ends["found"] > 100, "nobody met another one"
    assert ends["killed"] >= 6, "nobody was killed in a call"


@pytest.mark.parametrize("face", ["sync", "async"])
def test_a_statement_that_reads_beside_its_write_is_found_out(
    schema: Schema, folder: Path, face: str, tell: Callable[[str], None]
) -> None:
    began = time.monotonic()
    found = planted(schema, folder, face, "naive")
    tell(f"{len(found)} wrongs, in {time.monotonic() - began:.1f} s")
    assert any("was swapped out" in wrong for wrong in found), found


def planted(schema: Schema, folder: Path, face: str, what: str, calls: int = 600) -> list[str]:
    """Let clients swap by another statement; return what cannot be true of what they saw."""
    told: Any = {
        "face": face,
        "keys": ["a"],
        "calls": calls,
        "planted": what,
        "schema": schema.name,
    }
    with open_store(schema.url) as store, ExitStack() as stack:
        crew = [
            stack.enter_context(swapping(schema.url, folder, name, **told))
            for name in ("one", "two")
        ]
        for each in crew:
            each.tell()
        failures = [failure for each in crew for failure in each.says()]
        return failures + wrongs(read_swaps(folder), last_values(store))


def test_merge_is_found_out(folder: Path) -> None:
    """It fails where another one inserts the same key meanwhile."""
    for _ in range(20):  # they may not meet at once
        with new_schema(shared_server(18)) as schema:
            found = planted(schema, folder, "sync", "merge", calls=150)
        if any("duplicate key value" in wrong for wrong in found):
            return
    pytest.fail("nobody inserted a key that another one was inserting")


# What the search itself finds, in histories that are made up.

PUT = Swap("a", None, "1", "found", None)
SWAPPED = Swap("a", "1", "2", "found", "1")
LOST = Swap("a", "1", "3", "found", "2")
REMOVED = Swap("a", "2", None, "found", "2")
AGAIN = Swap("a", None, "4", "found", None)


def test_a_true_history_passes() -> None:
    history = [PUT, SWAPPED, LOST, REMOVED, AGAIN]
    assert wrongs(history, {"a": "4"}) == []
    killed = Swap("a", "4", "5", "killed")
    for last in ("4", "5"):
        assert wrongs([*history, killed], {"a": last}) == []


@pytest.mark.parametrize(
    ("history", "last", "why"),
    [
        ([PUT, SWAPPED, Swap("a", "1", "3", "found", "1")], "3", "1 was swapped out 2 times"),
        ([PUT, Swap("a", "9", "3", "found", "8")], "1", "8 was found, and never put"),
        ([PUT, Swap("a", "1", "3", "refused", "?")], "3", "3 is there, and was never put"),
        ([PUT, SWAPPED], None, "2 was put, and lost"),
        ([PUT, SWAPPED], "1", "1 is there, and was swapped out"),
        ([PUT, SWAPPED, AGAIN], "4", "2 was put, and lost"),
        ([PUT, SWAPPED, REMOVED, REMOVED], None, "2 was swapped out 2 times"),
        ([PUT, SWAPPED, REMOVED, AGAIN], None, "4 was put, and lost"),
        ([PUT, PUT], "1", "it was made 2 times, and removed 0 times"),
    ],
)
def test_a_false_one_does_not(history: list[Swap], last: str | None, why: str) -> None:
    assert f"{why} (key a)" in wrongs(history, {"a": last})
