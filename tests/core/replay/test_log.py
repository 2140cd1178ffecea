"""Each doubt is logged once, by its digest."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import pytest

from kvreplay import InDoubtError, ReplayKey, StoreFullError
from kvreplay.testing import FaultyStore
from support.ends import FINAL
from support.final_failures import Declined
from support.replaying import Handler, never
from support.requesting import KEY, PARAMS, abandon, entry

DIGEST = ReplayKey(*KEY).digest()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    caplog.clear()
    for message in messages:
        assert KEY[0] not in message
        assert KEY[1] not in message
    return messages


@pytest.mark.parametrize("on_event", [None, lambda event: None])
def test_each_doubt_is_logged_once(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture, on_event: Any
) -> None:
    replay, other = make(on_event=on_event), make(on_event=on_event)
    abandon(replay)
    (begun,) = warnings_of(caplog)
    assert "has left its key in doubt" in begun
    assert DIGEST in begun
    for _ in range(3):
        with contextlib.suppress(Exception):
            replay.execute(KEY, PARAMS, never)
        with contextlib.suppress(Exception):
            replay.lookup(KEY, PARAMS)
    assert warnings_of(caplog) == []
    for _ in range(2):  # an object that has not logged it yet
        with contextlib.suppress(Exception):
            other.execute(KEY, PARAMS, never)
    (met,) = warnings_of(caplog)
    assert "was refused" in met
    assert DIGEST in met
    # The next doubt about the same key is another one.
    other.resolve(KEY, response="r")
    other.forget(KEY)
    abandon(replay)
    with contextlib.suppress(Exception):
        other.execute(KEY, PARAMS, never)
    begun, met = warnings_of(caplog)
    assert "has left" in begun
    assert "was refused" in met


def test_a_doubt_that_others_began_is_logged_though_an_earlier_one_was(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    replay, other = make(), make()
    for _ in range(2):
        abandon(other)
        assert len(warnings_of(caplog)) == 1
        for _ in range(2):
            with contextlib.suppress(Exception):
                replay.execute(KEY, PARAMS, never)
        (met,) = warnings_of(caplog)
        assert "was refused" in met
        assert other.release(KEY)  # so ``replay`` sees nothing of it


def test_a_doubt_that_cannot_be_stored_is_logged_all_the_same(
    make_on: Callable[..., Any], store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = FaultyStore(store)
    replay = make_on(faulty, on_event=None)
    faulty.fail(StoreFullError("no room"), after=1, times=2)
    with contextlib.suppress(Exception):
        replay.execute(KEY, PARAMS, Handler("r"))
    logged = warnings_of(caplog)
    assert sum("could not tell other processes" in each for each in logged) == 1
    (doubt,) = (each for each in logged if "in doubt (" in each)
    assert DIGEST in doubt
    assert entry(store) is not None


def test_what_ends_well_logs_nothing(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    replay = make(**FINAL)
    replay.execute(KEY, PARAMS, Handler("r"))
    replay.execute(KEY, PARAMS, never)
    for error in (ValueError(), Declined()):
        with contextlib.suppress(ValueError, Declined):
            replay.execute(("s", type(error).__name__), PARAMS, Handler(error))
    replay.close()
    assert caplog.records == []


def test_without_a_claim_nothing_is_left_to_settle_and_the_log_says_so(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    replay = make(lease=None)
    with contextlib.suppress(Exception):
        replay.execute(KEY, PARAMS, Handler(object()))
    (told,) = warnings_of(caplog)
    assert "a retry runs the handler again" in told
    assert DIGEST in told
    assert not replay.release(KEY)
    assert replay.execute(KEY, PARAMS, Handler("r")).response == "r"


def test_a_filter_that_raises_does_not_take_the_place_of_the_doubt(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(record: logging.LogRecord) -> bool:
        raise LookupError("no request id")

    logger = logging.getLogger("kvreplay")
    logger.addFilter(broken)
    try:
        with pytest.raises(InDoubtError):
            make().execute(KEY, PARAMS, Handler(TimeoutError()))
    finally:
        logger.removeFilter(broken)
