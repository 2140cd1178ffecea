"""What an application's tests are given: a clock, a store that fails, a kill in the handler."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from kvreplay import (
    AsyncReplay,
    ConfigError,
    ExpiredError,
    InDoubtError,
    InProcessAtomicStore,
    KeyNotFoundError,
    OutcomeUnknownError,
    Replay,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.ldk import TurnStore
from kvreplay.store import Change
from kvreplay.testing import (
    FaultyStore,
    ManualClock,
    StoreContract,
    die,
    kill_in_handler,
    killing,
)
from support.engines import SHARED, Engine
from support.plain_stores import WalkableStore
from support.programs import run_code, unmeasured
from support.replaying import Async, FakeClock, Sync

KEY, PARAMS = ("payer", "invoice-7"), {"msat": 5}


# The clock.


def test_a_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(at=datetime(2030, 1, 1, tzinfo=UTC))
    assert clock.now_ms() == ManualClock().now_ms() == 1_893_456_000_000
    assert clock.monotonic() == 0
    for duration in (1.5, timedelta(milliseconds=1500), "1500ms", "1.5"):
        clock.advance(duration)
    assert clock.now_ms() == 1_893_456_006_000
    assert clock.monotonic() == 6
    for _ in range(1000):
        clock.advance(0.000_25)
    assert clock.now_ms() == 1_893_456_006_250
    assert ManualClock(at=5).now_ms() == 5


def test_the_wall_clock_may_be_set_back_and_time_goes_on() -> None:
    clock = ManualClock()
    clock.advance(10)
    clock.set(datetime(1999, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))))
    assert clock.now_ms() == 915_148_800_000
    assert clock.monotonic() == 10
    clock.set(2**53)
    assert clock.now_ms() == 2**53
    clock.advance("1s")
    assert (clock.now_ms(), clock.monotonic()) == (2**53 + 1000, 11)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "soon", "1 year", None, True])
def test_time_passes_forwards_and_is_a_duration(wrong: Any) -> None:
    clock = ManualClock(at=0)
    with pytest.raises(ConfigError):
        clock.advance(wrong)
    assert (clock.now_ms(), clock.monotonic()) == (0, 0)


@pytest.mark.parametrize("wrong", [datetime(2030, 1, 1), 5.0, "2030-01-01", True, None])
def test_a_time_is_aware_or_an_int(wrong: Any) -> None:
    clock = ManualClock(at=5)
    for call in (ManualClock, clock.set):
        with pytest.raises(ConfigError, match="the time "):
            call(wrong)
    assert clock.now_ms() == 5


def test_many_threads_may_move_a_clock() -> None:
    clock = ManualClock(at=0)
    threads = [
        threading.Thread(target=lambda: [clock.advance("1ms") for _ in range(1000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.now_ms() == 4000


@pytest.mark.parametrize("kind", [Sync, Async])
def test_an_answer_expires_by_the_clock(kind: Any, store: Any) -> None:
    clock = ManualClock()
    replay = kind(store, "ns", ttl="1h", clock=clock)
    assert not replay.execute(KEY, PARAMS, lambda: "paid").replayed
    clock.advance("59min")
    assert replay.execute(KEY, PARAMS, lambda: "again").response == "paid"
    clock.advance("1min")
    with pytest.raises(ExpiredError):
        replay.execute(KEY, PARAMS, lambda: "again")


# The store that fails.


class TestPassesEverythingOn(StoreContract):
    """Without a fault it is the store that it wraps."""

    pytestmark = pytest.mark.any_python

    def open(self, path: Path) -> Any:
        return FaultyStore(LMDBStore(path))


class TestPassesOnWhatIsInMemory(StoreContract):
    pytestmark = pytest.mark.any_python
    durable = False

    def open(self, path: Path) -> Any:
        return FaultyStore(MemoryStore())


CAPABILITIES = (
    *("sweep", "transaction", "read_entry", "scan", "list_paginated", "list_paginated_with_values"),
    *("check_and_put_each", "check_and_put_at_once"),
    *("identity", "owners_file", "reads_are_local", "in_transaction"),
)


def test_it_has_what_the_other_store_has(engine: Engine) -> None:
    stores = [engine.open(), InProcessAtomicStore(WalkableStore())]
    if engine.transactional:
        stores.append(TurnStore(engine.open()))
    for inner in stores:
        faulty = FaultyStore(inner)
        for name in CAPABILITIES:
            assert hasattr(faulty, name) == hasattr(inner, name), name
        for name in ("identity", "owners_file", "reads_are_local", "in_transaction"):
            assert getattr(faulty, name, None) == getattr(inner, name, None)
        assert repr(inner) in repr(faulty)


def test_a_plain_store_is_refused() -> None:
    plain: Any = WalkableStore()
    with pytest.raises(ConfigError, match="AtomicKVStore, and WalkableStore has no check_and_put"):
        FaultyStore(plain)
    FaultyStore(InProcessAtomicStore(plain))


def test_closing_it_closes_the_other_store() -> None:
    inner = MemoryStore()
    with FaultyStore(inner) as store:
        store.write("p", "s", "k", b"v")
    for each in (store, inner):
        with pytest.raises(StoreError, match="closed"):
            each.read("p", "s", "k")


CALLS: dict[str, Callable[[Any], object]] = {
    "read": lambda store: store.read("p", "s", "k"),
    "list": lambda store: store.list("p", "s"),
    "list_all_keys": lambda store: list(store.list_all_keys()),
    "read_entry": lambda store: store.read_entry("p", "s", "k"),
    "scan": lambda store: list(store.scan()),
    "list_paginated": lambda store: store.list_paginated("p", "s"),
    "list_paginated_with_values": lambda store: store.list_paginated_with_values("p", "s"),
    "write": lambda store: store.write("p", "s", "k", b"w"),
    "remove": lambda store: store.remove("p", "s", "k"),
    "check_and_put": lambda store: store.check_and_put("p", "s", "k", expected=b"v", value=b"w"),
    "sweep": lambda store: store.sweep("p", 5, 5),
    "transaction": lambda store: store.transaction().__enter__(),
    "commit": lambda store: transact(store),
}
CHANGES = ("write", "remove", "check_and_put", "commit")


def transact(store: Any) -> None:
    with store.transaction() as txn:
        txn.write("p", "s", "k", b"w")


def entry(store: Any) -> bytes | None:
    try:
        return bytes(store.read("p", "s", "k"))
    except KeyNotFoundError:
        return None


@pytest.fixture
def faulty(transactional: Any) -> FaultyStore:
    transactional.write("p", "s", "k", b"v")
    return FaultyStore(transactional)


@pytest.mark.parametrize("call", CALLS)
def test_a_call_fails_and_changes_nothing(call: str, faulty: FaultyStore) -> None:
    faulty.fail(on=call, times=2)
    assert faulty.faults_left == 2
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="nothing was changed"):
            CALLS[call](faulty)
    assert faulty.faults_left == 0
    assert entry(faulty) == b"v"
    if call != "transaction":
        CALLS[call](faulty)


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("call", CHANGES)
def test_the_outcome_of_a_change_is_lost(call: str, applied: bool, faulty: FaultyStore) -> None:
    faulty.lose_outcome(applied=applied)
    with pytest.raises(OutcomeUnknownError):
        CALLS[call](faulty)
    changed = None if call == "remove" else b"w"
    assert entry(faulty) == (changed if applied else b"v")
    assert faulty.faults_left == 0


def test_a_sweep_is_no_change_unless_it_is_asked_for(faulty: FaultyStore) -> None:
    faulty.check_and_put("p", "s", "k", expected=b"v", value=b"v", expires_at=1)
    faulty.fail()
    faulty.lose_outcome(applied=True)
    faulty.sweep("p", 0, 5)
    assert faulty.faults_left == 2
    faulty.heal()
    assert faulty.faults_left == 0
    faulty.lose_outcome(applied=True, on="sweep")
    with pytest.raises(OutcomeUnknownError):
        faulty.sweep("p", 5, 5)
    assert entry(faulty) is None


def test_faults_happen_in_the_order_in_which_they_are_asked_for(faulty: FaultyStore) -> None:
    full = StoreFullError("no room")
    faulty.fail(full, after=1)
    faulty.fail(ZeroDivisionError, on=("read", "write"))
    faulty.lose_outcome(applied=False)
    faulty.write("p", "s", "k", b"1")
    with pytest.raises(ZeroDivisionError):
        faulty.read("p", "s", "k")
    with pytest.raises(StoreFullError) as caught:
        faulty.write("p", "s", "k", b"2")
    assert caught.value is full
    with pytest.raises(OutcomeUnknownError):
        faulty.write("p", "s", "k", b"3")
    assert entry(faulty) == b"1"


def test_in_a_transaction_a_call_fails_and_a_commit_loses_its_outcome(faulty: FaultyStore) -> None:
    faulty.fail(StoreFullError, on="write", after=1)
    with pytest.raises(StoreFullError):
        with faulty.transaction() as txn:
            txn.write("p", "s", "k", b"1")
            assert txn.read("p", "s", "k") == b"1"
            txn.write("p", "s", "k", b"2")
    assert entry(faulty) == b"v"
    faulty.lose_outcome(applied=True, after=1)
    transact(faulty)
    with pytest.raises(ZeroDivisionError):
        with faulty.transaction() as txn:  # undone, so it has no commit
            txn.check_and_put("p", "s", "k", expected=b"w", value=b"x")
            txn.remove("p", "s", "k")
            assert txn.list("p", "s") == []
            raise ZeroDivisionError
    assert faulty.faults_left == 1
    with pytest.raises(OutcomeUnknownError):
        transact(faulty)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda store: store.fail(on="reed"), 'no call "reed"; choose of read, '),
        (lambda store: store.fail(on="close"), 'no call "close"'),
        (lambda store: store.fail(on="commit"), r"FilesystemStore has no transaction\(\)"),
        (lambda store: store.lose_outcome(applied=True, on="read"), '"read" changes nothing'),
        (lambda store: store.lose_outcome(applied=True, on="transaction"), "has no transaction"),
        (lambda store: store.fail(times=0), "times must be an int of at least 1"),
        (lambda store: store.fail(after=-1), "after must be an int of at least 0"),
        (lambda store: store.lose_outcome(applied=True, times=True), "times must be"),
    ],
)
def test_a_fault_that_cannot_happen_is_refused(wrong: Any, says: str, tmp_path: Path) -> None:
    with FaultyStore(FilesystemStore(tmp_path / "store")) as store:
        with pytest.raises(ConfigError, match=says):
            wrong(store)
        assert store.faults_left == 0
        store.fail()  # the default needs no transactions
        with pytest.raises(StoreUnavailableError):
            store.write("p", "s", "k", b"v")


def test_many_changes_at_once_bypass_no_fault(tmp_path: Path) -> None:
    changes = [Change("p", "s", f"k{n}", None, b"v") for n in range(5)]
    with FaultyStore(LMDBStore(tmp_path / "store")) as store:
        each: Any = store.check_and_put_each  # type: ignore[attr-defined]  # LMDB has it
        store.fail(after=1)
        store.lose_outcome(applied=True)
        store.lose_outcome(applied=False)
        found = each(changes)
        assert [type(one) for one in found] == [
            *(type(None), StoreUnavailableError, OutcomeUnknownError, OutcomeUnknownError),
            type(None),
        ]
        assert sorted(store.list("p", "s")) == ["k0", "k2", "k4"]
        store.fail(times=2)
        assert [type(one) for one in each(changes[:2])] == [StoreUnavailableError] * 2
        assert list(each(changes[:2])) == [b"v", None]


def test_a_change_at_once_bypasses_no_fault() -> None:
    with FaultyStore(MemoryStore()) as store:
        at_once: Any = store.check_and_put_at_once  # type: ignore[attr-defined]  # memory has it
        assert at_once("p", "s", "k", expected=None, value=b"v") is None
        store.fail(StoreFullError, after=1)
        with pytest.raises(StoreUnavailableError, match="use check_and_put"):
            at_once("p", "s", "k", expected=b"v", value=b"w")
        assert store.check_and_put("p", "s", "k", expected=None, value=b"w") == b"v"
        with pytest.raises(StoreFullError):
            store.check_and_put("p", "s", "k", expected=b"v", value=b"w")
        assert at_once("p", "s", "k", expected=b"v", value=b"w") == b"v"


@pytest.mark.parametrize("kind", [Sync, Async])
def test_a_request_meets_the_faults_of_its_store(kind: Any, store: Any) -> None:
    faulty = FaultyStore(store)
    replay = kind(faulty, "ns", ttl=60)
    runs: list[int] = []

    def pay() -> str:
        runs.append(1)
        return "paid"

    faulty.fail()  # the claim
    with pytest.raises(StoreUnavailableError):
        replay.execute(KEY, PARAMS, pay)
    assert runs == []
    assert replay.execute(KEY, PARAMS, pay).response == "paid"
    assert len(runs) == 1

    for applied in (False, True):
        key = ("payer", f"lost-{applied}".lower())
        faulty.lose_outcome(applied=applied, after=1)  # the answer
        with pytest.raises(InDoubtError) as caught:
            replay.execute(key, PARAMS, pay)
        assert caught.value.response == "paid"
        assert faulty.faults_left == 0
        if applied:
            assert replay.execute(key, PARAMS, die).response == "paid"
        else:
            with pytest.raises(InDoubtError):
                replay.execute(key, PARAMS, die)
            assert replay.release(key)
            assert not replay.execute(key, PARAMS, pay).replayed


@pytest.mark.parametrize("kind", [Sync, Async])
def test_a_request_in_a_transaction_meets_them_too(kind: Any, transactional: Any) -> None:
    faulty = FaultyStore(transactional)
    replay = kind(faulty, "ns", ttl=60)

    def pay(txn: Any) -> str:
        txn.write("p", "s", "k", b"w")
        return "paid"

    for call in ("transaction", "write", "commit"):
        faulty.fail(on=call)
        with pytest.raises(StoreUnavailableError):
            replay.execute_in_transaction(KEY, PARAMS, pay)
        assert entry(faulty) is None
    faulty.lose_outcome(applied=True)
    with pytest.raises(OutcomeUnknownError):
        replay.execute_in_transaction(KEY, PARAMS, pay)
    assert entry(faulty) == b"w"
    assert replay.execute_in_transaction(KEY, PARAMS, die).replayed


# The kill.


@pytest.fixture(params=SHARED)
def durable(request: pytest.FixtureRequest, new_engine: Callable[[str], Engine]) -> Any:
    return new_engine(request.param).open()


def paid(path: Path) -> Callable[[], str]:
    """A handler whose effect is a line of a file; it dies before it can tell."""

    def pay() -> str:
        with open(path, "a") as file:
            file.write("paid\n")
        die()

    return pay


@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("kind", [Sync, Async])
def test_a_killed_handler_leaves_its_key_in_doubt(
    kind: Any, faulty: bool, durable: Any, tmp_path: Path
) -> None:
    store = FaultyStore(durable) if faulty else durable
    clock = FakeClock()
    replay = kind(store, "ns", ttl=60, clock=clock)
    ledger = tmp_path / "ledger"
    keys_before = list(store.list_all_keys())
    kill_in_handler(store, lambda: replay.execute(KEY, PARAMS, paid(ledger)))
    assert ledger.read_text() == "paid\n"
    assert len(list(store.list_all_keys())) == len(keys_before) + 1  # the claim, and no probe
    clock.pass_seconds(31)  # of an owner that may be on another machine the lease must end first
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, paid(ledger))
    with pytest.raises(AssertionError, match="raised:(?s:.*)InDoubtError"):
        kill_in_handler(store, lambda: replay.execute(KEY, PARAMS, paid(ledger)))
    assert replay.resolve(KEY, response="paid")
    assert replay.execute(KEY, PARAMS, paid(ledger)).response == "paid"
    assert ledger.read_text() == "paid\n"


def test_a_coroutine_is_killed_too(durable: Any) -> None:
    """Even where a loop is running, whose thread makes the fork."""
    clock = FakeClock()
    replay = AsyncReplay(durable, "ns", ttl=60, clock=clock)

    async def pay() -> None:
        await asyncio.sleep(0)
        die()

    @replay.idempotent(key=lambda number: ("payer", number))
    async def decorated(number: str) -> None:
        await pay()

    async def main() -> None:
        kill_in_handler(durable, lambda: replay.execute(KEY, PARAMS, pay))
        clock.pass_seconds(31)
        with pytest.raises(InDoubtError):
            await replay.execute(KEY, PARAMS, pay)
        kill_in_handler(durable, lambda: decorated("8"))
        clock.pass_seconds(31)
        with pytest.raises(InDoubtError):
            await decorated("8")
        await replay.execute(("payer", "9"), PARAMS, lambda: 5)

    asyncio.run(main())
    kill_in_handler(durable, lambda: replay.execute(("payer", "10"), PARAMS, pay))
    clock.pass_seconds(31)
    with pytest.raises(InDoubtError):
        asyncio.run(replay.execute(("payer", "10"), PARAMS, pay))


def test_a_killed_transaction_leaves_nothing(transactional_engine: Engine) -> None:
    store = transactional_engine.open()
    replay = Replay(store, "ns", ttl=60)

    def pay(txn: Any) -> None:
        txn.write("p", "s", "k", b"w")
        die()

    def kill() -> None:
        kill_in_handler(store, lambda: replay.execute_in_transaction(KEY, PARAMS, pay))

    if not transactional_engine.durable:
        with pytest.raises(ConfigError, match="does not share this store"):
            kill()
        return
    kill()
    assert list(store.list_all_keys()) == []
    assert replay.execute_in_transaction(KEY, PARAMS, lambda txn: 5).response == 5


@pytest.mark.parametrize("make", [MemoryStore, lambda: InProcessAtomicStore(WalkableStore())])
@pytest.mark.parametrize("wrap", [lambda store: store, FaultyStore])
def test_a_store_in_memory_is_refused(make: Any, wrap: Any, tmp_path: Path) -> None:
    store = wrap(make())
    replay = Replay(store, "ns", ttl=60)
    with pytest.raises(ConfigError, match="the request was not made: use a store on disk"):
        kill_in_handler(store, lambda: replay.execute(KEY, PARAMS, paid(tmp_path / "ledger")))
    assert not (tmp_path / "ledger").exists()
    assert list(store.list_all_keys()) == []
    assert not replay.execute(KEY, PARAMS, lambda: 5).replayed


def test_a_fault_is_not_met_by_the_kill_itself(durable: Any) -> None:
    store = FaultyStore(durable)
    clock = FakeClock()
    replay = Replay(store, "ns", ttl=60, clock=clock)
    store.fail(on="check_and_put", after=1)  # the claim is the first
    kill_in_handler(store, lambda: replay.execute(KEY, PARAMS, die))
    assert store.faults_left == 1  # the child has counted in its own copy
    store.heal()
    clock.pass_seconds(31)
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, die)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (lambda: 5, "came to its end without die"),
        (lambda: os._exit(3), "the child ended before its handler did: 3"),
        (lambda: os.kill(os.getpid(), 15), "the child ended before its handler did: -15"),
        (lambda: 1 / 0, "since it raised:(?s:.*)ZeroDivisionError"),
        (lambda: sys.exit(), "since it raised:(?s:.*)SystemExit"),
    ],
)
def test_a_child_that_is_not_killed_is_an_error(request_: Any, says: str, durable: Any) -> None:
    with pytest.raises(AssertionError, match=says):
        kill_in_handler(durable, request_)


def test_a_child_that_hangs_is_ended(
    durable: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(killing, "PATIENCE", 0.3)

    def hang() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        threading.Event().wait()

    with pytest.raises(AssertionError, match=r"has not come to die\(\) in 0.3 s"):
        kill_in_handler(durable, hang)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_closed_store_is_said_to_be_closed(tmp_path: Path) -> None:
    store = LMDBStore(tmp_path / "store")
    store.close()
    with pytest.raises(AssertionError, match="could not change the store:(?s:.*)closed"):
        kill_in_handler(store, die)


def test_nobody_else_dies(durable: Any) -> None:
    with pytest.raises(AssertionError, match="this process lives on"):
        die()
    with pytest.raises(AssertionError, match="raised:(?s:.*)lives on"):
        kill_in_handler(durable, fork_and_die)
    kill_in_handler(durable, lambda: die("any", arguments=5))
    with pytest.raises(AssertionError):
        die()


def fork_and_die() -> None:
    """A child of the child is another process, which may not die for it."""
    if os.fork() == 0:
        try:
            die()
        except AssertionError:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
    raise RuntimeError("it lives on")


FORKS = """
import atexit, sys, threading, warnings
from kvreplay import Replay, open_store
from kvreplay.testing import die, kill_in_handler

atexit.register(print, "over")
threading.Thread(target=threading.Event().wait, daemon=True).start()
warnings.simplefilter("always")  # where it is an error, CPython does not show that of os.fork()
with open_store(f"lmdb:{sys.argv[1]}") as store:
    sys.stdout.write("once ")
    replay = Replay(store, "ns", ttl=60)
    def pay():
        sys.stdout.flush()
        die()
    kill_in_handler(store, lambda: replay.execute(("a", "b"), 1, pay))
    try:
        kill_in_handler(store, sys.stdout.flush)
    except AssertionError:
        sys.stdout.write("twice ")
assert "pytest" not in sys.modules and "hypothesis" not in sys.modules
"""


def test_a_child_prints_nothing_twice_and_runs_no_finalizer(tmp_path: Path) -> None:
    """And neither threads nor a fork among them are a warning."""
    buffered = {name: value for name, value in unmeasured().items() if name != "PYTHONUNBUFFERED"}
    done = run_code(FORKS, tmp_path / "store", env=buffered)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "once twice over\n"


# What is there without pytest.


def test_an_application_needs_no_pytest_and_the_kit_says_what_it_needs() -> None:
    done = run_code(
        "import sys\n"
        "for name in ('pytest', '_pytest', 'hypothesis'): sys.modules[name] = None\n"
        "from kvreplay.testing import FaultyStore, ManualClock, die, kill_in_handler\n"
        "import kvreplay.testing\n"
        "assert 'StoreContract' in dir(kvreplay.testing)\n"
        "try:\n"
        "    from kvreplay.testing import Nothing\n"
        "except ImportError as error:\n"
        "    assert 'Nothing' in str(error)\n"
        "from kvreplay.testing import StoreContract\n"
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == (
        "ModuleNotFoundError: kvreplay.testing.StoreContract needs pytest, which is not installed;"
        " install it: pip install 'kvreplay[testing]'"
    )
