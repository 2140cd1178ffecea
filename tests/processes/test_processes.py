"""The rules again with real processes that are killed: each row of the table, on shared engines."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay import (
    NOT_APPLIED,
    Applied,
    ConfigError,
    ExpiredError,
    InDoubtError,
    InFlightError,
    ParamsMismatchError,
)
from kvreplay.clock import SystemClock
from support.engines import SHARED, Engine
from support.nursery import ForkedProgram
from support.programs import PROGRAMS
from support.replaying import Async, Caller, FakeClock, Handler, Sync, never
from support.waiting import PATIENCE

KEY = ("lsp", "session")
PARAMS = {"amount": 1}
OTHER = {"amount": 2}

# Memory is one process's own, which is what it promises.
pytestmark = pytest.mark.parametrize("engine", SHARED, indirect=True)


class Node(ForkedProgram):
    """One process of ``node_process.py``."""

    def __init__(self, **told: Any) -> None:
        told = {"key": KEY, "params": PARAMS, **told}
        super().__init__(PROGRAMS / "node_process.py", told)

    def ends(self) -> None:
        """Let the others know that it has ended."""

    def was_killed(self) -> None:
        """Wait for its end, which is a kill."""
        assert self.popen.wait(PATIENCE) == -signal.SIGKILL
        self.ends()

    def kill(self) -> None:
        super().kill()
        self.ends()


class Later:
    """The store's clock, of which a lease passes at once.

    An owner that may be on another machine counts as living until then.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._ahead = 0

    def now_ms(self) -> int:
        return int(self._clock.now_ms()) + self._ahead

    def pass_a_lease(self) -> None:
        self._ahead += 31_000


@pytest.fixture
def settings(engine: Engine, store: Any) -> dict[str, Any]:
    """Of this process's replays."""
    own = {"ttl": 60, "wait_timeout": 0}
    return (
        own if engine.has_files else {**own, "clock": Later(getattr(store, "clock", SystemClock()))}
    )


@pytest.fixture(params=["sync", "async"])
def face_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(engine: Any, settings: dict[str, Any], face_name: str) -> Iterator[Any]:
    nodes: list[Node] = []

    def start(**told: Any) -> Node:
        nodes.append(Node(url=engine.url, face=face_name, **told))
        if "clock" in settings:
            nodes[-1].ends = settings["clock"].pass_a_lease
        return nodes[-1]

    yield start
    for node in nodes:
        node.end()


@pytest.fixture
def make(store: Any, settings: dict[str, Any], face_name: str) -> Any:
    """This process's own replay on the same store."""
    face = Sync if face_name == "sync" else Async
    return lambda **more: face(store, "ns", **{**settings, **more})


def test_an_answer_survives_a_kill(start: Any, make: Any) -> None:
    node = start(die_after=True)
    assert node.says() == "running"
    first = node.says()
    node.was_killed()
    again = make().execute(KEY, PARAMS, never)
    assert (again.response, again.replayed) == (first["response"], True)
    with pytest.raises(ParamsMismatchError):
        make().execute(KEY, OTHER, never)


def test_an_answer_expires_for_every_process(start: Any, make: Any, store: Any) -> None:
    node = start(die_after=True)
    node.says()
    node.says()
    node.was_killed()
    later = FakeClock()
    later.now = next(iter(make().records())).expires_at
    with pytest.raises(ExpiredError):
        make(clock=later).execute(KEY, PARAMS, never)
    assert store.list("ns", KEY[0]) == []


def test_a_kill_in_the_handler_leaves_the_key_in_doubt_at_once(start: Any, make: Any) -> None:
    node = start(hold=True)
    assert node.says() == "running"
    with pytest.raises(InFlightError):
        make().execute(KEY, PARAMS, never)
    with pytest.raises(ParamsMismatchError):
        make().execute(KEY, OTHER, never)
    with pytest.raises(InFlightError):
        make().release(KEY)
    node.kill()
    with pytest.raises(InDoubtError):
        make().execute(KEY, PARAMS, never)
    with pytest.raises(ParamsMismatchError):
        make().execute(KEY, OTHER, never)


@pytest.mark.parametrize("policy", ["rerun", "applied", "not applied", "resolve", "release"])
def test_every_way_out_of_doubt(start: Any, make: Any, policy: str) -> None:
    start(die_in_handler=True).was_killed()
    if policy == "rerun":
        assert make(on_in_doubt="rerun").execute(KEY, PARAMS, Handler("again")).response == "again"
    elif policy == "applied":
        replay = make(on_in_doubt=lambda record: Applied("from the ledger"))
        assert replay.execute(KEY, PARAMS, never).response == "from the ledger"
    elif policy == "not applied":
        replay = make(on_in_doubt=lambda record: NOT_APPLIED)
        assert replay.execute(KEY, PARAMS, Handler("now")).response == "now"
    elif policy == "resolve":
        assert make().resolve(KEY, response="found")
        assert make().execute(KEY, PARAMS, never).response == "found"
    else:
        assert make().release(KEY)
        assert make().execute(KEY, OTHER, Handler("anew")).response == "anew"


def test_a_request_waits_for_another_process(start: Any, make: Any) -> None:
    node = start(hold=True)
    assert node.says() == "running"
    waits = threading.Event()
    replay = make(wait_timeout=30, on_event=lambda event: event.kind == "waited" and waits.set())
    caller = Caller(replay.execute, KEY, PARAMS, never)
    assert waits.wait(30)
    with pytest.raises(ParamsMismatchError):  # at once, whoever waits
        replay.execute(KEY, OTHER, never)
    node.tell()
    assert caller.result().response == node.says()["response"]


def test_a_request_that_waits_learns_of_the_others_death(start: Any, make: Any) -> None:
    node = start(hold=True)
    assert node.says() == "running"
    waits = threading.Event()
    replay = make(wait_timeout=30, on_event=lambda event: event.kind == "waited" and waits.set())
    caller = Caller(replay.execute, KEY, PARAMS, never)
    assert waits.wait(30)
    node.kill()
    with pytest.raises(InDoubtError):
        caller.result()


# The n-th check-and-put of a first execution: 1 stores the claim, 2 the answer.
@pytest.mark.parametrize(
    ("kill", "runs_again", "left"),
    [
        (["before", 1], True, None),
        (["after", 1], False, "in doubt"),
        (["before", 2], False, "in doubt"),
        (["after", 2], False, "answered"),
    ],
)
def test_a_kill_at_each_step(
    start: Any, make: Any, tmp_path: Path, kill: Any, runs_again: bool, left: str | None
) -> None:
    effects = tmp_path / "effects"
    effects.touch()
    node = start(kill=kill, effects=str(effects))
    node.was_killed()
    before = effects.read_text().splitlines()
    handler = Handler("second")
    if left == "in doubt":
        with pytest.raises(InDoubtError):
            make().execute(KEY, PARAMS, handler)
    else:
        response = make().execute(KEY, PARAMS, handler).response
        assert response == ("second" if runs_again else {"by": int(before[0])})
    assert handler.runs == runs_again
    assert len(before) == (kill != ["before", 1] and kill != ["after", 1])


def test_without_a_lease_a_kill_before_the_answer_leaves_no_trace(start: Any, make: Any) -> None:
    node = start(kill=["before", 1], settings={"ttl": 60, "lease": None})
    node.was_killed()
    assert make(lease=None).execute(KEY, PARAMS, Handler("second")).response == "second"


def test_a_kill_inside_a_transaction_leaves_nothing(
    start: Any, make: Any, store: Any, engine: Any
) -> None:
    if not engine.transactional:
        with pytest.raises(ConfigError, match="transaction"):
            make().execute_in_transaction(KEY, PARAMS, never)
        return
    node = start(transaction=True, die_in_handler=True)
    assert node.says() == "running"
    node.was_killed()
    assert store.list("ledger", "") == []
    outcome = make().execute_in_transaction(
        KEY, PARAMS, lambda txn: txn.write("ledger", "", "hash", b"paid")
    )
    assert not outcome.replayed
    node = start(transaction=True, die_after=True)
    assert node.says() == {"response": None, "replayed": True}


@pytest.mark.parametrize("given", [{"ttl": 60}, {"ttl": 60, "lease": None}])
def test_a_burst_over_processes_gets_one_answer(
    start: Any, tmp_path: Path, given: dict[str, Any]
) -> None:
    effects = tmp_path / "effects"
    nodes = [start(ready=True, effects=str(effects), settings=given) for _ in range(6)]
    for node in nodes:
        assert node.says() == "ready"
    for node in nodes:
        node.tell()
    outcomes = []
    for node in nodes:
        said = node.says()
        outcomes.append(node.says() if said == "running" else said)
    assert len({json.dumps(outcome["response"]) for outcome in outcomes}) == 1
    runs = len(effects.read_text().splitlines())
    assert runs == 1 if "lease" not in given else runs >= 1
    assert [outcome["replayed"] for outcome in outcomes].count(False) == 1


@pytest.mark.parametrize(
    ("ends", "way_out"),
    [
        *(("unsure", way_out) for way_out in ("reconciler", "resolve", "release")),
        ("interrupted", "rerun"),
    ],
)
def test_a_run_that_ended_in_a_process_that_lives_on_is_in_doubt_for_all(
    start: Any, make: Any, store: Any, ends: str, way_out: str
) -> None:
    node = start(ends=ends, lives_on=True)
    assert node.says() == "running"
    assert node.says()["error"] in ("IndeterminateError", "KeyboardInterrupt")
    assert node.popen.poll() is None
    (record,) = make().records()
    if record.claim.ended_at is None:
        assert hasattr(store, "awaited") and ends == "interrupted"
        node.ends()  # an event loop that is interrupted awaits nothing any more: its lease must end
    with pytest.raises(InDoubtError):
        make().execute(KEY, PARAMS, never)
    with pytest.raises(InDoubtError):
        make().lookup(KEY, PARAMS)
    if way_out == "reconciler":
        replay = make(on_in_doubt=lambda record: NOT_APPLIED)
        assert replay.execute(KEY, PARAMS, Handler("now")).response == "now"
    elif way_out == "rerun":
        assert make(on_in_doubt="rerun").execute(KEY, PARAMS, Handler("now")).response == "now"
    elif way_out == "resolve":
        assert make().resolve(KEY, response="found")
        assert make().execute(KEY, PARAMS, never).response == "found"
    else:
        assert make().release(KEY)
        assert make().execute(KEY, OTHER, Handler("anew")).response == "anew"
    assert node.popen.poll() is None, "it lived on all the time"


@pytest.mark.parametrize("hold", [True, False])
def test_a_run_whose_process_lives_is_in_flight_until_it_ends(
    start: Any, make: Any, hold: bool
) -> None:
    node = start(hold=hold, lives_on=True)
    assert node.says() == "running"
    if hold:
        (record,) = make().records()
        assert record.claim.ended_at is None
        with pytest.raises(InFlightError):
            make().execute(KEY, PARAMS, never)
        node.tell()
    answer = node.says()["response"]
    assert make().execute(KEY, PARAMS, never).response == answer
