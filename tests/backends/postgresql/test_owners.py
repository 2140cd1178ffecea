"""Owners on other machines: the lease decides, by the server's clock, and whoever lost its claim is fenced.

The other machines are namespaces of processes, of networks and of host names. What they share with this one is the server.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay import ClaimLostError, InFlightError, Replay, open_store
from support.needs import needs_namespaces
from support.postgres import Schema
from support.process_table import children_of
from support.programs import PROGRAMS, Program, unmeasured
from support.replaying import Handler, never
from support.waiting import until

pytestmark = pytest.mark.any_python

HOST = ("unshare", "--pid", "--net", "--uts", "--fork", "--mount-proc", "--kill-child")
FACES = pytest.mark.parametrize("face", ["sync", "async"])
KEY = ("lsp", "payment")
PARAMS = {"amount": 1}
FIVE_MINUTES = """
import time
_ns, _s = time.time_ns, time.time
time.time_ns = lambda: _ns() + 300 * 10**9
time.time = lambda: _s() + 300
"""


@pytest.fixture
def store(postgres: Schema) -> Iterator[Any]:
    with open_store(postgres.url) as store:
        yield store


@pytest.fixture
def rerun(store: Any) -> Replay:
    """This machine's replay, which runs again what is in doubt."""
    return Replay(store, "ns", ttl=60, wait_timeout=0, on_in_doubt="rerun")


@pytest.fixture
def start(postgres: Schema, tmp_path: Path) -> Iterator[Any]:
    """``start(settings={…})`` runs the key on another machine; it says ``running`` in the handler."""
    needs_namespaces(*HOST)
    owners: list[Program] = []

    def start(wrong_clock: bool = False, **told: Any) -> Program:
        env = unmeasured()
        if wrong_clock:
            (tmp_path / "sitecustomize.py").write_text(FIVE_MINUTES, encoding="utf-8")
            env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        told = {
            "url": postgres.url,
            "face": "sync",
            "awaits": True,
            "key": KEY,
            "params": PARAMS,
            **told,
        }
        script = [sys.executable, str(PROGRAMS / "owner_process.py"), json.dumps(told)]
        owners.append(Program([*HOST, *script], env))
        return owners[-1]

    yield start
    for each in owners:
        each.end()


def runs(replay: Replay) -> bool:
    """Whether a request runs the key, which is in doubt."""
    try:
        return bool(replay.execute(KEY, PARAMS, Handler("again")).response == "again")
    except InFlightError:
        return False


def claim_of(replay: Replay) -> Any:
    (claim,) = [each.claim for each in replay.records() if each.claim is not None]
    return claim


@FACES
def test_a_paused_owner_that_wakes_after_its_lease_is_fenced(
    store: Any, rerun: Replay, start: Any, face: str
) -> None:
    """Another one has taken over: its answer is everybody's, and the owner is told that it lost its claim."""
    owner = start(face=face, settings={"lease": 2.0})
    assert owner.says() == "running"
    (process,) = children_of(owner.pid)
    os.kill(process, signal.SIGSTOP)  # it renews no more
    expiry = claim_of(rerun).lease_expires_at
    until(lambda: runs(rerun))
    assert store.clock.now_ms() >= expiry
    os.kill(process, signal.SIGCONT)
    owner.tell()
    assert owner.says() == "ClaimLostError"
    assert rerun.execute(KEY, PARAMS, never).response == "again"


@FACES
def test_a_long_handler_keeps_its_claim(store: Any, rerun: Replay, start: Any, face: str) -> None:
    """On an engine that machines share a claim is renewed unless that is refused."""
    owner = start(face=face, settings={"lease": 2.0})
    assert owner.says() == "running"
    first = claim_of(rerun).lease_expires_at
    while store.clock.now_ms() < first + 2500:
        assert not runs(rerun)
    owner.tell()
    assert owner.says() == "r"
    assert rerun.execute(KEY, PARAMS, never).response == "r"


def test_without_renewal_it_does_not(store: Any, rerun: Replay, start: Any) -> None:
    owner = start(settings={"lease": 1.0, "renew": False})
    assert owner.says() == "running"
    until(lambda: runs(rerun))
    owner.tell()
    assert owner.says() == "ClaimLostError"


def test_an_event_loop_that_is_blocked_renews_nothing(rerun: Replay, start: Any) -> None:
    """A handler that lets its loop do nothing else for longer than its lease loses its claim."""
    owner = start(face="async", awaits=False, settings={"lease": 1.0})
    assert owner.says() == "running"
    until(lambda: runs(rerun))
    owner.tell()
    assert owner.says() == "ClaimLostError"


def test_a_killed_owner_is_believed_until_its_lease_is_over(
    store: Any, rerun: Replay, start: Any
) -> None:
    owner = start(settings={"lease": 1.5})
    assert owner.says() == "running"
    owner.kill()
    expiry = claim_of(rerun).lease_expires_at
    until(lambda: runs(rerun))
    assert store.clock.now_ms() >= expiry


def test_machines_whose_clocks_differ_agree_on_a_lease(
    store: Any, rerun: Replay, start: Any
) -> None:
    """Both ways: by the server's clock, though one's own is five minutes ahead."""
    owner = start(wrong_clock=True, settings={"lease": 20.0})
    assert owner.says() == "running"
    assert 0 < claim_of(rerun).lease_expires_at - store.clock.now_ms() <= 20_000
    assert not runs(rerun)
    owner.tell()
    assert owner.says() == "r"
    other = ("lsp", "other")

    def meanwhile() -> str:
        asked = start(wrong_clock=True, key=other, settings={"on_in_doubt": "rerun"})
        assert asked.says() == "InFlightError"
        return "once"

    assert rerun.execute(other, PARAMS, meanwhile).response == "once"


def test_by_their_own_clocks_they_do_not(rerun: Replay, start: Any) -> None:
    """One takes a claim of this moment for an old one, and its handler runs beside the owner's."""

    def meanwhile() -> str:
        asked = start(wrong_clock=True, own_clock=True, settings={"on_in_doubt": "rerun"})
        assert asked.says() == "running"
        asked.tell()
        assert asked.says() == "r"
        return "twice"

    with pytest.raises(ClaimLostError):
        rerun.execute(KEY, PARAMS, meanwhile)


def test_the_first_thing_that_a_store_is_asked_may_be_the_time(
    postgres: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a sweep: a machine whose clock is ahead would remove what is not due."""
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    with open_store(postgres.url) as store:
        now: int = store.clock.now_ms()  # type: ignore[attr-defined]
    assert abs(now / 1000 - time.time()) < 60
