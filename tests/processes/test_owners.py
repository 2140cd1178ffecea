"""Who owns a claim, with real processes: namespaces, forks, other programs, daemons, kills.

Each test asks twice: while the owner lives, when nobody may run the key again, and when it is gone,
when the key is in doubt at once. The lease decides neither: it is over after a millisecond. On a
server it does decide (``backends/postgresql/test_owners.py``), and lasts; here are the ends that an
owner tells itself, and what its forked children may not do.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvreplay import InDoubtError, InFlightError, Replay, ReplayKey, StoreError, Unknown
from kvreplay._protocol.steps import CheckAndPut
from kvreplay._runtime.awaiting import AsyncDriver
from kvreplay._runtime.run import Run
from kvreplay.clock import SystemClock
from support.engines import SHARED
from support.needs import UNSHARE, needs_namespaces
from support.nursery import ForkedProgram
from support.programs import PROGRAMS, Program
from support.replaying import Async, Handler, Sync, never
from support.waiting import PATIENCE, until

KEY = ("lsp", "session")
PARAMS = {"amount": 1}
OTHER_PID = [*UNSHARE]
FOREIGN_PROC = ["unshare", "--pid", "--fork", "--kill-child"]  # /proc is still that of the others
OTHER_TIME = ["unshare", "--time", "--boottime", "1000000", "--fork", "--kill-child"]
NAMESPACES = {"pid": OTHER_PID, "foreign proc": FOREIGN_PROC, "time": OTHER_TIME}
namespaces = pytest.mark.parametrize("namespace", NAMESPACES)

pytestmark = pytest.mark.any_python  # it is about the kernel

# Memory is one process's own.
in_files = pytest.mark.parametrize("engine", ["filesystem", "lmdb", "sqlite"], indirect=True)
everywhere = pytest.mark.parametrize("engine", SHARED, indirect=True)


def owner(within: Sequence[str], told: dict[str, Any]) -> Program:
    """Start a process of ``owner_process.py``."""
    script = PROGRAMS / "owner_process.py"
    if within:
        return Program([*within, sys.executable, str(script), json.dumps(told)])
    return ForkedProgram(script, told)


@pytest.fixture(params=["sync", "async"])
def face_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(engine: Any, face_name: str) -> Iterator[Any]:
    owners: list[Program] = []

    def start(within: Sequence[str] = (), **told: Any) -> Program:
        told = {"key": KEY, "params": PARAMS, "url": engine.url, "face": face_name, **told}
        if not engine.has_files:
            told["settings"] = {"lease": 600, **told.get("settings", {})}
        owners.append(owner(within, told))
        return owners[-1]

    yield start
    for each in owners:
        each.end()


@pytest.fixture
def rerun(store: Any, face_name: str) -> Any:
    """This process's replay, which would run whatever is in doubt."""
    face = Sync if face_name == "sync" else Async
    return face(store, "ns", ttl=60, wait_timeout=0, on_in_doubt="rerun")


@pytest.fixture
def reconciled(store: Any, face_name: str) -> Any:
    """The same, but it asks a ledger that does not know yet."""
    asked: list[Any] = []

    def reconcile(record: Any) -> Unknown:
        asked.append(record)
        return Unknown()

    face = Sync if face_name == "sync" else Async
    replay: Any = face(store, "ns", ttl=60, wait_timeout=0, on_in_doubt=reconcile)
    replay.asked = asked
    return replay


def refuses(replay: Any) -> bool:
    """Whether a request, and an operator, are told that the owner lives, though its lease is over.

    On a server it is not.
    """
    (claim,) = [each.claim for each in replay.records() if each.claim is not None]
    if not claim.owner.startswith(":"):  # else nobody can look it up, and the lease decides
        until(lambda: claim.lease_expires_at < SystemClock().now_ms())
    for call in (
        lambda: replay.execute(KEY, PARAMS, never),
        lambda: replay.release(KEY),
        lambda: replay.resolve(KEY, response=1),
    ):
        with pytest.raises(InFlightError):
            call()
    return True


def runs(replay: Any) -> bool:
    """Whether a request runs the key, which is in doubt."""
    try:
        return bool(replay.execute(KEY, PARAMS, Handler("again")).response == "again")
    except InFlightError:
        return False


# Namespaces, both ways.


@in_files
@namespaces
def test_an_owner_in_another_namespace(start: Any, rerun: Any, namespace: str) -> None:
    needs_namespaces(*NAMESPACES[namespace])
    owner = start(NAMESPACES[namespace])
    assert owner.says() == "running"
    assert refuses(rerun)
    owner.tell()
    assert owner.says() == "r"
    assert rerun.execute(KEY, PARAMS, never).replayed


@in_files
@namespaces
def test_an_owner_that_dies_in_another_namespace(start: Any, rerun: Any, namespace: str) -> None:
    needs_namespaces(*NAMESPACES[namespace])
    owner = start(NAMESPACES[namespace])
    assert owner.says() == "running"
    assert refuses(rerun)
    owner.kill()
    until(lambda: runs(rerun))  # what stands before the owner dies first


@in_files
@namespaces
def test_an_owner_that_is_looked_at_from_another_namespace(start: Any, namespace: str) -> None:
    within = NAMESPACES[namespace]
    needs_namespaces(*within)
    settings = {"on_in_doubt": "rerun"}
    owner = start(settings=settings)
    assert owner.says() == "running"
    before = ["sh", "-c", '"$@"; exit $?', "sh"]  # LMDB takes no two processes with equal ids
    asked = start([*within, *before], settings=settings)
    assert asked.says() == "InFlightError"
    asked.tell()
    asked.join()
    owner.kill()
    assert start([*within, *before], settings=settings).says() == "running"


# One machine and one namespace.


@in_files
def test_an_owner_that_executes_another_program(start: Any, rerun: Any) -> None:
    """The pid and the start time stay, and the handler is gone."""
    owner = start(act="exec")
    assert owner.says() == "running"
    assert refuses(rerun)
    before = start_time(owner.pid)
    owner.tell()
    assert owner.says() == "another program"
    assert start_time(owner.pid) == before
    assert runs(rerun)


def start_time(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


@in_files
def test_an_owner_that_became_a_daemon(start: Any, rerun: Any) -> None:
    """It had used the store before, and has closed every descriptor since."""
    parent = start(daemon=True)
    daemon = parent.says()
    assert daemon != parent.pid
    assert parent.says() == "running"
    try:
        assert refuses(rerun)
    finally:
        os.kill(daemon, signal.SIGKILL)
    until(lambda: runs(rerun))
    assert parent.popen.poll() is None  # its ancestor lives, and is no owner


@everywhere
@pytest.mark.parametrize(
    ("act", "how"), [("loses contact", "release"), ("is interrupted", "resolve")]
)
def test_a_run_that_ended_in_doubt_while_its_process_lives(
    start: Any, rerun: Any, reconciled: Any, act: str, how: str
) -> None:
    owner = start(act=act)
    assert owner.says() == "running"
    assert refuses(rerun)
    assert reconciled.asked == []
    owner.tell()
    assert owner.says() in ("IndeterminateError", "KeyboardInterrupt")
    with pytest.raises(InDoubtError):
        reconciled.execute(KEY, PARAMS, never)
    assert len(reconciled.asked) == 1
    if how == "release":
        assert rerun.release(KEY)
    else:
        assert rerun.resolve(KEY, response="paid")
        assert rerun.execute(KEY, PARAMS, never).response == "paid"
    assert owner.popen.poll() is None


@everywhere
@pytest.mark.parametrize("kind", ["os", "bare"])
@pytest.mark.parametrize(
    ("act", "end"),
    [
        ("child raises", "child: FileNotFoundError"),
        ("child exits", "child: "),  # an event loop stops at once, in the middle of anything
        ("child returns", "child: InFlightError"),
    ],
)
def test_a_child_that_leaves_the_handler_does_not_end_its_parents_run(
    start: Any, rerun: Any, kind: str, act: str, end: str
) -> None:
    owner = start(act=act, fork=kind)
    assert owner.says() == "running"
    (before,) = rerun.records()
    owner.tell()
    assert owner.says().startswith(end)
    assert owner.says() == "child ended"
    assert rerun.records() == [before]
    assert refuses(rerun)
    owner.tell()
    assert owner.says() == "r"
    assert rerun.execute(KEY, PARAMS, never).response == "r"


@in_files
@pytest.mark.parametrize("kind", ["os", "bare"])
def test_a_child_does_not_live_on_as_its_parent(start: Any, rerun: Any, kind: str) -> None:
    """It has its parent's descriptors and memory, and waits in its parent's handler."""
    owner = start(act="child waits", fork=kind)
    assert owner.says() == "running"
    assert refuses(rerun)
    owner.tell()
    child = owner.says()
    owner.popen.kill()
    assert owner.popen.wait(PATIENCE) == -signal.SIGKILL
    os.kill(child, 0)  # it lives
    assert runs(rerun)
    owner.tell()


@everywhere
def test_a_child_cannot_put_in_the_name_of_its_parents_run(
    store: Any, face_name: str, fork: Any
) -> None:
    """Wherever its way out of the handler leads to."""
    settings = Replay(store, "ns", ttl=60)._settings
    run = Run(settings, ReplayKey(*KEY))
    run.calling()

    def put() -> None:
        step = CheckAndPut(None, b"v")
        if face_name == "sync":
            run.answer(step)
        else:
            asyncio.run(AsyncDriver(settings)._answer(step, run, None))

    def child() -> None:
        with pytest.raises(StoreError, match="its parent's run"):
            put()

    fork(child).join()
    assert store.list("ns", KEY[0]) == []
    put()
    assert store.list("ns", KEY[0]) == [KEY[1]]


@in_files
def test_one_owner_after_the_other_is_killed(start: Any, rerun: Any) -> None:
    for _ in range(2):
        owner = start(settings={"on_in_doubt": "rerun"})
        assert owner.says() == "running"
        assert start(settings={"on_in_doubt": "rerun"}).says() == "InFlightError"
        assert refuses(rerun)
        owner.popen.kill()
        assert owner.popen.wait(PATIENCE) == -signal.SIGKILL
    with pytest.raises(InDoubtError):
        rerun.lookup(KEY, PARAMS)
    assert runs(rerun)
