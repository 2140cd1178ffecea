"""Each operation of each engine, interrupted at its points; what is asserted then is in ``world.py``.

Once a ``KeyboardInterrupt``, once an ``Exception``, and once there is no room on the stack for as many
frames as the operation needs: for 1, 2, 3, ... of them. ``--every=1`` tries every point.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from interrupts.operations import ASYNC, ENGINES, operations_of
from interrupts.programs import run_walk
from interrupts.walk import ERRORS, first_of
from interrupts.world import ON_SERVERS, SERVER
from support.needs import needs_h11, needs_psycopg

pytestmark = pytest.mark.untraced

_ON_SERVERS = {"postgresql": 4, "etcd": 16}
"""By how much fewer points are tried: each try connects to a server, and opens a store."""
_VARIES = 10  # how many points more or less a call has, as the threads of its event loop go
_DEPTHS = 40  # by how much more of the depths are tried: a call has fewer of them than points
_CHANGES = (
    "write",
    "check_and_put",
    "transaction",
    "execute",
    "execute_in_transaction",
    "turn",
    "joined",
)
_CHANGES += tuple(f"{ASYNC}{each}" for each in _CHANGES)  # all that a short run tries without room


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(name, marks=[pytest.mark.any_python] if name in ON_SERVERS else [])
        for name in ENGINES
    ],
)
def test_no_point_is_harmful(
    engine: str,
    error: str,
    request: pytest.FixtureRequest,
    pytestconfig: pytest.Config,
    tell: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stride = int(pytestconfig.getoption("--every"))
    if engine in ON_SERVERS and stride > 1:
        stride *= _ON_SERVERS[engine]
    varies, names = _VARIES, operations_of(engine)
    if error == "RecursionError":
        stride, varies = max(stride // _DEPTHS, 1), 2
        if stride > 1:
            names = [each for each in names if each in _CHANGES]
    if engine == "postgresql":
        needs_psycopg()
        from support.shared_postgres import shared_server

        monkeypatch.setenv(SERVER, shared_server().url)
    if engine == "etcd":
        needs_h11()
        prefix = request.getfixturevalue("etcd")
        monkeypatch.setenv(SERVER, prefix.url)
    said = run_walk("-m", "interrupts.walk", engine, error, str(stride), *names)
    figures: list[dict[str, Any]] = [json.loads(line) for line in said]
    assert [each["operation"] for each in figures] == names
    damaged = [(each["operation"], each["damaged"]) for each in figures if each["damaged"]]
    assert not damaged, json.dumps(damaged, indent=1)
    lost = [(each["operation"], each["lost"]) for each in figures if each["lost"]]
    assert not lost, f"nobody hears of an interrupt: {json.dumps(lost, indent=1)}"
    for each in figures:
        first = first_of(engine, each["operation"], error, stride)
        points = range(first, each["points"] - varies + 1, stride)
        assert each["tried"] >= len(points), f"{each['operation']}: points were left out"
        assert each["points"] >= (error != "RecursionError"), each["operation"]
    tried = sum(each["tried"] for each in figures)
    version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    tell(f"{tried} points of {len(names)} operations, on {version}")
