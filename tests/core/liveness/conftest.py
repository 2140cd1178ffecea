"""An owners file, a run of this process, and another process that owns a claim."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvreplay._protocol.record import Claim
from kvreplay._runtime.liveness import end, new_token
from support.owners import OWNER
from support.programs import Program


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "owners")


@pytest.fixture
def owner(path: str) -> Iterator[Callable[..., tuple[Program, Claim]]]:
    """``owner(code)`` starts a process that owns a claim, and then does what the code says."""
    programs: list[Program] = []

    def start(code: str = "sys.stdin.readline()") -> tuple[Program, Claim]:
        program = Program([sys.executable, "-c", OWNER + code, path])
        programs.append(program)
        token, text = program.hear().split()
        return program, Claim(bytes.fromhex(token), 0, text)

    yield start
    for each in programs:
        each.end()


@pytest.fixture
def token(path: str) -> Iterator[bytes]:
    token = new_token()
    yield token
    end(token)
