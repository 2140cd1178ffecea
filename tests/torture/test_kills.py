"""Processes that are killed: at random instants, and before and after each step of each flow."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from signal import SIGKILL
from typing import Any

import attrs
import pytest

from kvreplay import Applied, Replay
from torture.audit import State, audit, sound
from torture.ledger import PARAMS, SCOPE, Ledger, answer
from torture.node import MODES, Node
from torture.strike import die, doom

KILLS = 320  # of each engine, in CI's budget
THREADS = 3


@pytest.mark.parametrize("mode", MODES)
def test_killed_at_random_instants(
    durable: Any, mode: str, ledger: Ledger, fork: Any, tally: Any, times: int
) -> None:
    """Two processes of several threads ask for the same keys; the one dies, then the other."""
    durable.open().close()
    modes = sum(durable.transactional or not each.transaction for each in MODES.values())
    rounds = times * KILLS // (2 * modes)
    seen: Counter[State] = Counter()
    every_key = []
    for turn in range(rounds):
        keys = [f"{turn}-{n}" for n in range(40)]
        every_key += keys
        nodes = [started(fork, durable, ledger, mode, keys) for _ in range(2)]
        for node in nodes:
            time.sleep(random.expovariate(1 / 0.02))  # the random instant
            if node.kill():
                tally("SIGKILLs at a random instant", durable.name)
        with durable.open() as store:
            seen += audit(store, ledger, keys, **MODES[mode].promised)
    with durable.open() as store:
        audit(store, ledger, every_key, **MODES[mode].promised)
        everything_goes_on(store, mode, every_key)
    sound(durable)
    assert seen[State.ANSWERED]
    assert seen[State.FREE]
    assert seen[State.IN_DOUBT] or not MODES[mode].claims


def started(fork: Any, engine: Any, ledger: Ledger, mode: str, keys: Sequence[str]) -> Any:
    """A process that serves already."""
    ready, tell = os.pipe()

    def serve() -> None:
        with engine.open() as store:
            os.write(tell, b"!")
            Node(store, ledger, MODES[mode]).serve(keys, THREADS)

    child = fork(serve)
    os.close(tell)
    assert os.read(ready, 1), "it did not come to serve"
    os.close(ready)
    return child


def everything_goes_on(store: Any, mode: str, keys: Sequence[str]) -> None:
    """Nothing that the dead have left is in the way of any key."""
    replay = MODES[mode].face(store, "ns", ttl=60, wait_timeout=0)
    for key in keys[:: max(1, len(keys) // 100)]:
        replay.release((SCOPE, key))
        assert replay.execute((SCOPE, key), PARAMS, lambda: "anew").response


# Each step.


@attrs.frozen
class Scenario:
    """What a process does when it dies, and what its key may be afterwards."""

    act: Callable[[Node, Ledger, str], object]
    states: set[State]
    mode: str = ""  # the rest of the mode's name, after the face
    before: str = ""  # "no effect", or "effect", of a process that died in its handler
    settings: dict[str, Any] = attrs.field(factory=dict)


def ask(node: Node, ledger: Ledger, key: str) -> None:
    node.ask(key)


def ask_in_vain(node: Node, ledger: Ledger, key: str) -> None:
    with pytest.raises(ZeroDivisionError):
        node.face.execute((SCOPE, key), PARAMS, lambda: 1 // 0)


def resolve(node: Node, ledger: Ledger, key: str) -> None:
    assert node.face.resolve((SCOPE, key), response=answer(TOKEN))


def release(node: Node, ledger: Ledger, key: str) -> None:
    assert node.face.release((SCOPE, key))


TOKEN = "0" * 16
EVERY = {State.FREE, State.IN_DOUBT, State.ANSWERED}
FROM_LEDGER = {"on_in_doubt": lambda record: Applied(answer(TOKEN))}
SCENARIOS = {
    "first request": Scenario(ask, EVERY),
    "without a lease": Scenario(ask, EVERY - {State.IN_DOUBT}, "-without-lease"),
    "in a transaction": Scenario(ask, EVERY - {State.IN_DOUBT}, "-in-transaction"),
    "handler fails": Scenario(ask_in_vain, EVERY - {State.ANSWERED}),
    "taken over": Scenario(
        ask, EVERY - {State.FREE}, before="no effect", settings={"on_in_doubt": "rerun"}
    ),
    "reconciled": Scenario(ask, EVERY - {State.FREE}, before="effect", settings=FROM_LEDGER),
    "resolved": Scenario(resolve, EVERY - {State.FREE}, before="effect"),
    "released": Scenario(release, EVERY - {State.ANSWERED}, before="no effect"),
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
@pytest.mark.parametrize("face", ["sync", "async"])
def test_killed_at_each_step(
    durable: Any, face: str, scenario: Scenario, ledger: Ledger, fork: Any, tally: Any
) -> None:
    mode = MODES[face + scenario.mode]
    durable.open().close()
    seen: Counter[State] = Counter()
    for moment in itertools.count():
        key = f"at-{moment}"
        if scenario.before:
            assert fork(lambda key=key: die_in_the_handler(durable, key)).wait() == -SIGKILL
        if scenario.before == "effect":
            ledger.note("effect", key, TOKEN)

        def act(key: str = key, moment: int = moment) -> None:
            with durable.open() as store:
                node = Node(store, ledger, mode, **scenario.settings)
                doom(moment)
                scenario.act(node, ledger, key)

        code = fork(act).wait()
        with durable.open() as store:
            found = audit(store, ledger, [key], **mode.promised)
            seen += found
            everything_goes_on(store, face, [key])
        if code == 0:
            break
        assert code == -SIGKILL
        tally("SIGKILLs at a step", durable.name)
    sound(durable)
    assert moment >= 6
    assert set(seen) == scenario.states
    assert set(found) <= scenario.states


def die_in_the_handler(engine: Any, key: str) -> None:
    with engine.open() as store:
        Replay(store, "ns", ttl=60).execute((SCOPE, key), PARAMS, die)
