"""Every schedule of a scenario: depth first to count and check all, breadth first for the shortest."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator

import attrs

from simulation.answers import Move
from simulation.flows import REAL, Protocol
from simulation.invariants import Violation
from simulation.moves import Moves
from simulation.scenario import Scenario
from simulation.world import World


@attrs.frozen
class Explored:
    """What was walked: all ``schedules``, through ``states`` that differ."""

    schedules: int
    states: int
    moves: int
    ends: dict[str, int]


class Counterexample(AssertionError):
    """A schedule that breaks an invariant, told step by step."""

    def __init__(self, scenario: Scenario, steps: list[str], broken: str) -> None:
        self.broken = broken
        self.steps = steps
        lines = [f"{number:4}. {step}" for number, step in enumerate(steps, 1)]
        super().__init__("\n".join((f"BROKEN: {broken}", f"in: {scenario}", *lines)))


def explore(scenario: Scenario, protocol: Protocol = REAL, moves: type[Moves] = Moves) -> Explored:
    """Walk every schedule once; states that are equal have the same future.

    Raises:
        Counterexample: an invariant is broken.
    """
    gc.disable()  # nothing here is garbage, and there is much of it
    try:
        return _walk(moves(scenario, protocol))
    finally:
        gc.enable()


def _walk(moves: Moves) -> Explored:
    scenario = moves.scenario
    first = World.first(scenario)
    schedules: dict[World, int | None] = {first: None}  # None: on the path
    path: list[tuple[str, World, Iterator[Move], list[int]]] = [("", first, moves.of(first), [])]
    walked = 0
    while path:
        _, world, ahead, found = path[-1]
        try:
            move = next(ahead, None)
        except Violation as violation:
            steps = [each for each, *_ in path[1:]]
            raise Counterexample(scenario, [*steps, violation.label], violation.broken) from None
        if move is None:
            path.pop()
            schedules[world] = sum(found) or 1
            if path:
                path[-1][3].append(schedules[world])
            continue
        walked += 1
        then, after = move
        if after not in schedules:
            schedules[after] = None
            path.append((then, after, moves.of(after), []))
        elif (known := schedules[after]) is not None:
            found.append(known)
        else:
            steps = [*(each for each, *_ in path[1:]), then]
            raise Counterexample(scenario, steps, "a schedule goes round in circles")
    return Explored(schedules[first] or 0, len(schedules), walked, dict(moves.ends))


def shortest(
    scenario: Scenario, protocol: Protocol = REAL, moves: type[Moves] = Moves
) -> Counterexample | None:
    """Return the shortest schedule that breaks an invariant, if there is one."""
    gc.disable()
    try:
        return _search(moves(scenario, protocol))
    finally:
        gc.enable()


def _search(moves: Moves) -> Counterexample | None:
    scenario = moves.scenario
    first = World.first(scenario)
    came: dict[World, tuple[World, str] | None] = {first: None}
    ahead = deque([first])
    while ahead:
        world = ahead.popleft()
        try:
            for label, after in moves.of(world):
                if after not in came:
                    came[after] = (world, label)
                    ahead.append(after)
        except Violation as violation:
            steps = [violation.label]
            before = came[world]
            while before is not None:
                world, label = before
                steps.append(label)
                before = came[world]
            return Counterexample(scenario, steps[::-1], violation.broken)
    return None
