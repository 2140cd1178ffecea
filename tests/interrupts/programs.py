"""The walks, each in a small process of its own, from which a fork is quick."""

from __future__ import annotations

import os
from pathlib import Path

from support.programs import run_python, unmeasured

__all__ = ["run_walk"]

_TESTS = str(Path(__file__).parent.parent)


def run_walk(*arguments: str) -> list[str]:
    """Run Python that can import the walk; return the lines that it said."""
    path = os.pathsep.join(filter(None, (_TESTS, os.environ.get("PYTHONPATH"))))
    done = run_python(*arguments, timeout=3600, env=unmeasured() | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()
