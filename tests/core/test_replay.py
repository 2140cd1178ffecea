"""Every rule of the protocol, on every engine, blocking and awaited."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgpack
import pytest

from kvreplay import (
    NOT_APPLIED,
    Applied,
    ConfigError,
    CorruptRecordError,
    ExpiredError,
    IndeterminateError,
    InDoubtError,
    InFlightError,
    InProcessAtomicStore,
    InvalidNameError,
    InvalidParamsError,
    ParamsMismatchError,
    ReplayKey,
    ResponseNotStorableError,
    StaleFlowError,
    StoreError,
    StoreFullError,
    SweepResult,
    UnsupportedRecordVersionError,
)
from kvreplay._protocol.keys import name
from kvreplay._protocol.record import State, decode
from kvreplay._runtime.singleflight import flights
from support.plain_stores import PlainStore, WalkableStore
from support.replaying import START, Async, Caller, FakeClock, Handler, Interrupt, OneByOne, Sync

KEY = ("02lsp", "session-1")
PARAMS = {"amount_msat": 1000, "hash": b"\x01" * 32}
OTHER = {"amount_msat": 1001, "hash": b"\x01" * 32}
NAMESPACE = "request_invoice"


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def make(face: Any, store: Any, clock: FakeClock, events: list[str]) -> Callable[..., Any]:
    def make(**settings: Any) -> Any:
        settings = {
            "ttl": 60,
            "clock": clock,
            "wait_timeout": 0,
            "on_event": lambda event: events.append(event.kind),
            **settings,
        }
        return face(store, NAMESPACE, **settings)

    return make


@pytest.fixture
def replay(make: Callable[..., Any]) -> Any:
    return make()


@pytest.fixture(autouse=True)
def no_flight_left() -> Any:
    yield
    assert len(flights) == 0


def entry(store: Any, key: tuple[str, str] = KEY) -> bytes | None:
    address = (NAMESPACE, name(key[0]), name(key[1]))
    return store.read(*address) if address[2] in store.list(*address[:2]) else None


def abandon(replay: Any, key: tuple[str, str] = KEY, params: Any = PARAMS) -> None:
    """Leave the key in doubt, as an interrupt of the handler does."""
    with pytest.raises(Interrupt):
        replay.execute(key, params, Handler(Interrupt()))


# No record; the same params; other params.


def test_a_first_request_runs_once_and_is_recorded(replay: Any, store: Any) -> None:
    handler = Handler({"bolt11": "lnbcrt1", "n": (1, 2)})
    outcome = replay.execute(KEY, PARAMS, handler)
    assert (outcome.response, outcome.replayed) == ({"bolt11": "lnbcrt1", "n": [1, 2]}, False)
    assert handler.runs == 1
    record = decode(entry(store) or b"", ReplayKey(*KEY))
    assert record.state is State.COMPLETED
    assert record.load_params() == PARAMS
    assert record.load_response() == outcome.response
    assert (record.created_at, record.expires_at) == (START, START + 60_000)


def test_the_same_request_again_is_replayed(replay: Any, events: list[str]) -> None:
    handler = Handler({"n": 1}, {"n": 2})
    first = replay.execute(KEY, PARAMS, handler)
    again = replay.execute(ReplayKey(*KEY), dict(reversed(PARAMS.items())), handler)
    assert again.response == first.response
    assert again.response is not first.response
    assert again.replayed
    assert handler.runs == 1
    assert events == ["started", "completed", "replayed"]


@pytest.mark.parametrize("engine", ["filesystem", "lmdb"], indirect=True)
def test_a_reopened_store_still_answers(face: Any, engine: Any, clock: FakeClock) -> None:
    with engine.open() as store:
        face(store, NAMESPACE, ttl=60, clock=clock).execute(KEY, PARAMS, Handler("first"))
    with engine.open() as store:
        handler = Handler("second")
        again = face(store, NAMESPACE, ttl=60, clock=clock).execute(KEY, PARAMS, handler)
        assert (again.response, handler.runs) == ("first", 0)


@pytest.mark.parametrize("response", [0, "", [], {}, False, None, 1.0, b""])
def test_an_empty_response_is_a_response(replay: Any, response: Any) -> None:
    for _ in range(2):
        outcome = replay.execute(KEY, PARAMS, Handler(response))
        assert outcome.response == response
        assert type(outcome.response) is type(response)
    assert outcome.replayed


def test_other_params_are_a_stale_flow_and_touch_nothing(
    replay: Any, store: Any, events: list[str]
) -> None:
    handler = Handler("first", "second")
    replay.execute(KEY, PARAMS, handler)
    before = entry(store)
    with pytest.raises(ParamsMismatchError) as error:
        replay.execute(KEY, OTHER, handler)
    assert isinstance(error.value, StaleFlowError)
    assert entry(store) == before
    assert handler.runs == 1
    assert events[-1] == "params_mismatch"


def test_keys_do_not_mix(replay: Any) -> None:
    keys = [("a", "b:c"), ("a:b", "c"), ("a", "b"), ("b", "a"), ("", "a"), ("x" * 200, "ü")]
    for number, key in enumerate(keys):
        replay.execute(key, PARAMS, Handler(number))
    for number, key in enumerate(keys):
        assert replay.execute(key, PARAMS, Handler("never")).response == number
    assert {(record.key.scope, record.key.id) for record in replay.records()} == set(keys)


def test_a_ledger_in_the_same_store_is_never_touched(
    replay: Any, store: Any, clock: FakeClock
) -> None:
    store.write("inbound_payments", "", "hash", b"paid")
    replay.execute(KEY, PARAMS, Handler("r"))
    clock.pass_seconds(61)
    replay.sweep()
    assert entry(store) is None
    assert store.read("inbound_payments", "", "hash") == b"paid"


# Expiry.


@pytest.mark.parametrize("params", [PARAMS, OTHER], ids=["same params", "other params"])
def test_an_expired_record_is_a_stale_flow_and_is_pruned(
    replay: Any, store: Any, clock: FakeClock, params: Any, events: list[str]
) -> None:
    handler = Handler("first", "second")
    replay.execute(KEY, PARAMS, handler)
    clock.pass_seconds(59.999)
    assert replay.execute(KEY, PARAMS, handler).replayed
    clock.pass_seconds(0.001)
    with pytest.raises(ExpiredError) as error:
        replay.execute(KEY, params, handler)
    assert isinstance(error.value, StaleFlowError)
    assert entry(store) is None
    assert handler.runs == 1
    assert events[-1] == "expired"
    assert replay.execute(KEY, params, handler).response == "second"


def test_ttl_zero_answers_once(replay: Any) -> None:
    handler = Handler("once")
    assert replay.execute(KEY, PARAMS, handler, ttl=0).response == "once"
    with pytest.raises(ExpiredError):
        replay.execute(KEY, PARAMS, handler)


def test_a_call_has_its_own_ttl(replay: Any, clock: FakeClock) -> None:
    replay.execute(KEY, PARAMS, Handler("r"), ttl=timedelta(minutes=10))
    clock.pass_seconds(599)
    assert replay.execute(KEY, PARAMS, Handler("r")).replayed


def test_a_tombstone_goes_on_answering_without_a_payload(
    make: Callable[..., Any], store: Any, clock: FakeClock
) -> None:
    replay = make(tombstone_ttl=100)
    handler = Handler("first", "second")
    replay.execute(KEY, PARAMS, handler)
    clock.pass_seconds(60)
    for params in (PARAMS, OTHER):
        with pytest.raises(ExpiredError):
            replay.execute(KEY, params, handler)
    tombstone = decode(entry(store) or b"")
    assert (tombstone.state, tombstone.params, tombstone.response) == (State.TOMBSTONE, b"", None)
    clock.pass_seconds(99.999)
    assert replay.sweep().removed == 0
    with pytest.raises(ExpiredError):
        replay.execute(KEY, PARAMS, handler)
    clock.pass_seconds(0.001)
    assert replay.execute(KEY, PARAMS, handler).response == "second"


def test_a_sweep_removes_what_nobody_needs(
    replay: Any, store: Any, clock: FakeClock, events: list[str]
) -> None:
    for number in range(5):
        replay.execute(("s", f"old{number}"), PARAMS, Handler(number))
    abandon(replay, ("s", "claimed"))
    clock.pass_seconds(30)
    replay.execute(("s", "young"), PARAMS, Handler("young"))
    clock.pass_seconds(30)
    first = replay.sweep(limit=3)
    assert (first.visited, first.removed, first.more) == (3, 3, True)
    second = replay.sweep(limit=3)
    assert (second.visited, second.removed, second.more) == (2, 2, False)
    assert {record.key.id for record in replay.records()} == {"claimed", "young"}
    assert events[-2:] == ["swept", "swept"]


def test_a_sweep_waits_for_the_tombstones(make: Callable[..., Any], clock: FakeClock) -> None:
    replay = make(tombstone_ttl=100)
    replay.execute(KEY, PARAMS, Handler("r"))
    clock.pass_seconds(159)
    assert replay.sweep().removed == 0
    clock.pass_seconds(1)
    assert replay.sweep().removed == 1
    assert replay.records() == []


# Single-flight: the same key in this process.


def test_concurrent_requests_share_one_run(replay: Any, events: list[str]) -> None:
    handler = Handler({"n": [1]}, {"n": [2]}, held=True)
    callers = [Caller(replay.execute, KEY, PARAMS, handler) for _ in range(8)]
    assert handler.started.wait(30)
    handler.let_go()
    outcomes = [caller.result() for caller in callers]
    assert handler.runs == 1
    assert [outcome.response for outcome in outcomes] == [{"n": [1]}] * 8
    assert sorted(outcome.replayed for outcome in outcomes) == [False] + [True] * 7
    outcomes[0].response["n"].append("mine")
    assert [outcome.response for outcome in outcomes[1:]] == [{"n": [1]}] * 7
    assert events.count("completed") == 1


def test_other_params_are_stale_at_once_while_the_key_runs(replay: Any) -> None:
    handler = Handler("r", held=True)
    leader = Caller(replay.execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)
    with pytest.raises(ParamsMismatchError):
        replay.execute(KEY, OTHER, Handler("never"))
    handler.let_go()
    assert leader.result().response == "r"


def test_two_replays_on_one_store_share_the_flight(make: Callable[..., Any]) -> None:
    one, other = make(lease=None), make(lease=None)
    handler = Handler("first", "second", held=True)
    callers = [Caller(each.execute, KEY, PARAMS, handler) for each in (one, other)]
    assert handler.started.wait(30)
    handler.let_go()
    assert [caller.result().response for caller in callers] == ["first", "first"]
    assert handler.runs == 1


class Declined(Exception):
    """An exception whose constructor takes something else than its args."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.reason = reason


def test_a_waiter_gets_a_fresh_copy_of_the_leaders_exception(replay: Any) -> None:
    handler = Handler(Declined(7, reason="no route"), held=True)
    callers = [Caller(replay.execute, KEY, PARAMS, handler) for _ in range(4)]
    assert handler.started.wait(30)
    handler.let_go()
    errors = []
    for caller in callers:
        with pytest.raises(Declined, match="7: no route") as error:
            caller.result()
        assert error.value.reason == "no route"
        errors.append(error.value)
    if handler.runs == 1:  # or a caller came late and ran it again, which the rule allows
        assert len({id(error) for error in errors}) == 4
        causes = {id(error.__cause__) for error in errors} - {id(None)}
        assert len(causes) == 1


def test_a_handler_that_asks_for_its_own_key_does_not_wait_for_itself(replay: Any) -> None:
    def handler() -> Any:
        return replay.execute(KEY, PARAMS, Handler("inner"))

    if isinstance(replay, Async):
        inner = replay.replay

        async def again() -> Any:
            return await inner.execute(KEY, PARAMS, Handler("inner"))

        import asyncio

        with pytest.raises(InFlightError, match="very key"):
            asyncio.run(inner.execute(KEY, PARAMS, again))
    else:
        with pytest.raises(InFlightError, match="very key"):
            replay.execute(KEY, PARAMS, handler)
    assert replay.execute(KEY, PARAMS, Handler("afterwards")).response == "afterwards"


# Exceptions of the handler, and doubt.


def test_an_exception_frees_the_key(replay: Any, store: Any, events: list[str]) -> None:
    handler = Handler(ValueError("declined"), "second")
    with pytest.raises(ValueError, match="declined"):
        replay.execute(KEY, PARAMS, handler)
    assert entry(store) is None
    assert replay.execute(KEY, OTHER, handler).response == "second"
    assert events == ["started", "released", "started", "completed"]


@pytest.mark.parametrize("error", [IndeterminateError("timeout"), Interrupt(), SystemExit(3)])
def test_an_indeterminate_end_leaves_the_key_in_doubt_at_once(
    replay: Any, error: BaseException, events: list[str]
) -> None:
    with pytest.raises(type(error)):
        replay.execute(KEY, PARAMS, Handler(error))
    handler = Handler("never")
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, handler)
    with pytest.raises(InDoubtError):
        replay.lookup(KEY, PARAMS)
    with pytest.raises(ParamsMismatchError):
        replay.execute(KEY, OTHER, handler)
    assert handler.runs == 0
    assert events == ["started", "in_doubt", "in_doubt", "params_mismatch"]


class RefusesItsFirstChange(OneByOne):
    """A store that holds the first change back until it is let go, and then has no room for it."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.asked = threading.Event()
        self.go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def check_and_put(self, *args: Any, **options: Any) -> Any:
        if self.asked.is_set():
            return self._store.check_and_put(*args, **options)
        self.asked.set()
        assert self.go.wait(30)
        raise StoreFullError("no room")


def test_who_starts_over_begins_then(face: Any, store: Any, clock: FakeClock) -> None:
    """And not when it first looked, which may be long ago."""
    refusing = RefusesItsFirstChange(store)
    replay = face(refusing, NAMESPACE, ttl=60, clock=clock)
    leader = Caller(replay.execute, KEY, PARAMS, Handler("never"))
    assert refusing.asked.wait(30)
    follower = Caller(replay.execute, KEY, OTHER, Handler("r"))
    (flight,) = flights.table.values()
    while not flight._wakers:
        os.sched_yield()
    clock.pass_seconds(40)
    refusing.go.set()
    with pytest.raises(StoreFullError):
        leader.result()
    assert follower.result().response == "r"
    assert decode(entry(store) or b"").created_at == START + 40_000


def test_a_claim_never_expires_and_is_never_swept(replay: Any, clock: FakeClock) -> None:
    abandon(replay)
    clock.pass_seconds(100 * 86_400)
    assert replay.sweep().removed == 0
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, Handler("never"))


def test_rerun_runs_again_and_says_so(make: Callable[..., Any], events: list[str]) -> None:
    replay = make(on_in_doubt="rerun")
    abandon(replay)
    handler = Handler("again")
    assert replay.execute(KEY, PARAMS, handler).response == "again"
    assert handler.runs == 1
    assert events == ["started", "taken_over", "started", "completed"]


def test_reconcile_answers_from_the_ledger(make: Callable[..., Any]) -> None:
    asked = []

    def reconcile(record: Any) -> Any:
        asked.append((record.key, record.load_params()))
        return Applied({"from": "ledger"})

    replay = make(on_in_doubt=reconcile)
    abandon(replay)
    handler = Handler("never")
    outcome = replay.execute(KEY, PARAMS, handler)
    assert (outcome.response, outcome.replayed) == ({"from": "ledger"}, True)
    assert replay.execute(KEY, PARAMS, handler).response == {"from": "ledger"}
    assert handler.runs == 0
    assert asked == [(ReplayKey(*KEY), PARAMS)]


def test_reconcile_that_finds_nothing_runs(make: Callable[..., Any]) -> None:
    replay = make(on_in_doubt=lambda record: NOT_APPLIED)
    abandon(replay)
    assert replay.execute(KEY, PARAMS, Handler("now")).response == "now"


def test_reconcile_that_fails_leaves_the_key_in_doubt(make: Callable[..., Any]) -> None:
    verdicts: list[Any] = [OSError("ledger is down"), "no verdict", Applied(object())]

    def reconcile(record: Any) -> Any:
        verdict = verdicts.pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    replay = make(on_in_doubt=reconcile)
    abandon(replay)
    for error in (OSError, ConfigError, ResponseNotStorableError):
        with pytest.raises(error):
            replay.execute(KEY, PARAMS, Handler("never"))
    with pytest.raises(InDoubtError):
        make().execute(KEY, PARAMS, Handler("never"))


def test_an_operator_resolves_or_releases(replay: Any, events: list[str]) -> None:
    assert replay.resolve(KEY, response="x") is False
    abandon(replay)
    assert replay.resolve(KEY, response={"found": 1}) is True
    assert replay.resolve(KEY, response="other") is False
    assert replay.execute(KEY, PARAMS, Handler("never")).response == {"found": 1}
    abandon(replay, ("s", "2"))
    assert replay.release(("s", "2")) is True
    assert replay.release(("s", "2")) is False
    assert replay.execute(("s", "2"), OTHER, Handler("anew")).response == "anew"
    assert "released" in events


def test_a_running_key_cannot_be_settled(replay: Any) -> None:
    handler = Handler("r", held=True)
    leader = Caller(replay.execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)
    for settle in (lambda: replay.release(KEY), lambda: replay.resolve(KEY, response=1)):
        with pytest.raises(InFlightError):
            settle()
    with pytest.raises(InFlightError) as error:
        replay.lookup(KEY, PARAMS)
    assert error.value.retry_after > 0
    handler.let_go()
    assert leader.result().response == "r"


@pytest.mark.parametrize("response", [object(), "x" * 2000])
def test_a_response_that_cannot_be_stored_leaves_the_key_in_doubt(
    make: Callable[..., Any], response: Any
) -> None:
    replay = make(max_record_bytes=1000)
    with pytest.raises(ResponseNotStorableError, match="in doubt"):
        replay.execute(KEY, PARAMS, Handler(response))
    handler = Handler("never")
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, handler)
    assert handler.runs == 0
    assert replay.execute(("s", "2"), PARAMS, Handler("x" * 500)).response == "x" * 500


# Without a claim, in a transaction, by lookup, by decorator.


def test_without_a_lease_an_interrupt_leaves_no_trace(make: Callable[..., Any], store: Any) -> None:
    replay = make(lease=None)
    abandon(replay)
    assert entry(store) is None
    assert replay.execute(KEY, PARAMS, Handler("r")).response == "r"
    assert replay.execute(KEY, PARAMS, Handler("never")).replayed


def test_a_transaction_commits_the_effect_and_the_record_together(
    replay: Any, store: Any, engine: Any, events: list[str]
) -> None:
    def handler(transaction: Any) -> Any:
        transaction.write("ledger", "", "hash", b"paid")
        with pytest.raises(StoreError):
            store.write("ledger", "", "other", b"through the store")
        return ["done"]

    if not engine.transactional:
        with pytest.raises(ConfigError, match="transaction"):
            replay.execute_in_transaction(KEY, PARAMS, handler)
        return
    outcome = replay.execute_in_transaction(KEY, PARAMS, handler)
    assert (outcome.response, outcome.replayed) == (["done"], False)
    assert store.read("ledger", "", "hash") == b"paid"
    again = replay.execute_in_transaction(KEY, PARAMS, handler)
    assert (again.response, again.replayed) == (["done"], True)
    assert replay.execute(KEY, PARAMS, Handler("never")).response == ["done"]
    with pytest.raises(ParamsMismatchError):
        replay.execute_in_transaction(KEY, OTHER, handler)
    assert events[:3] == ["started", "completed", "replayed"]


@pytest.mark.parametrize("engine", ["memory", "lmdb"], indirect=True)
@pytest.mark.parametrize("end", [ValueError("no"), Interrupt(), IndeterminateError("?"), object()])
def test_a_transaction_that_fails_leaves_nothing(
    replay: Any, store: Any, end: Any, events: list[str]
) -> None:
    def handler(transaction: Any) -> Any:
        transaction.write("ledger", "", "hash", b"paid")
        if isinstance(end, BaseException):
            raise end
        return end

    error = type(end) if isinstance(end, BaseException) else ResponseNotStorableError
    with pytest.raises(error):
        replay.execute_in_transaction(KEY, PARAMS, handler)
    assert store.list("ledger", "") == []
    assert entry(store) is None
    assert "completed" not in events
    done = replay.execute_in_transaction(
        KEY, PARAMS, lambda transaction: transaction.write("ledger", "", "hash", b"paid")
    )
    assert (done.response, store.read("ledger", "", "hash")) == (None, b"paid")


def test_lookup_says_what_is_stored(replay: Any, store: Any, clock: FakeClock) -> None:
    assert replay.lookup(KEY, PARAMS) is None
    replay.execute(KEY, PARAMS, Handler("r"))
    found = replay.lookup(KEY, PARAMS)
    assert (found.response, found.replayed) == ("r", True)
    with pytest.raises(ParamsMismatchError):
        replay.lookup(KEY, OTHER)
    clock.pass_seconds(60)
    with pytest.raises(ExpiredError):
        replay.lookup(KEY, PARAMS)
    assert entry(store) is None


def test_a_decorated_function_answers_once(replay: Any) -> None:
    calls = []

    def request_invoice(node: str, session: str, amount: int = 1) -> Any:
        """Makes one."""
        calls.append((node, session, amount))
        return {"bolt11": f"lnbcrt{len(calls)}"}

    decorated = replay.decorated(
        request_invoice, key=lambda node, session, amount=1: (node, session)
    )
    assert decorated("n", "s") == {"bolt11": "lnbcrt1"}
    assert decorated("n", session="s", amount=1) == {"bolt11": "lnbcrt1"}
    with pytest.raises(ParamsMismatchError):
        decorated("n", "s", 2)
    assert calls == [("n", "s", 1)]


def test_a_decorated_function_compares_the_params_that_it_is_told(replay: Any) -> None:
    decorated = replay.decorated(
        lambda node, trace: trace,
        key=lambda node, trace: (node, "1"),
        params=lambda node, trace: node,
    )
    assert decorated("n", "first") == decorated("n", "second") == "first"


# Bad input: the error class, before anything ran.


@pytest.mark.parametrize(
    ("key", "params", "options", "error"),
    [
        (KEY, float("nan"), {}, InvalidParamsError),
        (KEY, {"when": object()}, {}, InvalidParamsError),
        (KEY, {"amount": 2**64}, {}, InvalidParamsError),
        (("a", ""), PARAMS, {}, InvalidParamsError),
        (("a",), PARAMS, {}, InvalidParamsError),
        ("ab", PARAMS, {}, InvalidParamsError),
        (("a", 1), PARAMS, {}, InvalidParamsError),
        (KEY, PARAMS, {"ttl": -1}, ConfigError),
        (KEY, PARAMS, {"ttl": float("nan")}, ConfigError),
        (KEY, PARAMS, {"ttl": float("inf")}, ConfigError),
        (KEY, PARAMS, {"ttl": 1e12}, ConfigError),
        (KEY, PARAMS, {"ttl": "1h"}, ConfigError),
        (KEY, PARAMS, {"ttl": True}, ConfigError),
        (KEY, PARAMS, {"ttl": timedelta(seconds=-1)}, ConfigError),
        (KEY, "x" * 1_100_000, {}, InvalidParamsError),
    ],
)
def test_bad_input_runs_nothing(
    replay: Any, store: Any, key: Any, params: Any, options: Any, error: type[Exception]
) -> None:
    handler = Handler("r")
    with pytest.raises(error):
        replay.execute(key, params, handler, **options)
    assert handler.runs == 0
    assert list(store.list_all_keys()) == []
    assert replay.execute(KEY, PARAMS, handler, ttl=1).response == "r"
    with pytest.raises((error, ParamsMismatchError)):  # nor beside an answer
        replay.execute(key, params, handler, **options)
    assert handler.runs == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ttl": -1}, "ttl"),
        ({"lease": 0}, "lease"),
        ({"lease": float("nan")}, "lease"),
        ({"tombstone_ttl": -1}, "tombstone_ttl"),
        ({"wait_timeout": "10"}, "wait_timeout"),
        ({"on_in_doubt": "ignore"}, "on_in_doubt"),
        ({"max_record_bytes": 0}, "max_record_bytes"),
        ({"renew": True, "lease": None}, "renew"),
    ],
)
def test_bad_settings_are_named(make: Callable[..., Any], settings: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(**settings)


def test_a_namespace_obeys_the_name_rules(face: Any, store: Any) -> None:
    for bad, error in [("a b", InvalidNameError), ("x" * 121, InvalidNameError), ("", ConfigError)]:
        with pytest.raises(error):
            face(store, bad, ttl=1)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_sweep_has_a_sane_limit(replay: Any, limit: Any) -> None:
    with pytest.raises(InvalidParamsError):
        replay.sweep(limit)
    assert replay.sweep(1) == SweepResult(0, 0, False)


# Damage: never an answer.


def test_a_damaged_record_is_never_an_answer(replay: Any, store: Any, events: list[str]) -> None:
    replay.execute(KEY, PARAMS, Handler("r"))
    replay.execute(("s", "intact"), PARAMS, Handler("r"))
    address = (NAMESPACE, *KEY)
    good = store.read(*address)
    other = store.read(NAMESPACE, "s", "intact")
    handler = Handler("never")
    for bad in (good[:-1], good[:20] + b"\xff" + good[21:], b"", other):
        store.write(*address, bad)
        with pytest.raises(CorruptRecordError):
            replay.execute(KEY, PARAMS, handler)
        with pytest.raises(CorruptRecordError):
            replay.lookup(KEY, PARAMS)
        assert store.read(*address) == bad
    assert handler.runs == 0
    assert "corrupt_record" in events
    store.write(*address, good)
    assert replay.execute(KEY, PARAMS, handler).response == "r"


_NEWER_BODY = msgpack.packb([9, "later", 0xFFFFFFFF])[:-5]
NEWER = _NEWER_BODY + b"\xce" + zlib.crc32(_NEWER_BODY).to_bytes(4, "big")


def test_a_newer_record_is_left_alone(replay: Any, store: Any) -> None:
    store.write(NAMESPACE, *KEY, NEWER)
    with pytest.raises(UnsupportedRecordVersionError):
        replay.execute(KEY, PARAMS, Handler("never"))
    assert store.read(NAMESPACE, *KEY) == NEWER


def test_records_gives_all_good_ones_and_then_names_the_damage(
    replay: Any, store: Any, events: list[str]
) -> None:
    for number in range(3):
        replay.execute(("s", str(number)), PARAMS, Handler(number))
    store.write(NAMESPACE, "s", "0", b"damaged")
    for elsewhere in ("-", "z"):  # before its own key, and behind it
        store.write(NAMESPACE, "s", elsewhere, store.read(NAMESPACE, "s", "1"))
    events.clear()
    seen = []
    with pytest.raises(CorruptRecordError, match="3 of"):
        for record in replay.replay.records() if isinstance(replay, Sync) else ():
            seen.append(record.key.id)
        if isinstance(replay, Async):
            replay.records()
    assert sorted(seen) == (["1", "2"] if isinstance(replay, Sync) else [])
    assert events == ["corrupt_record"] * 3


def test_a_closed_store_is_refused(replay: Any, engine: Any, store: Any) -> None:
    store.close()
    handler = Handler("never")
    with pytest.raises(StoreError):
        replay.execute(KEY, PARAMS, handler)
    assert handler.runs == 0


# The observer, and what is never shown.


def test_an_observer_that_fails_fails_no_request(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    def observer(event: Any) -> None:
        raise RuntimeError("metrics are down")

    replay = make(on_event=observer)
    assert replay.execute(KEY, PARAMS, Handler("r")).response == "r"
    assert "metrics are down" in caplog.text


def test_no_key_and_no_payload_is_shown(make: Callable[..., Any], face: Any) -> None:
    seen: list[Any] = []
    replay = make(on_event=seen.append)
    key = ("secret-scope", "secret-id")
    outcome = replay.execute(key, {"p": "secret-param"}, Handler("secret-response"))
    texts = [repr(outcome), repr(replay.replay), *map(repr, seen), *map(repr, replay.records())]
    with pytest.raises(ParamsMismatchError) as mismatch:
        replay.execute(key, "secret-other", Handler("never"))
    texts.append(str(mismatch.value))
    assert "secret" not in " ".join(texts)
    assert {event.key for event in seen} == {ReplayKey(*key).digest()}
    assert {event.namespace for event in seen} == {NAMESPACE}
    assert {event.at for event in seen} == {START}


# A node's own plain store, through the explicit wrapper.


def test_a_plain_store_needs_the_wrapper(face: Any) -> None:
    with pytest.raises(ConfigError, match=r"no check_and_put.*InProcessAtomicStore"):
        face(PlainStore(), NAMESPACE, ttl=1)


def test_a_wrapped_plain_store_replays(face: Any) -> None:
    replay = face(InProcessAtomicStore(PlainStore()), NAMESPACE, ttl=60)
    handler = Handler("r")
    assert replay.execute(KEY, PARAMS, handler).response == "r"
    assert replay.execute(KEY, PARAMS, handler).replayed
    with pytest.raises(ParamsMismatchError):
        replay.execute(KEY, OTHER, handler)
    with pytest.raises(ConfigError, match="list_all_keys"):
        replay.sweep()


class Proxy:
    """A store behind one that only passes calls on, as metrics or tracing do."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_proxy_is_as_capable_as_its_store(face: Any, store: Any, clock: FakeClock) -> None:
    replay = face(Proxy(store), NAMESPACE, ttl=60, clock=clock)
    replay.execute(KEY, PARAMS, Handler("r"))
    clock.pass_seconds(60)
    assert replay.sweep().removed == 1
    walkable = face(Proxy(InProcessAtomicStore(Proxy(WalkableStore()))), NAMESPACE, ttl=60)
    walkable.execute(KEY, PARAMS, Handler("r"))
    assert walkable.sweep().visited == 1


def test_a_store_without_an_index_is_swept_by_walking(face: Any, clock: FakeClock) -> None:
    inner = WalkableStore()
    inner.write("ledger", "", "hash", b"paid")
    replay = face(InProcessAtomicStore(inner), NAMESPACE, ttl=60, tombstone_ttl=60, clock=clock)
    for number in range(5):
        replay.execute(("s", str(number)), PARAMS, Handler(number))
    abandon(replay, ("s", "claimed"))
    clock.pass_seconds(60)
    replay.execute(("s", "young"), PARAMS, Handler("young"))
    inner.write(NAMESPACE, "s", "damaged", b"?")
    totals = []
    while not totals or totals[-1].more:
        totals.append(replay.sweep(limit=3))
    assert [each.visited for each in totals] == [3, 3, 2]
    assert sum(each.removed for each in totals) == 0  # they are tombstones now
    clock.pass_seconds(60)
    assert sum(replay.sweep(limit=8).removed for _ in range(2)) == 5
    assert sorted(inner.list(NAMESPACE, "s")) == ["claimed", "damaged", "young"]
    assert inner.read("ledger", "", "hash") == b"paid"


def test_a_walk_keeps_to_its_namespace_and_to_what_is_still_there(face: Any) -> None:
    class Listing(WalkableStore):
        def list_all_keys(self) -> Any:
            yield NAMESPACE, "s", "gone-since"
            yield from super().list_all_keys()

    store = InProcessAtomicStore(Listing())
    for namespace in ("before", NAMESPACE, "south"):
        face(store, namespace, ttl=60).execute(("s", namespace), PARAMS, Handler("r"))
    replay = face(store, NAMESPACE, ttl=60)
    assert [record.key.id for record in replay.records()] == [NAMESPACE]
    assert replay.sweep() == SweepResult(1, 0, False)


def test_records_complains_of_the_first_damage_in_its_own_class(face: Any) -> None:
    inner = WalkableStore()
    for error, first, second in [
        (CorruptRecordError, b"damaged", NEWER),
        (UnsupportedRecordVersionError, NEWER, b"damaged"),
    ]:
        inner.entries = {(NAMESPACE, "s", "1"): first, (NAMESPACE, "s", "2"): second}
        with pytest.raises(error, match="2 of") as complaint:
            list(face(InProcessAtomicStore(inner), NAMESPACE, ttl=60).records())
        assert type(complaint.value.__cause__) is error


def test_threads_of_a_burst_make_one_effect(replay: Any) -> None:
    effects: list[int] = []
    barrier = threading.Barrier(32)

    def call() -> Any:
        barrier.wait()
        return replay.execute(KEY, PARAMS, lambda: effects.append(1) or len(effects))

    callers = [Caller(call) for _ in range(32)]
    assert {caller.result().response for caller in callers} == {1}
    assert effects == [1]
