"""The model holds, it does what the real flows do, and bugs that are planted in both are found by both."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from model.spin import ANY_TIME, ON_TIME, Bounds, at_random, trail, verified
from model.traces import FATES, MOVES, Diverged, Then, Trace, replay, same_words
from simulation.explore import shortest
from simulation.flows import REAL
from simulation.invariants import Violation
from simulation.planted import PLANTED

BEYOND = Bounds(ticks=4, lease=3, renewals=3, skew=2, on_time=True)
SHORT_LEASES = Bounds(ticks=3, lease=1, renewals=3, crashes=0)
"""So that many are over while their owner lives."""
TRACES = 150
"""How many random traces are made on the real flows, of each of the bounds."""

MET = {
    ("claims", "own claim", ""),
    ("claims", "another's claim", ""),
    ("claims", "another's answer", "is answered"),
    ("completes", "own answer", "is answered"),
    ("completes", "another's claim", ""),  # the fence
    (
        "completes",
        "own answer",
        "",
    ),  # an operator or a reconciler was faster, with this very answer
    ("looks_again", "another's claim", "ends with"),
    ("asks_ledger", "another's claim", ""),
    ("reconciles", "another's answer", "is answered"),
    ("reads_to_renew", "another's claim", ""),  # refused
    ("renews", "own claim", ""),
    ("tells_end", "own ended claim", "ends with"),
    ("withdraws", "nothing", "ends with"),
    ("withdraws", "own claim", "ends with"),  # of its caller's run before, which it has run again
    ("visits", "another's ended claim", ""),
    ("settles", "another's answer", "ends with"),
    ("settles", "nothing", "ends with"),
    ("reads_to_settle", "another's claim", "ends with"),  # not the one that was seen
}
"""What the traces must have met, besides every step and every end."""

BUGS = {
    1: "a completion that does not compare",
    2: "a release that does not compare",
    3: "a renewal that does not compare",
    4: "a lease that is not looked at",
    5: "an operator who settles whatever claim is there",
    6: "a late completion that is believed",
    7: "an end that is not told",
}
"""The model's bugs, and the same in the code."""
BY_NAME = {each.name: each for each in PLANTED}


@pytest.mark.parametrize("bounds", [ANY_TIME, ON_TIME], ids=["any time", "on time"])
def test_the_model_holds(bounds: Bounds, tmp_path: Path, tell: Callable[[str], None]) -> None:
    """Every line of it was reached, and no invariant is broken."""
    done = verified(tmp_path, bounds)
    tell(f"{done.states:,} states, {done.depth} deep")
    assert done.errors == 0
    # On time, nobody takes a claim over from an owner that lives: so none is refused a renewal.
    refused = {":: else -> my.renewals = 0; my.due = NEVER"} if bounds.on_time else set()
    assert {each.partition(": ")[2] for each in done.unreached} == refused


def test_a_step_that_is_never_made_is_told(tmp_path: Path) -> None:
    (unreached,) = verified(tmp_path, attrs.evolve(ANY_TIME, crashes=0)).unreached
    assert "STEP" in unreached


def test_clocks_that_differ_by_more_are_found_by_both(tmp_path: Path) -> None:
    assert verified(tmp_path, BEYOND).errors == 1
    found = trail(tmp_path, BEYOND)
    assert found.broken == "a living owner that renews in time is found in doubt"
    with pytest.raises(Violation) as seen:
        replay(found, BEYOND)
    assert same_words(seen.value) == found.broken


def test_the_code_does_what_the_model_does(tmp_path: Path, tell: Callable[[str], None]) -> None:
    traces: set[Trace] = set()
    for bounds in (ANY_TIME, ON_TIME, SHORT_LEASES):
        walked = set(at_random(tmp_path, bounds, range(TRACES)))
        for trace in walked:
            replay(trace, bounds)
        traces |= walked
    steps = [step for trace in traces for step in trace.steps]
    tell(f"{len(traces)} traces, {len(steps):,} steps")
    assert len(traces) > 2.8 * TRACES
    assert {step.action for step in steps} == MOVES.keys()
    fates = {step.then.fate for step in steps if step.then is not None}
    assert fates >= set(FATES.values())
    assert MET - {step.kind for step in steps} == set()


@pytest.mark.parametrize("bug", BUGS, ids=BUGS.values())
def test_a_bug_in_both_is_found_by_both(bug: int, tmp_path: Path) -> None:
    """The model's trail breaks the same invariant of the code with that bug, and not without it."""
    planted = BY_NAME[BUGS[bug]]
    assert verified(tmp_path, ANY_TIME, bug).errors == 1
    found = trail(tmp_path, ANY_TIME, bug)
    with pytest.raises(Violation) as seen:
        replay(found, ANY_TIME, planted.plant())
    assert same_words(seen.value) == found.broken
    with pytest.raises(Diverged) as other:
        replay(found, ANY_TIME, REAL)
    print(other.value)
    by_simulation = shortest(planted.scenario, planted.plant())
    assert by_simulation is not None
    assert re.search(planted.broken, by_simulation.broken)


def test_a_trace_that_tells_something_else_is_not_the_codes(tmp_path: Path) -> None:
    (trace,) = at_random(tmp_path, ANY_TIME, [0])
    replay(trace, ANY_TIME)
    for index, step in enumerate(trace.steps):
        others = (
            step._replace(then=Then("claim of r9 until 1", step.then.fate)),
            step._replace(action="returns" if step.action == "tells_end" else "tells_end"),
        )
        for other in others:
            steps = (*trace.steps[:index], other, *trace.steps[index + 1 :])
            with pytest.raises(Diverged):
                replay(trace._replace(steps=steps), ANY_TIME)
