"""An operator looks: one record, all of them, where a damaged one is; and removes an answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from zlib import crc32

import attrs
import pytest

from kvreplay import (
    Applied,
    CorruptRecordError,
    InDoubtError,
    InFlightError,
    InvalidParamsError,
    NotStored,
    RecordError,
    ReplayKey,
    ReplayRecord,
    State,
    UnsupportedRecordVersionError,
)
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import Claim, encode
from kvreplay._runtime.singleflight import flights
from support.final_failures import Declined
from support.replaying import START, Caller, FakeClock, Handler, never
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, abandon, entry, reopened
from support.told import told
from support.waiting import until

ELSEWHERE = Claim(b"t" * 16, START + 30_000, "elsewhere:1:1:1:1:1:1")


def claim_of(key: tuple[str, str], claim: Claim) -> bytes:
    own = ReplayKey(*key)
    return encode(ReplayRecord(State.IN_PROGRESS, own, canonical(PARAMS), None, START, None, claim))


# record()


def test_one_record_is_shown_as_it_is(
    make: Callable[..., Any], store: Any, clock: FakeClock, events: list[str]
) -> None:
    replay = make(tombstone_ttl=100)
    assert replay.record(KEY) is None
    replay.execute(KEY, PARAMS, Handler("r"))
    record = replay.record(ReplayKey(*KEY))
    assert (record.state, record.key) == (State.COMPLETED, ReplayKey(*KEY))
    assert (record.load_params(), record.load_response()) == (PARAMS, "r")
    before = entry(store)
    clock.pass_seconds(60)
    assert replay.record(KEY) == record
    assert entry(store) == before
    abandon(replay, ("s", "doubt"))
    doubt = replay.record(("s", "doubt"))
    assert (doubt.state, doubt.response, doubt.expires_at) == (State.IN_PROGRESS, None, None)
    assert doubt.claim.ended_at == clock.now
    assert events == ["started", "completed", "started", "doubt_begun"]


def test_a_record_of_an_operation(replay: Any) -> None:
    call = replay.decorated(lambda order: "r", key=lambda order: ("s", order), operation="pay")
    call("1")
    assert replay.record(("s", "1")) is None
    assert replay.record(("s", "1"), operation="pay").load_response() == "r"
    assert replay.forget(("s", "1")) is False
    assert replay.forget(("s", "1"), operation="pay") is True


@pytest.mark.parametrize("key", ["text", ("s",), ("s", 1), None])
def test_a_wrong_key_is_refused(replay: Any, key: Any) -> None:
    for ask in (replay.record, replay.forget):
        with pytest.raises(InvalidParamsError):
            ask(key)


# Where a damaged record is.


def newer(data: bytes) -> bytes:
    """The record as a later version would write it."""
    body = data[:1] + b"\x02" + data[2:-5]
    return body + b"\xce" + crc32(body).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("damage", "kind"),
    [(lambda data: data[:-1] + b"?", CorruptRecordError), (newer, UnsupportedRecordVersionError)],
    ids=["damaged", "newer"],
)
def test_an_error_says_where_the_record_is_and_shows_no_key(
    make: Callable[..., Any], store: Any, damage: Any, kind: type, events: list[str]
) -> None:
    replay = make(store_errors=(Declined,))
    key = ("secret-scope", "secret-id")
    replay.execute(key, PARAMS, Handler("r"))
    replay.execute(KEY, PARAMS, Handler("sound"))
    ((scope, own),) = [each[1:] for each in store.list_all_keys() if each[1] != KEY[0]]
    damaged = damage(store.read(NAMESPACE, scope, own))
    store.write(NAMESPACE, scope, own, damaged)
    events.clear()
    for ask in (
        lambda: replay.record(key),
        lambda: replay.execute(key, PARAMS, never),
        lambda: replay.lookup(key, PARAMS),
        lambda: replay.resolve(key, response=1),
        lambda: replay.release(key),
        lambda: replay.forget(key),
        lambda: replay.records(),
    ):
        with pytest.raises(kind) as error:
            ask()
        assert error.value.addresses == ((NAMESPACE, scope, own),)
        assert "secret" not in told(error.value).partition("Traceback")[0] + repr(error.value)
        assert "secret" not in str(error.value)
    assert store.read(NAMESPACE, scope, own) == damaged
    assert events == ["corrupt_record"] * 3  # two requests, and the walk
    assert RecordError().addresses == ()


def test_a_walk_tells_of_all_the_damaged_ones(replay: Any, store: Any) -> None:
    for number in range(5):
        replay.execute(("s", str(number)), PARAMS, Handler(number))
    for number in ("1", "3"):
        store.write(NAMESPACE, "s", number, b"damaged")
    with pytest.raises(CorruptRecordError, match="2 of the namespace's records") as error:
        replay.records()
    assert sorted(error.value.addresses) == [(NAMESPACE, "s", "1"), (NAMESPACE, "s", "3")]


# records()


def test_the_records_that_are_asked_for(
    make: Callable[..., Any], store: Any, clock: FakeClock
) -> None:
    replay = make(store_errors=(Declined,), tombstone_ttl=1000)
    replay.execute(("s", "old"), PARAMS, Handler("r"), ttl=1)
    clock.pass_seconds(1)
    with pytest.raises(Exception, match="expired"):
        replay.execute(("s", "old"), PARAMS, never)
    replay.execute(("s", "answered"), PARAMS, Handler("r"))
    with pytest.raises(Declined):
        replay.execute(("s", "declined"), PARAMS, Handler(Declined()))
    abandon(replay, ("s", "ended"))
    ended = attrs.evolve(ELSEWHERE, ended_at=START)
    store.write(NAMESPACE, "s", "elsewhere", claim_of(("s", "elsewhere"), ELSEWHERE))
    store.write(NAMESPACE, "s", "over", claim_of(("s", "over"), ended))
    running = Handler("r", held=True)
    leader = Caller(replay.execute, ("s", "running"), PARAMS, running)
    assert running.started.wait(30)

    def ids(**options: Any) -> set[str]:
        return {each.key.id for each in replay.records(**options)}

    doubts, claims = {"ended", "over"}, {"ended", "over", "elsewhere", "running"}
    others = {"old", "answered", "declined"}
    assert ids() == claims | others
    assert ids(state=State.IN_PROGRESS) == claims
    assert ids(state=State.COMPLETED) == {"answered"}
    assert ids(state=State.FAILED) == {"declined"}
    assert ids(state=State.TOMBSTONE) == {"old"}
    assert ids(in_doubt=True) == doubts
    assert ids(in_doubt=False) == (claims | others) - doubts
    assert ids(state=State.IN_PROGRESS, in_doubt=False) == {"elsewhere", "running"}
    assert ids(state=State.COMPLETED, in_doubt=True) == set()
    clock.pass_seconds(30)  # the lease of an owner elsewhere is over
    assert ids(in_doubt=True) == doubts | {"elsewhere"}
    running.let_go()
    leader.result()


@pytest.mark.parametrize("name", ["filesystem", "lmdb", "sqlite"])
def test_a_dead_owners_claim_is_in_doubt(
    new_engine: Callable[[str], Any], make_on: Callable[..., Any], fork: Any, name: str
) -> None:
    engine = new_engine(name)
    store = engine.open()

    def die() -> None:
        child = engine.open()
        make_on(child).execute(KEY, PARAMS, lambda: os._exit(0))

    fork(die).join()
    replay = make_on(store)
    (record,) = replay.records(in_doubt=True)
    assert record.claim.ended_at is None
    assert replay.records(in_doubt=False) == []
    with pytest.raises(InDoubtError):
        replay.forget(KEY)
    assert replay.release(KEY, seen=record)


@pytest.mark.parametrize(
    "options", [{"state": 1}, {"state": "completed"}, {"in_doubt": 1}, {"in_doubt": "yes"}]
)
def test_what_is_asked_for_must_be_a_state_or_a_bool(replay: Any, options: Any) -> None:
    with pytest.raises(InvalidParamsError, match=next(iter(options))):
        replay.records(**options)


# is_in_doubt()


def test_whether_a_record_is_in_doubt(
    make: Callable[..., Any], store: Any, clock: FakeClock, events: list[str]
) -> None:
    replay = make(store_errors=(Declined,), tombstone_ttl=1000)
    replay.execute(("s", "old"), PARAMS, Handler("r"), ttl=1)
    clock.pass_seconds(1)
    with pytest.raises(Exception, match="expired"):
        replay.execute(("s", "old"), PARAMS, never)
    replay.execute(("s", "answered"), PARAMS, Handler("r"))
    with pytest.raises(Declined):
        replay.execute(("s", "declined"), PARAMS, Handler(Declined()))
    abandon(replay, ("s", "ended"))
    store.write(NAMESPACE, "s", "elsewhere", claim_of(("s", "elsewhere"), ELSEWHERE))
    over = attrs.evolve(ELSEWHERE, ended_at=START)
    store.write(NAMESPACE, "s", "over", claim_of(("s", "over"), over))
    running = Handler("r", held=True)
    leader = Caller(replay.execute, ("s", "running"), PARAMS, running)
    assert running.started.wait(30)
    events.clear()

    def doubts() -> set[str]:
        records = replay.records()
        found = {each.key.id for each in records if replay.is_in_doubt(each)}
        assert found == {each.key.id for each in replay.records(in_doubt=True)}
        assert found == {
            each.key.id for each in records if replay.is_in_doubt(replay.record(each.key))
        }
        return found

    assert doubts() == {"ended", "over"}
    clock.pass_seconds(
        30
    )  # the lease of an owner elsewhere is over; that of one here means nothing
    assert doubts() == {"ended", "over", "elsewhere"}
    assert events == []
    running.let_go()
    leader.result()
    assert doubts() == {"ended", "over", "elsewhere"}


def test_a_record_that_was_settled_since_is_not_in_doubt(replay: Any) -> None:
    for number, settle in enumerate(
        (
            lambda key: replay.resolve(key, response="found"),
            replay.release,
            lambda key: replay.release(key) and replay.execute(key, PARAMS, Handler("again")),
        )
    ):
        key = ("s", str(number))
        abandon(replay, key)
        seen = replay.record(key)
        assert replay.is_in_doubt(seen)
        assert settle(key)
        assert not replay.is_in_doubt(seen)
    assert replay.record(("s", "1")) is None


@pytest.mark.parametrize("name", ["filesystem", "lmdb", "sqlite"])
def test_a_dead_owners_record_is_in_doubt(
    new_engine: Callable[[str], Any], make_on: Callable[..., Any], fork: Any, name: str
) -> None:
    engine = new_engine(name)
    store = engine.open()
    seen: list[ReplayRecord] = []

    def die() -> None:
        child = engine.open()
        make_on(child).execute(KEY, PARAMS, lambda: os._exit(0))

    def look() -> str:
        seen.append(replay.record(KEY))
        assert replay.is_in_doubt(seen[0]) is False
        return "r"

    replay = make_on(store)
    look.blocks = True  # type: ignore[attr-defined]
    replay.execute(KEY, PARAMS, look)
    assert replay.is_in_doubt(seen[0]) is False  # answered
    assert replay.forget(KEY)
    fork(die).join()
    assert replay.is_in_doubt(replay.record(KEY)) is True


@pytest.mark.parametrize("record", [None, "record", KEY, ReplayKey(*KEY), {}], ids=repr)
def test_only_a_record_can_be_in_doubt(replay: Any, record: Any) -> None:
    with pytest.raises(InvalidParamsError, match="give what record"):
        replay.is_in_doubt(record)


# forget()


def test_an_answer_is_removed_before_its_time(replay: Any, store: Any, events: list[str]) -> None:
    assert replay.forget(KEY) is False
    replay.execute(KEY, PARAMS, Handler("first"))
    assert replay.forget(KEY) is True
    assert entry(store) is None
    assert replay.forget(KEY) is False
    assert replay.execute(KEY, OTHER, Handler("second")).response == "second"
    assert events == ["started", "completed", "forgotten", "started", "completed"]


def test_a_tombstone_is_removed_too(make: Callable[..., Any], clock: FakeClock) -> None:
    replay = make(tombstone_ttl=100)
    replay.execute(KEY, PARAMS, Handler("first"))
    clock.pass_seconds(60)
    with pytest.raises(Exception, match="expired"):
        replay.execute(KEY, PARAMS, never)
    assert replay.forget(KEY) is True
    assert replay.execute(KEY, PARAMS, Handler("second")).response == "second"


def test_only_what_was_looked_at_is_removed(replay: Any, clock: FakeClock) -> None:
    replay.execute(KEY, PARAMS, Handler("first"))
    seen = replay.record(KEY)
    assert replay.forget(KEY, seen=seen) is True
    clock.pass_seconds(1)
    replay.execute(KEY, PARAMS, Handler("second"))
    assert replay.forget(KEY, seen=seen) is False
    assert replay.execute(KEY, PARAMS, never).response == "second"
    assert replay.forget(KEY, seen=replay.record(KEY)) is True
    with pytest.raises(InvalidParamsError, match="seen="):
        replay.forget(KEY, seen="a record")


def test_a_key_that_is_running_or_in_doubt_has_nothing_to_forget(
    replay: Any, store: Any, events: list[str]
) -> None:
    handler = Handler("r", held=True)
    leader = Caller(replay.execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)
    with pytest.raises(InFlightError, match="nothing was changed") as error:
        replay.forget(KEY)
    assert 0 < error.value.retry_after <= 1
    handler.let_go()
    assert leader.result().response == "r"
    abandon(replay, ("s", "2"))
    before = entry(store, ("s", "2"))
    for seen in (None, replay.record(("s", "2"))):
        with pytest.raises(InDoubtError, match="resolve.*release"):
            replay.forget(("s", "2"), seen=seen)
    assert entry(store, ("s", "2")) == before
    assert "forgotten" not in events


# An outcome says since when and until when it is kept.


def test_everyone_who_is_answered_is_told_the_same_times(
    make: Callable[..., Any], engine: Any, make_on: Callable[..., Any], clock: FakeClock
) -> None:
    store = engine.open()
    replay = make_on(store)
    handler = Handler("r", held=True)
    leader = Caller(replay.execute, KEY, PARAMS, handler, ttl=90)
    assert handler.started.wait(30)
    follower = Caller(replay.execute, KEY, PARAMS, never)
    (flight,) = flights.table.values()
    until(lambda: flight.wakers)
    clock.pass_seconds(5)
    handler.let_go()
    outcomes = [leader.result(), follower.result()]
    store = reopened(engine, store)
    outcomes += [
        make_on(store).execute(KEY, PARAMS, never),
        make_on(store).lookup(KEY, PARAMS),
    ]
    assert {(each.created_at, each.expires_at) for each in outcomes} == {(START, START + 95_000)}
    record = make_on(store).record(KEY)
    assert (record.created_at, record.expires_at) == (START, START + 95_000)
    kept = make_on(store).execute(("s", "2"), PARAMS, Handler(NotStored("r")))
    assert (kept.created_at, kept.expires_at) == (clock.now, None)


@pytest.mark.parametrize("ask", ["execute", "execute_in_transaction"])
def test_a_transaction_and_a_run_without_a_claim_tell_them_too(
    make_on: Callable[..., Any], transactional: Any, clock: FakeClock, ask: str
) -> None:
    replay = make_on(transactional, lease=None)
    first = getattr(replay, ask)(KEY, PARAMS, lambda *transaction: clock.pass_seconds(2))
    again = getattr(replay, ask)(KEY, PARAMS, never)
    for outcome in (first, again):
        assert (outcome.created_at, outcome.expires_at) == (START, START + 62_000)


def test_a_reconciled_answer_has_the_times_of_its_run_and_of_its_verdict(
    make: Callable[..., Any], clock: FakeClock
) -> None:
    replay = make(on_in_doubt=lambda record: Applied("found"))
    abandon(replay)
    clock.pass_seconds(5)
    for _ in range(2):
        outcome = replay.execute(KEY, PARAMS, never)
        assert (outcome.created_at, outcome.expires_at) == (START, START + 65_000)
