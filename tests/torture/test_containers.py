"""Two PID namespaces, such as containers have, on one path: equal process ids, and foreign owners."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay import InDoubtError, InFlightError, Replay
from kvreplay._protocol.record import decode
from support.needs import UNSHARE, needs_pid_namespaces
from support.programs import Program
from support.replaying import FakeClock
from support.waiting import until
from torture.audit import State, audit, sound
from torture.ledger import PARAMS, SCOPE, Ledger

TESTS = Path(__file__).parent.parent
BEHIND_A_SHELL = ("sh", "-c", '"$@"; exit $?', "sh")  # so that it is the second process there


class Container(Program):
    """A process of ``container.py`` in a PID namespace of its own."""

    def __init__(self, engine: Any, ledger: Ledger, *before: str, **told: Any) -> None:
        told = {
            "url": f"{engine.name}:{engine.path}",
            "ledger": str(ledger.path),
            "mode": "sync",
            "settings": {},
            "keys": [],
            "threads": 3,
            **told,
        }
        program = [sys.executable, "-m", "torture.container", json.dumps(told)]
        super().__init__([*UNSHARE, *before, *program], {**os.environ, "PYTHONPATH": str(TESTS)})


@pytest.fixture
def start(durable: Any, ledger: Ledger) -> Iterator[Any]:
    needs_pid_namespaces()
    containers: list[Container] = []

    def start(*before: str, **told: Any) -> Container:
        containers.append(Container(durable, ledger, *before, **told))
        return containers[-1]

    yield start
    for container in containers:
        container.end()


@pytest.mark.parametrize("mode", ["sync", "async", "sync-without-lease"])
def test_two_containers_race(
    durable: Any, start: Any, mode: str, ledger: Ledger, tally: Any, times: int
) -> None:
    """Each key runs once over both of them, even if their process ids are equal."""
    keys = [f"key-{n}" for n in range(100 * times)]
    durable.open().close()
    one = start(mode=mode, keys=keys)
    # LMDB tells its processes apart by their ids alone.
    other = start(*(BEHIND_A_SHELL if durable.name == "lmdb" else ()), mode=mode, keys=keys)
    assert one.hear() == "ready 1"
    assert other.hear() == ("ready 2" if durable.name == "lmdb" else "ready 1")
    for container in (one, other):
        container.tell()
    assert one.hear() == other.hear() == "done"
    with durable.open() as store:
        claims = mode != "sync-without-lease"
        found = audit(store, ledger, keys, claims=claims)
    assert found == Counter({State.ANSWERED: len(keys)})
    assert all(len(each.answers) == 6 for each in ledger.accounts().values())
    tally("keys raced for by two PID namespaces", durable.name, len(keys))
    sound(durable)


def test_a_claim_of_another_container_is_looked_up(
    durable: Any, start: Any, ledger: Ledger
) -> None:
    """Its lease does not decide, nor does whatever process has the same id here."""
    durable.open().close()
    holder = start(held="held")
    assert holder.hear() == "ready 1"
    holder.tell()
    assert holder.hear() == "running"
    if durable.name == "filesystem":
        other = start(keys=["held"], threads=1, settings={"wait_timeout": 0})
        assert other.hear() == "ready 1"
        other.tell()
        assert other.hear() == "done"
        (failure,) = ledger.accounts()["held"].failures
        assert "InFlightError" in failure
    with durable.open() as store:
        claim = decode(store.read("ns", SCOPE, "held")).claim
        assert claim is not None
        clock = FakeClock()
        replay = Replay(store, "ns", ttl=60, wait_timeout=0, clock=clock)
        for now in (claim.lease_expires_at - 1, claim.lease_expires_at):
            clock.now = now
            with pytest.raises(InFlightError):
                replay.execute((SCOPE, "held"), PARAMS, never)
        holder.end()
        for now in (claim.lease_expires_at - 1, claim.lease_expires_at):
            clock.now = now
            until(lambda: fails_with(InDoubtError, replay))


def test_lmdb_refuses_an_equal_process_id(start: Any, durable: Any) -> None:
    """And says why; the files are shared by those whose ids differ."""
    durable.open().close()
    one = start()
    assert one.hear() == "ready 1"
    said = start().hear()
    assert said == "ready 1" if durable.name == "filesystem" else "PID namespace" in said


def fails_with(error: type[Exception], replay: Replay) -> bool:
    try:
        replay.execute((SCOPE, "held"), PARAMS, never)
    except (InDoubtError, InFlightError) as raised:
        return type(raised) is error
    return False


def never() -> None:
    raise AssertionError("it ran a second time")
