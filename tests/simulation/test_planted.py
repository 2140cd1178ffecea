"""The bugs that walking every schedule finds: each is planted, and found by its invariant."""

from __future__ import annotations

import re

import pytest

from simulation.explore import shortest
from simulation.flows import REAL
from simulation.planted import PLANTED, Planted

pytestmark = pytest.mark.exhaustive


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_a_planted_bug_is_found(planted: Planted) -> None:
    found = shortest(planted.scenario, planted.plant())
    assert found is not None
    print(found)
    assert re.search(planted.broken, found.broken)
    assert shortest(planted.scenario, REAL) is None
