"""Bad input: the error class, before anything ran."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from kvreplay import (
    AsyncReplay,
    ConfigError,
    InvalidParamsError,
    InvalidValueError,
    ParamsMismatchError,
    Replay,
    SweepResult,
)
from support.replaying import Handler
from support.requesting import KEY, PARAMS


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
        (KEY, PARAMS, {"ttl": "1 hour"}, ConfigError),
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


def twin() -> type[Exception]:
    class Twin(Exception): ...

    return Twin


async def awaited(_: object) -> None: ...


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ttl": -1}, "ttl"),
        ({"lease": 0}, "lease"),
        ({"lease": float("nan")}, "lease"),
        ({"tombstone_ttl": -1}, "tombstone_ttl"),
        ({"wait_timeout": "10 sec"}, "wait_timeout"),
        ({"wait_timeout": b"10"}, "wait_timeout"),
        ({"on_expired": "ignore"}, "on_expired"),
        ({"store_errors": ValueError}, "a tuple of exception classes"),
        ({"store_errors": (KeyboardInterrupt,)}, "not a class of Exception"),
        ({"store_errors": (InvalidParamsError,)}, "never a final failure"),
        ({"store_errors": (ExceptionGroup,)}, "never a final failure"),
        ({"store_errors": (TimeoutError,)}, "and so does doubt_on"),
        ({"store_errors": (twin(), twin())}, "two classes of one name"),
        ({"params_key": b"short"}, "at least 16 random bytes"),
        ({"params_key": "a text of more than 16"}, "give a secret as bytes"),
        ({"params_key": ()}, "give a secret as bytes"),
        ({"encode": str}, "belong together"),
        ({"decode": str, "encode": "str"}, "belong together"),
        ({"on_event": "print"}, "a function of an event"),
        ({"on_event": (print, "print")}, "a function of an event"),
        ({"on_event": awaited}, "nobody awaits it"),
        ({"on_event": (print, awaited)}, "nobody awaits it"),
        ({"on_in_doubt": "ignore"}, "on_in_doubt"),
        ({"max_record_bytes": 0}, "max_record_bytes"),
        ({"renew": True, "lease": None}, "renew"),
        ({"doubt_on": TimeoutError}, "a tuple of exception classes"),
        ({"doubt_on": [TimeoutError]}, "a tuple of exception classes"),
        ({"doubt_on": (TimeoutError, "ConnectionError")}, "doubt_on names 'ConnectionError'"),
        ({"doubt_on": (TimeoutError(),)}, "not an exception class"),
        ({"doubt_on": (int,)}, "not an exception class"),
    ],
)
def test_bad_settings_are_named(make: Callable[..., Any], settings: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(**settings)


def test_a_reconciler_that_nobody_would_await_is_refused(store: Any) -> None:
    with pytest.raises(ConfigError, match="on_in_doubt is a coroutine function.*AsyncReplay"):
        Replay(store, "replay", ttl=1, on_in_doubt=awaited)
    AsyncReplay(store, "replay", ttl=1, on_in_doubt=awaited)


def test_a_class_may_be_listed_twice(make: Callable[..., Any]) -> None:
    make(store_errors=(ValueError, ValueError, twin()))


def test_a_namespace_obeys_the_name_rules(face: Any, store: Any) -> None:
    for bad in ("a b", "x" * 121, "", None, 5):
        with pytest.raises(ConfigError, match="namespace"):
            face(store, bad, ttl=1)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_sweep_has_a_sane_limit(replay: Any, limit: Any) -> None:
    with pytest.raises(InvalidValueError, match="nothing was swept"):
        replay.sweep(limit)
    assert replay.sweep(1) == SweepResult(0, 0, False)
