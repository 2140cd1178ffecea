"""Each operation of each engine, interrupted at each point; what is asserted then is in ``world.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from interrupts.operations import ENGINES, operations_of
from interrupts.programs import run_walk
from interrupts.walk import ERRORS, first_of

pytestmark = pytest.mark.untraced

_STRIDE = 19  # of the short form


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("engine", ENGINES)
def test_some_points(engine: str, error: str, tell: Callable[[str], None]) -> None:
    walk(engine, error, _STRIDE, tell)


@pytest.mark.interrupts
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_point(engine: str, error: str, tell: Callable[[str], None]) -> None:
    walk(engine, error, 1, tell)


def walk(engine: str, error: str, stride: int, tell: Callable[[str], None]) -> None:
    names = operations_of(engine)
    said = run_walk("-m", "interrupts.walk", engine, error, str(stride), *names)
    figures: list[dict[str, Any]] = [json.loads(line) for line in said]
    assert [each["operation"] for each in figures] == names
    damaged = [(each["operation"], each["damaged"]) for each in figures if each["damaged"]]
    assert not damaged, json.dumps(damaged, indent=1)
    for each in figures:
        points = range(first_of(engine, each["operation"], stride), each["points"] + 1, stride)
        assert each["tried"] == len(points), f"{each['operation']}: points were left out"
        assert each["points"] >= 1, each["operation"]
    tried = sum(each["tried"] for each in figures)
    version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    tell(f"{tried} points of {len(names)} operations, on {version}")
