"""The promises, held against what the ledger says once no node runs any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

from lmdb.verify import verify

from kvreplay import InDoubtError, KeyNotFoundError, Replay, ReplayRecord, SystemClock
from torture.ledger import PARAMS, SCOPE, Account, Ledger, answer

FAR = 2**62  # ms: everything has expired


class State(Enum):
    """What a key is in the store."""

    FREE = "free"
    IN_DOUBT = "in doubt"
    ANSWERED = "answered"


class MinuteLater:
    """A clock that is a minute fast, which is two leases."""

    def now_ms(self) -> int:
        return SystemClock().now_ms() + 60_000


def audit(
    store: Any,
    ledger: Ledger,
    keys: Iterable[str],
    *,
    claims: bool = True,
    transaction: bool = False,
    forgets: bool = False,
    fails: bool = False,
    rebooted: bool = False,
    clock: Any = None,
) -> Counter[State]:
    """Hold the promises against the ledger, once no node runs; return what the keys are.

    Args:
        claims: each run has claimed its key first, so it has run at most once.
        transaction: the effect is a write in the transaction of the answer.
        forgets: the latest changes may have been undone by a power cut.
        fails: calls may have failed for a reason of the store's.
        rebooted: the machine was down for longer than a lease. No lock tells of its processes now.
        clock: by which all leases are over, where no lock tells of other machines' processes.
    """
    clock = clock or (MinuteLater() if rebooted else SystemClock())
    replay = Replay(store, "ns", ttl=3600, wait_timeout=0, clock=clock)
    accounts = ledger.accounts()
    states: Counter[State] = Counter()
    for key in keys:
        account = accounts.get(key, Account())
        effects = committed(store, key) if transaction else account.effects
        state, response = look_up(replay, key)
        states[state] += 1
        assert not account.bugs, f"{key}: {account.bugs}"
        assert fails or not account.failures, f"{key}: {account.failures}"
        assert len(set(account.answers)) <= 1, f"{key} was answered {account.answers}"
        if claims or transaction:
            assert len(effects) <= 1, f"{key} had its effect {len(effects)} times"
        if not forgets:
            assert set(account.answers) <= set(effects), f"{key} was answered without an effect"
            assert not account.answers or state is State.ANSWERED, f"{key} lost its answer"
        if claims and not fails:
            assert not account.doubts or not account.answers, f"{key} was answered out of doubt"
        if state is State.ANSWERED:
            assert response is not None
            token = response.rstrip(".")
            assert response == answer(token), f"{key} has a torn answer"
            assert token in effects, f"{key} has an answer that no run gave"
            assert set(account.answers) <= {token}, f"{key} has another answer than was given"
        elif state is State.FREE and not forgets:
            assert not (effects and (claims or transaction)), f"{key} lost all trace of its run"
        assert state is not State.IN_DOUBT or claims, f"{key} has a claim that nobody made"
    return states


def look_up(replay: Replay, key: str) -> tuple[State, str | None]:
    try:
        outcome = replay.lookup((SCOPE, key), PARAMS)
    except InDoubtError:
        return State.IN_DOUBT, None
    return (State.FREE, None) if outcome is None else (State.ANSWERED, outcome.response)


def committed(store: Any, key: str) -> list[str]:
    """The effect of a run in a transaction, as it is in the store."""
    try:
        return [store.read("ledger", "", key).decode()]
    except KeyNotFoundError:
        return []


def sound(engine: Any) -> None:
    """Nothing is damaged, and what a sweep leaves is what must not go: the claims."""
    if engine.name == "lmdb":
        assert not verify(str(engine.path))
    with engine.open() as store:
        every_record(store)
        while store.sweep("ns", FAR, 1000).more:
            pass
        assert all(record.claim for record in every_record(store))
    if engine.name == "filesystem":
        aside = Path(f"{engine.path}.kvreplay")
        left = [each for name in ("tmp", "expiry") for each in (aside / name).rglob("*")]
        assert not [each for each in left if not each.is_dir()]


def every_record(store: Any) -> list[ReplayRecord]:
    """All of them; one that is damaged raises."""
    return list(Replay(store, "ns", ttl=60).records())
