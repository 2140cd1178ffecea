"""Several processes with several threads call one store: is each call one instant step?

What is seen of stores that are broken on purpose, and doctored histories, beside the true ones that
they were made from, are rejected. ``--histories N`` records more than CI has time for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from kvreplay import open_store
from support.crew import run_together
from support.histories import KEYS, History, Tally, collected, unexplained
from support.linearizability import Operation, linearization
from support.needs import needs_strace
from support.programs import PROGRAMS

pytestmark = pytest.mark.any_python

SCRIPT = PROGRAMS / "history_process.py"


# Recording.


def record(
    url: str,
    folder: Path,
    *,
    seed: int = 0,
    processes: int = 4,
    victims: int = 0,
    threads: int = 3,
    operations: int = 50,
    faults: Sequence[str] = (),
    broken: str = "",
) -> dict[str, History]:
    """Let processes call a store all at once, kill the victims among them, return what they saw.

    ``faults`` is what injects faults into the last one.

    The result has a history for each key, which are independent.
    """
    folder.mkdir()
    rng = random.Random(seed)
    told = [
        {
            "url": url,
            "folder": str(folder),
            "name": f"{seed}-{n}",
            "keys": KEYS,
            "threads": threads,
            "operations": None if n < victims else operations,
            "kill_at": rng.randrange(operations) if n < victims else None,
            "faulty": bool(faults) and n == processes - 1,
            "broken": broken,
            # Other processes may see a lazy removal later than its call returns.
            "lazy": processes == 1 or url.startswith(("filesystem:", "postgresql:")),
        }
        for n in range(processes)
    ]
    assert len(run_together(SCRIPT, told, faults=faults)) == victims
    return collected(folder)


@pytest.fixture
def histories(pytestconfig: pytest.Config) -> int:
    """How many to record of each kind of store."""
    return int(pytestconfig.getoption("--histories"))


@pytest.mark.parametrize(
    ("engine", "crew"),
    [
        pytest.param("memory", {"processes": 1, "threads": 12}, id="memory"),
        pytest.param("filesystem", {}, id="filesystem"),
        pytest.param("filesystem", {"processes": 5, "victims": 2}, id="filesystem-killed"),
        pytest.param("lmdb", {}, id="lmdb"),
        pytest.param("lmdb", {"processes": 1, "threads": 12}, id="lmdb, lazy removals"),
        pytest.param("lmdb", {"processes": 5, "victims": 2}, id="lmdb-killed"),
        pytest.param("sqlite", {}, id="sqlite"),
        pytest.param("sqlite", {"processes": 1, "threads": 12}, id="sqlite, lazy removals"),
        pytest.param("sqlite", {"processes": 5, "victims": 2}, id="sqlite-killed"),
        pytest.param("postgresql", {}, id="postgresql"),
        pytest.param("postgresql", {"processes": 5, "victims": 2}, id="postgresql-killed"),
    ],
)
def test_what_was_seen_can_be_explained(
    engine: str,
    crew: dict[str, int],
    histories: int,
    tmp_path: Path,
    tell: Any,
    request: pytest.FixtureRequest,
) -> None:
    """Even where LMDB shows a change before its last flush: it does so before the call returns."""
    tally = Tally()
    for seed in range(math.ceil(histories / len(KEYS))):
        url = "memory:"
        if engine == "postgresql":
            url = emptied(request.getfixturevalue("postgres"))
        elif engine != "memory":
            url = f"{engine}:{tmp_path}/store{seed}?durability={('full', 'process')[seed % 2]}"
        for key, history in record(url, tmp_path / f"seen{seed}", seed=seed, **crew).items():
            assert linearization(history) is not None, unexplained(history, seed, key)
            tally.add(history)
    assert tally.at_once > 1, "the calls came one after another: nothing was tested"
    assert tally.changed, "no check-and-put changed anything: nothing was tested"
    tell(tally.told())


def emptied(postgres: Any) -> str:
    """The URL of a schema in which there is nothing."""
    postgres.server.execute(f"DROP SCHEMA IF EXISTS {postgres.name} CASCADE")
    return f"{postgres.url}&pool_size=4"


# The call that makes a change count, and after it nobody knows: the flush of a folder, LMDB's meta page.
@pytest.mark.parametrize(("engine", "call"), [("filesystem", "fsync"), ("lmdb", "pwrite64")])
def test_unknown_outcomes_of_a_failing_disk_can_be_explained(
    engine: str, call: str, histories: int, tmp_path: Path, tell: Any
) -> None:
    """Some calls fail in one process, which goes on, as all others do."""
    needs_strace()
    tally = Tally()
    enough = math.ceil(histories / len(KEYS) / 4)
    for seed in range(10 * enough):
        if seed >= enough and tally.unknown:
            break
        url = f"{engine}:{tmp_path}/store{seed}"
        open_store(url).close()  # here, where no call fails
        inject = f"inject={call}:error=EIO:when={7 + seed}+{5 + seed}"
        faults = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject]
        seen = record(url, tmp_path / f"seen{seed}", seed=seed, faults=faults)
        for key, history in seen.items():
            assert linearization(history) is not None, unexplained(history, seed, key)
            tally.add(history)
    assert tally.unknown, "every outcome was known: nothing was tested"
    tell(tally.told())


# Stores that are broken on purpose.


@pytest.mark.parametrize("engine", ["filesystem", "lmdb"])
@pytest.mark.parametrize("broken", ["ReadThenPut", "ReadsItsCache", "Forgets"])
def test_what_a_broken_store_shows_cannot_be_explained(
    engine: str, broken: str, tmp_path: Path, tell: Any
) -> None:
    for seed in range(20):
        url = f"{engine}:{tmp_path}/store{seed}"
        seen = record(url, tmp_path / f"seen{seed}", seed=seed, broken=broken)
        if rejected := [key for key in KEYS if linearization(seen[key]) is None]:
            tell(f"{len(rejected)} of {len(KEYS)} histories rejected, in run {seed + 1}")
            return
    pytest.fail("the checker never noticed")


# Doctored histories, each beside the true one that it was made from. In the true ones every value is
# put once, so what replaced a value has replaced it for good.


def replacements(history: History) -> Iterator[Operation]:
    """The check-and-puts that replaced a value by another."""
    for each in history:
        succeeded = each.kind == "check_and_put" and each.has_ended and each.found == each.expected
        if succeeded and each.found is not None and each.value != each.found:
            yield each


def with_changes(history: History, changes: dict[Operation, Operation]) -> History:
    return [changes.get(each, each) for each in history]


def stale_reads(history: History) -> Iterator[History]:
    """A read of a value that had been replaced, after that was acknowledged."""
    for replacement in replacements(history):
        for each in history:
            if each.kind == "read" and each.has_ended and each.invoked > replacement.returned:
                stale = attrs.evolve(each, found=replacement.expected)
                yield with_changes(history, {each: stale})


def second_winners(history: History) -> Iterator[History]:
    """A check-and-put that succeeds on what another one has replaced."""
    for replacement in replacements(history):
        for each in history:
            if each.kind == "check_and_put" and each.has_ended and each is not replacement:
                old = replacement.expected
                yield with_changes(
                    history, {each: attrs.evolve(each, expected=old, found=old, value="new")}
                )


def lost_writes(history: History) -> Iterator[History]:
    """An acknowledged change of which nobody saw anything."""
    for replacement in replacements(history):
        old, new = replacement.expected, replacement.value
        witnesses = [each for each in history if each.has_ended and each.found == new]
        if any(each.invoked > replacement.returned and each.found for each in witnesses):
            yield with_changes(
                history,
                {
                    each: attrs.evolve(
                        each, found=old, expected=old if each.expected == new else each.expected
                    )
                    for each in witnesses
                },
            )


def swapped_moments(history: History) -> Iterator[History]:
    """A value that was seen before it was put."""
    for put in history:
        for each in history:
            if put.value and each.found == put.value and put.returned < each.invoked:
                moments = attrs.evolve(put, invoked=each.invoked, returned=each.returned)
                earlier = attrs.evolve(each, invoked=put.invoked, returned=put.returned)
                yield with_changes(history, {put: moments, each: earlier})


@pytest.mark.parametrize("doctor", [stale_reads, second_winners, lost_writes, swapped_moments])
@pytest.mark.parametrize("victims", [0, 2])
def test_a_doctored_history_is_rejected_and_its_twin_accepted(
    doctor: Callable[[History], Iterator[History]], victims: int, tmp_path: Path
) -> None:
    crew = {"processes": 5, "victims": victims, "operations": 25}
    seen = record(f"lmdb:{tmp_path}/store", tmp_path / "seen", **crew)
    doctored = [(true, each) for true in seen.values() for each in doctor(true)]
    assert doctored
    for true, false in random.Random(1).sample(doctored, min(len(doctored), 50)):
        assert linearization(true) is not None
        assert linearization(false) is None
