"""A response of a type comes back as that type, from whoever replays it."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import attrs
import pydantic
import pytest

from kvreplay import (
    Applied,
    ConfigError,
    InDoubtError,
    InvalidResponseError,
    ReplayKey,
    ResponseNotStorableError,
    ResponseTypeError,
)
from kvreplay._runtime.singleflight import flights
from support.replaying import START, Caller, Handler, never
from support.requesting import KEY, NAMESPACE, PARAMS, abandon, entry, reopened
from support.waiting import until

DUE = datetime(2031, 2, 3, 4, 5, 6, 7, tzinfo=UTC)


@attrs.frozen
class Line:
    text: str
    msat: int


@attrs.frozen
class Invoice:
    number: str
    due: datetime
    lines: tuple[Line, ...]


@attrs.frozen
class Renamed:
    """What ``Invoice`` has become in a later release."""

    reference: str
    due: datetime


@attrs.frozen
class Twin:
    number: str
    due: datetime
    lines: list[Line]


class Quote(pydantic.BaseModel):
    number: str
    due: datetime
    lines: list[int]


@attrs.frozen
class Connected:
    number: str
    wire: socket.socket


INVOICE = Invoice("1", DUE, (Line("a", 1), Line("b", 2)))
TYPED = [
    (Invoice, INVOICE),
    (Quote, Quote(number="1", due=DUE, lines=[1, 2])),
    (tuple[int, str], (1, "a")),
    (datetime, DUE),
    (list[Invoice], [INVOICE]),
    (Invoice | None, None),
    (dict, {"a": [1]}),
]


@pytest.mark.parametrize(("returns", "response"), TYPED, ids=lambda each: str(each)[:30])
def test_the_first_answer_and_every_replay_are_equal_type_for_type(
    engine: Any, make_on: Callable[..., Any], returns: Any, response: Any
) -> None:
    store = engine.open()
    first = make_on(store).execute(KEY, PARAMS, Handler(response), returns=returns)
    assert not first.replayed
    store = reopened(engine, store)
    again = [
        make_on(store).execute(KEY, PARAMS, never, returns=returns),
        make_on(store).lookup(KEY, PARAMS, returns=returns),
    ]
    for outcome in (first, *again):
        assert outcome.response == response
        assert type(outcome.response) is type(response)
        assert (outcome.created_at, outcome.expires_at) == (START, START + 60_000)
    assert all(outcome.replayed for outcome in again)


def test_a_hit_is_made_anew_for_each_caller(replay: Any) -> None:
    replay.execute(KEY, PARAMS, Handler(Twin("1", DUE, [])), returns=Twin)
    one, other = (replay.execute(KEY, PARAMS, never, returns=Twin).response for _ in range(2))
    one.lines.append(Line("mine", 1))
    assert other.lines == []


# The class has changed.


def test_an_answer_that_does_not_fit_the_class_any_more_is_left_alone(
    make: Callable[..., Any], store: Any, events: list[str]
) -> None:
    make().execute(KEY, PARAMS, Handler(INVOICE), returns=Invoice)
    before = entry(store)
    events.clear()
    later = make()
    for ask in (
        lambda: later.execute(KEY, PARAMS, never, returns=Renamed),
        lambda: later.lookup(KEY, PARAMS, returns=Renamed),
    ):
        with pytest.raises(ResponseTypeError, match="Renamed.*nothing ran.*untouched") as told:
            ask()
        assert "2031" not in str(told.value)
    assert events == ["response_type"] * 2
    assert entry(store) == before
    assert later.record(KEY).load_response()["number"] == "1"
    assert later.execute(KEY, PARAMS, never, returns=Invoice).response == INVOICE


# What cannot be stored.


def test_an_annotation_that_msgpack_cannot_hold_is_refused_before_the_effect(
    replay: Any, store: Any
) -> None:
    runs: list[int] = []

    def make_invoice() -> Invoice:
        runs.append(1)
        return INVOICE

    def plain() -> dict[str, int]:
        return {"a": 1}

    for _ in range(2):
        with pytest.raises(ConfigError, match="Invoice.*returns=.*nothing ran"):
            replay.execute(KEY, PARAMS, make_invoice)
    assert (runs, entry(store)) == ([], None)
    assert replay.execute(("s", "plain"), PARAMS, plain).response == {"a": 1}
    assert replay.execute(KEY, PARAMS, make_invoice, returns=Invoice).response == INVOICE


def test_a_decorator_does_not_hide_what_its_second_function_returns(replay: Any) -> None:
    def logged(function: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(function)
        def wrapper() -> Any:
            return function()

        return wrapper

    @logged
    def plain() -> dict[str, int]:
        return {"a": 1}

    @logged
    def make_invoice() -> Invoice:
        return never()

    assert replay.execute(KEY, PARAMS, plain).response == {"a": 1}
    with pytest.raises(ConfigError, match="nothing ran"):
        replay.execute(("s", "2"), PARAMS, make_invoice)


def test_functions_of_one_code_may_return_different_types(replay: Any) -> None:
    def make_handler(returns: type) -> Callable[[], Any]:
        def handler() -> Any:
            return {"a": 1}

        handler.__annotations__["return"] = returns
        return handler

    assert replay.execute(KEY, PARAMS, make_handler(dict)).response == {"a": 1}
    for _ in range(2):
        with pytest.raises(ConfigError, match="nothing ran"):
            replay.execute(("s", "2"), PARAMS, make_handler(Invoice))


def test_a_field_that_nothing_can_store_is_refused_when_decorating(replay: Any) -> None:
    def connect(number: str) -> Connected:
        return never()

    def invoice(number: str) -> Invoice:
        return INVOICE

    with pytest.raises(ConfigError, match="socket"):
        replay.decorated(connect, key=lambda number: KEY)
    with pytest.raises(ConfigError, match="socket"):
        replay.execute(KEY, PARAMS, never, returns=Connected)
    call = replay.decorated(invoice, key=lambda number: KEY)
    assert [call("1"), call("1")] == [INVOICE, INVOICE]


def test_a_class_below_the_function_that_returns_it(replay: Any, make: Callable[..., Any]) -> None:
    def late(number: str) -> Below:
        return Below(number)

    call = replay.decorated(late, key=lambda number: KEY)

    @attrs.frozen
    class Below:
        number: str

    assert [call("1"), call("1")] == [Below("1")] * 2
    # A program that has only looked so far finds it too.
    other = make()
    other.decorated(late, key=lambda number: KEY)
    assert other.lookup(KEY, {"number": "1"}).response == Below("1")


def test_a_name_that_is_never_there_is_told_before_anything_runs(replay: Any, store: Any) -> None:
    def lost(number: str) -> Nowhere:  # type: ignore[name-defined]  # noqa: F821
        return never()

    call = replay.decorated(lost, key=lambda number: KEY)
    for _ in range(2):
        with pytest.raises(ConfigError, match="lost names.*Nowhere.*nothing ran.*returns="):
            call("1")
    assert entry(store) is None
    said = replay.decorated(lost, key=lambda number: KEY, returns=Invoice, operation="said")
    with pytest.raises(AssertionError):
        said("1")


@pytest.mark.parametrize(
    ("response", "returns", "where"),
    [
        ({"a": [1, {"b": object()}]}, None, r'\["a"\]\[1\]\["b"\]'),
        (Invoice("1", DUE, (Line("a", "much"),)), Invoice, r"lines\[0\]\.msat"),
    ],
    ids=["plain", "typed"],
)
def test_a_response_that_cannot_be_stored_says_where_the_culprit_is(
    replay: Any, response: Any, returns: Any, where: str
) -> None:
    with pytest.raises(ResponseNotStorableError, match=where) as told:
        replay.execute(KEY, PARAMS, Handler(response), returns=returns)
    assert told.value.response is response
    assert "much" not in str(told.value)
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, never, returns=returns)


# The caller's own two functions.


def test_hooks_of_a_replay_make_every_answer(make: Callable[..., Any], store: Any) -> None:
    hooked = make(encode=str, decode=Decimal)
    first = hooked.execute(KEY, PARAMS, Handler(Decimal("1.10")))
    again = make(encode=str, decode=Decimal).execute(KEY, PARAMS, never)
    for outcome in (first, again, hooked.lookup(KEY, PARAMS)):
        assert repr(outcome.response) == "Decimal('1.10')"
    assert make().execute(KEY, PARAMS, never).response == "1.10"
    # What a call says is nearer.
    assert hooked.execute(("s", "2"), PARAMS, Handler({"a": 1}), returns=dict).response == {"a": 1}


def test_hooks_of_a_decorated_function_win(make: Callable[..., Any]) -> None:
    replay = make(encode=never, decode=never)

    def price(item: str) -> Decimal:
        return Decimal("2.50")

    call = replay.decorated(
        price, key=lambda item: ("s", item), encode=str, decode=Decimal, operation="price"
    )
    assert [repr(call("x")), repr(call("x"))] == ["Decimal('2.50')"] * 2
    found = replay.lookup(("s", "x"), {"item": "x"}, operation="price")
    assert repr(found.response) == "Decimal('2.50')"


@pytest.mark.parametrize("which", ["encode", "decode"])
def test_hooks_that_raise_leave_doubt_and_show_nothing(
    make: Callable[..., Any], which: str, events: list[str]
) -> None:
    def fail(value: Any) -> Any:
        raise ValueError(f"secret {value}")

    hooks = {"encode": str, "decode": Decimal, which: fail}
    how = {"encode": "by your encode=", "decode": "and made again"}[which]
    why = rf"cannot be stored {how} \({which}= raised a ValueError\)"
    with pytest.raises(ResponseNotStorableError, match=why) as told:
        make(**hooks).execute(KEY, PARAMS, Handler(Decimal("7.77")))
    assert "secret" not in str(told.value)
    assert told.value.response == Decimal("7.77")
    assert events == ["started", "doubt_begun"]
    assert make().release(KEY)
    good = make(encode=str, decode=Decimal)
    assert good.execute(KEY, PARAMS, Handler(Decimal("7.77"))).response == Decimal("7.77")
    if which == "decode":
        with pytest.raises(ResponseTypeError, match="decode=.*untouched"):
            make(**hooks).execute(KEY, PARAMS, never)


@pytest.mark.parametrize("hooks", [{"encode": str}, {"decode": str}, {"encode": 1, "decode": str}])
def test_hooks_belong_together(make: Callable[..., Any], hooks: Any) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        make(**hooks)


# Looking up, settling, sharing.


def test_looking_up_and_settling_use_the_functions_own_type(replay: Any) -> None:
    def invoice(number: str) -> Invoice:
        return INVOICE

    call = replay.decorated(invoice, key=lambda number: ("s", number), operation="invoice")
    assert call("1") == INVOICE
    found = replay.lookup(("s", "1"), {"number": "1"}, operation="invoice")
    assert found.response == INVOICE

    key = ("s", "2")
    abandon(replay, ReplayKey(*key, "invoice"), {"number": "2"})
    with pytest.raises(InvalidResponseError, match="nothing was changed"):
        replay.resolve(key, response="no invoice", operation="invoice")
    assert replay.resolve(key, response=INVOICE, operation="invoice")
    assert call("2") == INVOICE


def test_a_call_can_say_the_type_to_settle_with(replay: Any) -> None:
    abandon(replay)
    assert replay.resolve(KEY, response=INVOICE, returns=Invoice)
    assert replay.execute(KEY, PARAMS, never, returns=Invoice).response == INVOICE


def test_a_reconcilers_answer_is_typed_too(make: Callable[..., Any], events: list[str]) -> None:
    verdicts: list[Any] = [Applied("no invoice"), Applied(INVOICE)]
    replay = make(on_in_doubt=lambda record: verdicts.pop(0))
    abandon(replay)
    events.clear()
    with pytest.raises(InvalidResponseError, match="still in doubt"):
        replay.execute(KEY, PARAMS, never, returns=Invoice)
    assert replay.execute(KEY, PARAMS, never, returns=Invoice).response == INVOICE
    assert events == ["in_doubt", "reconciled", "replayed"]


def test_each_follower_gets_the_type_that_it_asks_for(replay: Any, events: list[str]) -> None:
    handler = Handler(INVOICE, held=True)
    leader = Caller(replay.execute, KEY, PARAMS, handler, returns=Invoice)
    assert handler.started.wait(30)
    followers = [
        Caller(replay.execute, KEY, PARAMS, never, returns=each) for each in (Twin, Renamed, None)
    ]
    (flight,) = flights.table.values()
    until(lambda: len(flight.wakers) == 3)
    handler.let_go()
    assert leader.result().response == INVOICE
    assert followers[0].result().response == Twin("1", DUE, list(INVOICE.lines))
    with pytest.raises(ResponseTypeError):
        followers[1].result()
    assert followers[2].result().response["number"] == "1"
    ends = ["completed", "replayed", "replayed", "response_type"]
    assert sorted(each for each in events if each in ends) == ends


def test_a_transaction_has_typed_answers(make_on: Callable[..., Any], transactional: Any) -> None:
    replay = make_on(transactional)

    def handler(transaction: Any) -> Invoice:
        transaction.write("ledger", "", "k", b"1")
        return INVOICE

    with pytest.raises(ConfigError, match="nothing ran"):
        replay.execute_in_transaction(KEY, PARAMS, handler)
    first = replay.execute_in_transaction(KEY, PARAMS, handler, returns=Invoice)
    again = make_on(transactional).execute_in_transaction(KEY, PARAMS, never, returns=Invoice)
    assert (first.response, again.response) == (INVOICE, INVOICE)
    with pytest.raises(InvalidResponseError, match="undone"):
        replay.execute_in_transaction(("s", "2"), PARAMS, lambda txn: 1, returns=Invoice)
    assert entry(transactional, ("s", "2")) is None


@pytest.mark.parametrize("outcome", [True, False])
def test_a_decorated_function_can_return_the_outcome(replay: Any, outcome: bool) -> None:
    def invoice(number: str) -> Invoice:
        return INVOICE

    call = replay.decorated(invoice, key=lambda number: ("s", number), outcome=outcome)
    first, again = call("1"), call("1")
    if not outcome:
        assert [first, again] == [INVOICE, INVOICE]
        return
    assert [first.response, again.response] == [INVOICE, INVOICE]
    assert [first.replayed, again.replayed] == [False, True]
    assert {first.expires_at, again.expires_at} == {START + 60_000}
    assert NAMESPACE not in repr(first)
    assert "2031" not in repr(first)
