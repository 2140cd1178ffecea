"""The n-th system call of a request fails, for every kind of call and every n."""

from __future__ import annotations

import itertools
import os
import re
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL
from typing import Any

import attrs
import pytest

import kvreplay
from kvreplay import (
    ExpiredError,
    InDoubtError,
    KeyNotFoundError,
    KVReplayError,
    Replay,
    ReplayKey,
    ReplayRecord,
    StoreError,
)
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import Claim, encode
from kvreplay._runtime import liveness
from support.needs import needs_strace
from torture.audit import State, sound
from torture.faults import ACT, Slate, Struck, struck
from torture.strike import die

PARAMS = {"amount_msat": 250_000}
RESPONSE = "answer" * 60  # so that its record is larger than a claim
EVERY_CALL = ""
FAULTS = {  # what is injected, and into which calls
    "EIO": ("error=EIO", EVERY_CALL),
    "EINTR": ("error=EINTR", EVERY_CALL),
    "ENOSPC": ("error=ENOSPC", "openat|mkdir|p?write.*|f(data)?sync|link|symlink|rename"),
    "EMFILE": ("error=EMFILE", "openat"),
    "SIGKILL": ("signal=SIGKILL", EVERY_CALL),
    # What was not written may not be said to be. LMDB takes any short write for a failure, the others go
    # on where it ended: they need one that is true, which test_each_write_is_cut_short makes.
    "a short write": ("retval=16", "pwrite64|writev"),
}

# LMDB writes neighbouring pages with these, if there are any, and single ones with pwrite64.
AS_THE_PAGES_LIE = {"lseek", "writev"}
# LMDB's files are looked at one by one until nothing in their folder has changed for a second.
AS_THE_FOLDER_RESTS = {"newfstatat"}

# SQLite does not look whether it could give a lock back. No local file system refuses that, and here it
# cannot be told from taking one.
NEVER_FAILS = {"sqlite": "fcntl"}

# What a caller may be told, and what must then be true: how often the handler ran, and what the key
# is now. A StoreError says that nothing was changed, whatever its class, unless it is Unknown.
FREE, IN_DOUBT, ANSWERED = State.FREE, State.IN_DOUBT, State.ANSWERED
Truths = dict[str, set[tuple[int, State]]]
UNCHANGED = "StoreError"


@attrs.frozen
class Scenario:
    """What a process does while a system call fails."""

    truths: Truths
    before: State | None = None  # what the key is beforehand; None: free
    expired: bool = False
    alive: bool = False  # the owner of the claim, whose lease is over
    method: str = "execute"
    settings: dict[str, Any] = attrs.field(factory=dict)

    @property
    def in_transaction(self) -> bool:
        return self.method == "execute_in_transaction"


SCENARIOS = {
    "first request": Scenario(
        {
            "answer": {(1, ANSWERED)},
            "InDoubtError": {(1, IN_DOUBT), (1, ANSWERED)},
            "OutcomeUnknownError": {(0, FREE), (0, IN_DOUBT)},
            UNCHANGED: {(0, FREE)},
            "SIGKILL": {(0, FREE), (0, IN_DOUBT), (1, IN_DOUBT), (1, ANSWERED)},
        }
    ),
    "without a lease": Scenario(
        {
            "answer": {(1, ANSWERED)},
            "InDoubtError": {(1, FREE), (1, ANSWERED)},
            UNCHANGED: {(0, FREE)},
            "SIGKILL": {(0, FREE), (1, FREE), (1, ANSWERED)},
        },
        settings={"lease": None},
    ),
    "in a transaction": Scenario(
        {
            "answer": {(1, ANSWERED)},
            "OutcomeUnknownError": {(1, FREE), (1, ANSWERED)},
            UNCHANGED: {(0, FREE), (1, FREE)},
            "SIGKILL": {(0, FREE), (1, FREE), (1, ANSWERED)},
        },
        method="execute_in_transaction",
    ),
    "replay": Scenario(
        {"answer": {(0, ANSWERED)}, UNCHANGED: {(0, ANSWERED)}, "SIGKILL": {(0, ANSWERED)}},
        before=ANSWERED,
    ),
    "expired": Scenario(
        {
            "ExpiredError": {(0, FREE)},
            "OutcomeUnknownError": {(0, FREE), (0, ANSWERED)},
            UNCHANGED: {(0, ANSWERED)},
            "SIGKILL": {(0, FREE), (0, ANSWERED)},
        },
        before=ANSWERED,
        expired=True,
    ),
    "swept": Scenario(
        {
            "answer": {(0, FREE)},
            "OutcomeUnknownError": {(0, FREE), (0, ANSWERED)},
            UNCHANGED: {(0, ANSWERED)},
            "SIGKILL": {(0, FREE), (0, ANSWERED)},
        },
        before=ANSWERED,
        expired=True,
        method="sweep",
    ),
    "in doubt": Scenario(
        {
            "InDoubtError": {(0, IN_DOUBT)},
            "InFlightError": {(0, IN_DOUBT)},
            UNCHANGED: {(0, IN_DOUBT)},
            "SIGKILL": {(0, IN_DOUBT)},
        },
        before=IN_DOUBT,
    ),
    "in flight": Scenario(
        {"InFlightError": {(0, IN_DOUBT)}, UNCHANGED: {(0, IN_DOUBT)}, "SIGKILL": {(0, IN_DOUBT)}},
        before=IN_DOUBT,
        alive=True,
    ),
    "opening": Scenario(
        {"answer": {(0, ANSWERED)}, UNCHANGED: {(0, ANSWERED)}, "SIGKILL": {(0, ANSWERED)}},
        before=ANSWERED,
        method="open",
    ),
}


class Strikes:
    """One scenario on one engine, with a key of its own for each strike."""

    def __init__(self, engine: Any, scenario: Scenario, fork: Any, log: Path) -> None:
        self._engine, self._scenario, self._fork, self._log = engine, scenario, fork, log
        self._numbers = itertools.count()
        self._token = liveness.new_token()  # of this process's own run, if the owner is alive

    def strike(self, call: str = "", fault: str = "", n: int = 0) -> Struck:
        """Let the scenario happen with this fault, and hold what was said against the store."""
        key = (f"lsp-{next(self._numbers)}", "session")
        self._prepare(key)
        result = struck(self._fork, self._log, lambda slate: self._acts(key, slate), call, fault, n)
        assert result.code in (None, -SIGKILL), f"{call} {n}: it ended with {result.code}"
        assert result.code is None or fault == "signal=SIGKILL"
        told = "SIGKILL" if result.code else result.said
        self._hold(told, result.effects, key, f"{call} {n}: {told}")
        assert result.code is not None or result.afterwards == "fine"
        return result

    def limit(self, size: int) -> str:
        """Let the scenario happen while no file can be written beyond this size."""
        key = (f"lsp-{next(self._numbers)}", "session")
        slate = Slate()

        def run() -> None:
            act, afterwards = self._acts(key, slate)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            slate.say(act(), at=ACT)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            assert afterwards() == "fine"

        self._fork(run).join()
        told: str = slate.said(at=ACT)
        self._hold(told, slate.effects, key, f"{size}: {told}")
        return told

    def _hold(self, told: str, effects: int, key: tuple[str, str], where: str) -> None:
        """Hold what was said against the store."""
        truths = self._scenario.truths
        if told not in truths and issubclass(getattr(kvreplay, told, Exception), StoreError):
            told = UNCHANGED
        assert told in truths, where
        liveness.end(self._token)
        truth = (effects, self._state(key))
        assert truth in truths[told], f"{where}, and {truth}"

    def _prepare(self, key: tuple[str, str]) -> None:
        with self._engine.open() as store:
            replay = Replay(store, "ns", ttl=0 if self._scenario.expired else 3600)
            if self._scenario.before is ANSWERED:
                replay.execute(key, PARAMS, lambda: RESPONSE)
            if self._scenario.alive:
                owner = liveness.begin(self._token, store.owners_file)
                claim = Claim(self._token, 0, owner)
                record = ReplayRecord(
                    kvreplay.State.IN_PROGRESS,
                    ReplayKey(*key),
                    canonical(PARAMS),
                    None,
                    0,
                    None,
                    claim,
                )
                store.write("ns", *key, encode(record))
        if self._scenario.before is IN_DOUBT and not self._scenario.alive:
            assert self._fork(lambda: self._die_in_the_handler(key)).wait() == -SIGKILL

    def _die_in_the_handler(self, key: tuple[str, str]) -> None:
        with self._engine.open() as store:
            Replay(store, "ns", ttl=3600).execute(key, PARAMS, die)

    def _acts(self, key: tuple[str, str], slate: Slate) -> Any:
        scenario = self._scenario
        store = self._engine.open()
        replay = Replay(store, "ns", ttl=3600, wait_timeout=0, **scenario.settings)
        for _ in range(2):
            replay.execute(("lsp", f"warm-{key[0]}"), PARAMS, lambda: "warm")
        if scenario.method == "open":
            store.close()

        def handler(*transaction: Any) -> str:
            slate.effect()
            for txn in transaction:
                txn.write("ledger", "", key[0], b"effect")
            return RESPONSE

        def act() -> str:
            try:
                if scenario.method == "open":
                    with self._engine.open() as opened:
                        outcome = Replay(opened, "ns", ttl=3600).lookup(key, PARAMS)
                elif scenario.method == "sweep":
                    return "answer" if replay.sweep().removed == 1 else "nothing was due"
                else:
                    outcome = getattr(replay, scenario.method)(key, PARAMS, handler)
            except KVReplayError as error:
                return type(error).__name__
            except Exception as error:  # which no caller should see
                return repr(error)
            assert outcome is not None
            assert outcome.response == RESPONSE
            return "answer"

        def afterwards() -> Any:
            with self._engine.open() as opened:
                again = Replay(opened, "ns", ttl=3600)
                return again.execute(("lsp", f"after-{key[0]}"), PARAMS, lambda: "fine").response

        return act, afterwards

    def _state(self, key: tuple[str, str]) -> State:
        """What a process finds that opens the store anew; and it can go on from there."""
        with self._engine.open() as store:
            replay = Replay(store, "ns", ttl=3600, wait_timeout=0)
            try:
                state = FREE if replay.lookup(key, PARAMS) is None else ANSWERED
            except InDoubtError:
                state = IN_DOUBT
                assert replay.release(key)
            except ExpiredError:  # and thereby pruned
                state = ANSWERED
            replay.sweep()
            if self._scenario.in_transaction:
                try:
                    store.read("ledger", "", key[0])
                    assert state is ANSWERED, "the effect is there without the answer"
                except KeyNotFoundError:
                    assert state is FREE, "the answer is there without the effect"
            if state is not ANSWERED:
                assert replay.execute(key, PARAMS, lambda: "anew").response == "anew"
            return state


@pytest.fixture
def quick(durable: Any) -> Iterator[Any]:
    """An engine whose files are in memory: the faults are made, and flushes need no disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        durable.path = Path(folder) / "store"
        yield durable


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_each_system_call_fails(
    quick: Any, scenario: Scenario, fault: str, fork: Any, tmp_path: Path, tally: Any, times: int
) -> None:
    needs_strace()
    quick.open().close()
    strikes = Strikes(quick, scenario, fork, tmp_path / "log")
    calls = strikes.strike().calls
    assert calls or quick.name == "lmdb", "it reads from its map, without a system call"
    inject, only = FAULTS[fault]
    if fault in ("EIO", "EINTR"):
        calls.pop(NEVER_FAILS.get(quick.name, ""), None)
    # SQLite opens its files with so many calls that a short run strikes one in three.
    step = max(1, 3 // times) if (quick.name, scenario.method) == ("sqlite", "open") else 1
    for call in filter(re.compile(only).match, calls):
        for n in itertools.count(1, step):
            result = strikes.strike(call, inject, n)
            if result.code is None and not result.injected:
                break
            tally(f"system calls that failed with {fault}", quick.name)
        often = call in AS_THE_PAGES_LIE | AS_THE_FOLDER_RESTS or n > calls[call] // 2
        assert often, f"{call} was called less often than before"
    sound(quick)


@pytest.mark.parametrize(
    ("name", "outcomes"),
    [
        ("first request", {"before", "InDoubtError", "answer"}),
        ("without a lease", {"InDoubtError", "answer"}),
    ],
)
def test_each_write_is_cut_short(
    quick: Any, name: str, outcomes: set[str], fork: Any, tally: Any, times: int
) -> None:
    """Truly so: the kernel writes up to the limit, and no byte beyond it."""
    folder = quick.path.parent
    strikes = Strikes(quick, SCENARIOS[name], fork, Path("unused"))
    step = max(1, {"filesystem": 10, "lmdb": 600, "sqlite": 1200}[quick.name] // times)
    said: list[str] = []
    for size in itertools.count(0, step):
        quick.path = folder / f"store-{size}"
        quick.open().close()
        told = strikes.limit(size)
        unchanged = ("StoreError", "StoreFullError", "StoreUnavailableError")
        said.append("before" if told in unchanged else told)
        if said[-3:] == ["answer"] * 3:
            break
        tally("writes that were cut short", quick.name)
        sound(quick)
    assert set(said) == outcomes


def test_a_write_that_goes_on_where_it_was_cut_short(quick: Any, fork: Any) -> None:
    def act() -> None:
        write = os.write
        os.write = lambda fd, data: write(fd, data[:1])
        with quick.open() as store:
            Replay(store, "ns", ttl=60).execute(("lsp", "session"), PARAMS, lambda: "answer")

    fork(act).join()
    with quick.open() as store:
        outcome = Replay(store, "ns", ttl=60).lookup(("lsp", "session"), PARAMS)
        assert outcome is not None
        assert outcome.response == "answer"
