"""The observer, and what is never shown."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from kvreplay import (
    InFlightError,
    InvalidResponseError,
    ParamsMismatchError,
    Replay,
    ReplayKey,
    UnsupportedRecordVersionError,
)
from support.replaying import START, Handler, never
from support.requesting import KEY, NAMESPACE, PARAMS


def test_an_observer_that_fails_fails_no_request(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    def observer(event: Any) -> None:
        raise RuntimeError("metrics are down")

    replay = make(on_event=observer)
    assert replay.execute(KEY, PARAMS, Handler("r")).response == "r"
    assert "metrics are down" in caplog.text


def test_an_observer_that_asks_for_the_key_does_not_wait_for_its_own_thread(store: Any) -> None:
    seen: list[str] = []

    def observer(event: Any) -> None:
        seen.append(event.kind)
        if event.kind == "started":
            with pytest.raises(InFlightError, match="this very thread"):
                replay.execute(KEY, PARAMS, never)

    replay = Replay(store, NAMESPACE, ttl=60, on_event=observer)
    assert replay.execute(KEY, PARAMS, Handler("r")).response == "r"
    assert seen == ["started", "in_flight", "completed"]  # and not waited


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


@pytest.mark.parametrize(
    ("answer", "end"), [(object(), "released"), ("r", "completed")], ids=["no answer", "answer"]
)
def test_a_transaction_that_began_ends(
    face: Any, transactional: Any, answer: Any, end: str
) -> None:
    seen: list[str] = []
    replay = face(transactional, NAMESPACE, ttl=60, on_event=lambda event: seen.append(event.kind))
    try:
        replay.execute_in_transaction(KEY, PARAMS, lambda transaction: answer)
    except InvalidResponseError:
        pass  # the writes were undone
    assert seen == ["started", end]


def test_a_newer_record_is_told_as_one_that_cannot_be_used(
    replay: Any, store: Any, events: list[str]
) -> None:
    body = msgpack.packb([9, "later", 0xFFFFFFFF])[:-5]
    store.write(NAMESPACE, *KEY, body + b"\xce" + zlib.crc32(body).to_bytes(4, "big"))
    with pytest.raises(UnsupportedRecordVersionError):
        replay.execute(KEY, PARAMS, Handler("never"))
    assert events == ["corrupt_record"]
    replay.execute(("s", "intact"), PARAMS, Handler("r"))
    assert events[1:] == ["started", "completed"]
