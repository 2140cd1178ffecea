"""The observer, and what is never shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvreplay import ParamsMismatchError, ReplayKey
from support.replaying import START, Handler
from support.requesting import KEY, NAMESPACE, PARAMS


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
