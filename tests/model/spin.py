"""Spin verifies the model, finds the trail to a broken invariant, and walks at random."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from model.traces import Trace, traced
from support.needs import missing

MODEL = Path(__file__).with_name("replay.pml")
BUGS = re.compile(r"\b(?:BUG|[A-Z]+_ANYWAY|IGNORES_LEASE|SETTLES_ANY|BELIEVES_LATE|HIDES_END)\b")


@attrs.frozen
class Bounds:
    """How often each thing may happen in the model. Times are ticks."""

    ticks: int = 2
    crashes: int = 1
    renewals: int = 1
    lease: int = 2
    skew: int = 1
    on_time: bool = False

    def defines(self, bug: int = 0) -> list[str]:
        values = {**attrs.asdict(self), "bug": bug}
        return [f"-D{name.upper()}={int(value)}" for name, value in values.items()]


ANY_TIME = Bounds()
ON_TIME = Bounds(ticks=4, lease=3, renewals=3, on_time=True)
"""With three renewals a lease, of which none fails and none takes time, this skew is the largest."""


@attrs.frozen
class Verified:
    """What spin has walked: all states, unless it has met an error."""

    errors: int
    states: int
    depth: int
    unreached: tuple[str, ...]
    """The lines of the model that were reached from nowhere, but for those of bugs."""


def needs_spin() -> None:
    for tool in ("spin", "gcc"):
        if shutil.which(tool) is None:
            missing(f"needs {tool}")


def verified(folder: Path, bounds: Bounds, bug: int = 0) -> Verified:
    """Verify the model in a folder of its own, until its first error."""
    needs_spin()
    _run(folder, "spin", "-a", *bounds.defines(bug), str(MODEL))
    _run(folder, "gcc", "-O0", "-DSAFETY", "-o", "pan", "pan.c")  # to optimise would take longer
    told = _run(folder, "./pan", "-m10000")
    (depth, errors) = re.search(r"depth reached (\d+), errors: (\d+)", told).groups()
    (states,) = re.search(r"(\d\S*) states, stored", told).groups()
    assert "max search depth too small" not in told
    return Verified(int(errors), int(float(states)), int(depth), tuple(_unreached(folder, told)))


def trail(folder: Path, bounds: Bounds, bug: int = 0) -> Trace:
    """Return the trace to the error that :func:`verified` has met."""
    shutil.copy(MODEL, folder)
    steps = ("-t", "-k", f"{MODEL.name}.trail", MODEL.name)
    return traced(_run(folder, "spin", "-T", "-B", *bounds.defines(bug), *steps))


def at_random(folder: Path, bounds: Bounds, seeds: Iterable[int]) -> Iterator[Trace]:
    """Yield a trace for each seed, by which the model chooses."""
    needs_spin()
    _run(folder, "gcc", "-E", "-x", "c", *bounds.defines(), "-o", "expanded.pml", str(MODEL))
    for seed in seeds:  # and no preprocessor each time
        yield traced(_run(folder, "spin", "-Pcat", "-T", "-B", f"-n{seed}", "expanded.pml"))


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _unreached(folder: Path, told: str) -> Iterator[str]:
    """Yield what was not reached. An inline's line is in many places: it was reached in none."""
    states: dict[tuple[int, str], set[tuple[str, str]]] = {}
    for proctype, state, line, step in _all_states(_run(folder, "./pan", "-d")):
        states.setdefault((line, step), set()).add((proctype, state))
    missed: set[tuple[str, str]] = set()
    for part in told.split("unreached in ")[1:]:
        name, _, rest = part.partition("\n")
        missed |= {(name, state) for state in re.findall(r":\d+, state (\d+),", rest)}
    source = MODEL.read_text().splitlines()
    for (line, step), there in sorted(states.items()):
        if there <= missed and not BUGS.search(source[line - 1]):
            yield f"{line}: {step or source[line - 1].strip()}"


def _all_states(listed: str) -> Iterator[tuple[str, str, int, str]]:
    """Yield the proctype, number and line of each state, and which step it prints, if it does."""
    proctype = ""
    for line in listed.splitlines():
        if line.startswith(("proctype", "init")):
            proctype = line.strip()
        elif found := re.match(r"\s+state\s+(\d+) .*?\.pml:(\d+) => (.*)", line):
            step = found[3].strip() if "'STEP" in found[3] else ""
            yield proctype, found[1], int(found[2]), step
