"""A key without a record, the same params again, and other params."""

from __future__ import annotations

from typing import Any

import pytest

from kvreplay import ParamsMismatchError, ReplayKey, StaleFlowError
from kvreplay._protocol.record import State, decode
from support.engines import SHARED
from support.replaying import START, FakeClock, Handler
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, entry


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


@pytest.mark.parametrize("engine", SHARED, indirect=True)
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
