"""``NotStored``: an answer for those who wait for it now, and for nobody later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from kvreplay import (
    NOT_APPLIED,
    ClaimLostError,
    InDoubtError,
    InvalidResponseError,
    NotStored,
    ParamsMismatchError,
    StoreFullError,
)
from kvreplay._runtime.singleflight import flights
from kvreplay.testing import FaultyStore
from support.replaying import START, Caller, FakeClock, Handler, never
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, abandon, entry
from support.waiting import until


@attrs.frozen
class Offer:
    msat: int


@pytest.mark.parametrize("lease", [30.0, None])
def test_it_is_answered_and_the_next_request_runs_again(
    make: Callable[..., Any], store: Any, lease: float | None, events: list[str]
) -> None:
    replay = make(lease=lease)
    handler = Handler(NotStored({"ok": False}), "kept")
    outcome = replay.execute(KEY, PARAMS, handler)
    assert (outcome.response, outcome.replayed) == ({"ok": False}, False)
    assert (outcome.created_at, outcome.expires_at) == (START, None)
    assert entry(store) is None
    assert replay.lookup(KEY, PARAMS) is None
    assert replay.execute(KEY, OTHER, handler).response == "kept"
    assert replay.execute(KEY, OTHER, never).replayed
    ends = [each for each in events if each != "started"]
    assert ends[0] == "released"
    assert ends[-2:] == ["completed", "replayed"]


def test_it_may_be_typed(replay: Any, store: Any) -> None:
    handler = Handler(NotStored(Offer(1)))
    assert replay.execute(KEY, PARAMS, handler, returns=Offer).response == Offer(1)

    def offer(number: str) -> Offer | NotStored[Offer]:
        return NotStored(Offer(2))

    call = replay.decorated(offer, key=lambda number: ("s", number))
    assert [call("1"), call("1")] == [Offer(2), Offer(2)]
    assert replay.records() == []
    assert "Offer" not in repr(NotStored(Offer(1)))


def test_followers_share_it(replay: Any, store: Any, events: list[str]) -> None:
    handler = Handler(NotStored({"n": [1]}), held=True)
    leader = Caller(replay.execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)
    with pytest.raises(ParamsMismatchError):
        replay.execute(KEY, OTHER, never)
    followers = [Caller(replay.execute, KEY, PARAMS, never) for _ in range(2)]
    (flight,) = flights.table.values()
    until(lambda: len(flight.wakers) == 2)
    handler.let_go()
    outcomes = [each.result() for each in (leader, *followers)]
    assert [each.response for each in outcomes] == [{"n": [1]}] * 3
    assert [each.replayed for each in outcomes] == [False, True, True]
    assert {each.expires_at for each in outcomes} == {None}
    outcomes[0].response["n"].append(2)
    assert outcomes[1].response == {"n": [1]}
    assert entry(store) is None
    assert sorted(each for each in events if each in ("released", "replayed")) == [
        "released",
        "replayed",
        "replayed",
    ]


@pytest.mark.parametrize("lease", [30.0, None])
@pytest.mark.parametrize(
    ("response", "returns"), [(object(), None), ("no offer", Offer)], ids=["plain", "typed"]
)
def test_one_that_cannot_be_encoded_leaves_the_key_free(
    make: Callable[..., Any],
    store: Any,
    lease: float | None,
    response: Any,
    returns: Any,
    events: list[str],
) -> None:
    replay = make(lease=lease)
    with pytest.raises(InvalidResponseError, match="a retry runs it again"):
        replay.execute(KEY, PARAMS, Handler(NotStored(response)), returns=returns)
    assert entry(store) is None
    assert events == ["started", "released"]
    assert replay.execute(KEY, PARAMS, Handler("r")).response == "r"


def test_a_rerun_keeps_the_doubt_about_the_run_before(
    make: Callable[..., Any], store: Any, events: list[str]
) -> None:
    abandon(make())
    before = entry(store)
    events.clear()
    replay = make(on_in_doubt="rerun")
    assert replay.execute(KEY, PARAMS, Handler(NotStored("later"))).response == "later"
    assert entry(store) == before
    assert events == ["taken_over", "started", "in_doubt"]
    with pytest.raises(InDoubtError):
        make().execute(KEY, PARAMS, never)
    # A reconciler has said that nothing is left to doubt.
    sure = make(on_in_doubt=lambda record: NOT_APPLIED)
    assert sure.execute(KEY, PARAMS, Handler(NotStored("now"))).response == "now"
    assert entry(store) is None


@pytest.mark.parametrize("applied", [True, False])
def test_a_claim_that_may_not_be_released_is_in_doubt(
    make_on: Callable[..., Any], store: Any, applied: bool, events: list[str]
) -> None:
    faulty = FaultyStore(store)
    replay = make_on(faulty)
    faulty.lose_outcome(applied=applied, after=1)
    with pytest.raises(InDoubtError) as told:
        replay.execute(KEY, PARAMS, Handler(NotStored("answer")))
    assert told.value.response == "answer"
    assert events == ["started", "doubt_begun"]
    if applied:
        assert replay.execute(KEY, PARAMS, Handler("r")).response == "r"
    else:
        assert replay.resolve(KEY, response=told.value.response)
        assert replay.execute(KEY, PARAMS, never).response == "answer"


def test_a_store_that_fails_for_good_leaves_the_answer_in_the_error(
    make_on: Callable[..., Any], store: Any
) -> None:
    faulty = FaultyStore(store)
    faulty.fail(StoreFullError("no room"), after=1, times=2)
    with pytest.raises(InDoubtError) as told:
        make_on(faulty).execute(KEY, PARAMS, Handler(NotStored("answer")))
    assert told.value.response == "answer"
    assert entry(store) is not None


def test_it_removes_nobody_elses_record(replay: Any, store: Any) -> None:
    def overtaken() -> Any:
        store.write(NAMESPACE, *KEY, b"another's")
        return NotStored("mine")

    with pytest.raises(ClaimLostError):
        replay.execute(KEY, PARAMS, overtaken)
    assert entry(store) == b"another's"


def test_a_transaction_commits_its_writes_and_keeps_no_answer(
    make_on: Callable[..., Any], transactional: Any, events: list[str]
) -> None:
    replay = make_on(transactional)

    def handler(transaction: Any) -> Any:
        number = len(transaction.list("ledger", ""))
        transaction.write("ledger", "", f"k{number}", b"1")
        return NotStored(number)

    outcomes = [replay.execute_in_transaction(KEY, PARAMS, handler) for _ in range(2)]
    assert [each.response for each in outcomes] == [0, 1]
    assert [(each.replayed, each.expires_at) for each in outcomes] == [(False, None)] * 2
    assert sorted(transactional.list("ledger", "")) == ["k0", "k1"]
    assert entry(transactional) is None
    assert events == ["started", "released"] * 2

    def wrong(transaction: Any) -> Any:
        transaction.write("ledger", "", "wrong", b"1")
        return NotStored(object())

    with pytest.raises(InvalidResponseError, match="undone"):
        replay.execute_in_transaction(KEY, PARAMS, wrong)
    assert sorted(transactional.list("ledger", "")) == ["k0", "k1"]


@pytest.mark.parametrize("on_in_doubt", ["rerun", lambda record: NOT_APPLIED])
def test_a_transaction_frees_a_key_only_if_nothing_is_left_to_doubt(
    make_on: Callable[..., Any], transactional: Any, on_in_doubt: Any
) -> None:
    abandon(make_on(transactional))
    before = entry(transactional)
    replay = make_on(transactional, on_in_doubt=on_in_doubt)
    outcome = replay.execute_in_transaction(KEY, PARAMS, lambda transaction: NotStored("r"))
    assert outcome.response == "r"
    assert entry(transactional) == (before if on_in_doubt == "rerun" else None)


def test_an_expired_record_stays_gone(
    make: Callable[..., Any], store: Any, clock: FakeClock
) -> None:
    replay = make(on_expired="rerun")
    replay.execute(KEY, PARAMS, Handler("old"))
    clock.pass_seconds(60)
    assert replay.execute(KEY, PARAMS, Handler(NotStored("new"))).response == "new"
    assert entry(store) is None
    assert replay.lookup(KEY, PARAMS) is None
