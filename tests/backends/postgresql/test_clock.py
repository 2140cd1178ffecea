"""The server's clock: it is followed however far this machine's own is off."""

from __future__ import annotations

import time
from typing import Any

import pytest

from kvreplay.backends.postgresql.clock import ServerClock, ticks
from support.postgres_faults import Opener

HOUR = 3_600_000_000  # microseconds
FAR = 50.0 * 1000  # milliseconds, within which a test is over


def ms(microseconds: int) -> float:
    return microseconds / 1000


@pytest.mark.parametrize("off", [-7 * HOUR, 7 * HOUR])
def test_a_server_hours_away(off: int) -> None:
    clock = ServerClock()
    assert clock.now_ms() == pytest.approx(time.time() * 1000, abs=FAR)  # nobody has told it yet
    theirs = time.time_ns() // 1000 + off
    clock.told(theirs, ticks())
    assert clock.now_ms() == pytest.approx(ms(theirs), abs=FAR)
    assert clock.now_ms() != pytest.approx(time.time() * 1000, abs=2 * FAR)


def test_an_answer_bounds_the_difference_and_a_better_one_narrows_it() -> None:
    clock, server = ServerClock(), 1_000 * HOUR
    asked_at = ticks() - 2 * HOUR  # it was on its way for two hours
    clock.told(server, asked_at)
    assert clock.now_ms() == pytest.approx(ms(server + HOUR), abs=FAR)  # in the middle
    clock.told(server + 2 * HOUR - 1, ticks())
    assert clock.now_ms() == pytest.approx(ms(server + 2 * HOUR), abs=FAR)
    clock.told(server, ticks() - 4 * HOUR)  # which says nothing new
    assert clock.now_ms() == pytest.approx(ms(server + 2 * HOUR), abs=FAR)


def test_a_server_whose_clock_is_set_is_followed() -> None:
    clock, server = ServerClock(), 1_000 * HOUR
    for moved in (0, 3 * HOUR, -5 * HOUR):
        clock.told(server + moved, ticks())
        assert clock.now_ms() == pytest.approx(ms(server + moved), abs=FAR)


def test_a_store_tells_the_time_of_its_server(postgres: Any, opened: Opener) -> None:
    store = opened(postgres.url)
    store.write("p", "s", "k", b"v")
    ((theirs,),) = postgres.server.execute("SELECT extract(epoch FROM clock_timestamp())")
    assert store.clock.now_ms() == pytest.approx(float(theirs) * 1000, abs=FAR)
