"""What clocks may differ by: every schedule within the bound is walked, and the first one beyond it found.

Let ``L`` be the lease, ``I`` the time between the end of a renewal and the begin of the next, and
``D`` the longest that one takes, from its read to its put. A lease is reckoned from the time that
is told with that read, by the owner's clock. So the put that moves a lease takes place at most

    D + I + D

after the time from which that lease is reckoned: the rest of the last renewal, the time between
them, and this one. Each renewal that fails in between adds ``I + D``. Somebody else's clock calls
the lease over once it tells the end of the lease. So with ``f`` failures in a row no living owner is
found in doubt as long as that clock is ahead of the owner's by less than

    L - (f + 1) * I - (f + 2) * D

Here all of these are ticks. At the bound itself both happen in the same tick, in either order.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from kvreplay._protocol.steps import InDoubtPolicy
from kvreplay._runtime.renewal import RENEWALS_PER_LEASE
from simulation.explore import Counterexample, explore, shortest
from simulation.scenario import Caller, Left, OnTime, Scenario

pytestmark = pytest.mark.exhaustive

LEASES = [(3, 1, 0, 0), (3, 1, 0, 1), (6, 2, 1, 0), (4, 1, 0, 1), (4, 1, 0, 2), (8, 2, 1, 1)]
"""L, I, D and f. That of ``Replay`` has three renewals a lease, as the first three have."""


def room(lease: int, interval: int, takes: int, failures: int) -> int:
    """Return by how much less than this a clock may be ahead."""
    return lease - (failures + 1) * interval - (failures + 2) * takes


def owners(skew: int, lease: int, interval: int, takes: int, failures: int) -> Scenario:
    """Two owners on two machines; the clock of the second is ahead."""
    return Scenario(
        (Caller("A", 0), Caller("A", 1)),
        may=Left(ticks=lease + 1, faults=failures),
        places=(0, 1, 2),
        lease=lease,
        ttl=3 * lease,
        wait=0,
        renewals=lease // interval,
        clocks=(0, skew, 0),
        on_time=OnTime(interval, takes),
        finds_no_living=True,
    )


@pytest.mark.parametrize("times", LEASES)
def test_no_living_owner_is_found_in_doubt_while_the_clocks_are_near(times: Any) -> None:
    walk = explore(owners(room(*times) - 1, *times))
    assert walk.ends["execute: InFlightError"]
    assert walk.ends["execute: replayed"]


@pytest.mark.parametrize("times", LEASES)
def test_one_tick_more_and_a_living_owner_is_found_in_doubt(times: Any) -> None:
    found = shortest(owners(room(*times), *times))
    assert found is not None
    print(found)
    assert found.broken == "a living owner that renews in time is found in doubt"


def test_a_clock_that_is_behind_only_finds_out_later() -> None:
    for times in LEASES:
        scenario = owners(-5, *times)
        looks = Caller("A", 1, "lookup")
        walk = explore(attrs.evolve(scenario, callers=(scenario.callers[0], looks)))
        assert walk.ends["lookup: InFlightError"]


def test_two_renewals_that_fail_in_a_row_leave_no_room_with_three_a_lease() -> None:
    assert room(RENEWALS_PER_LEASE, 1, 0, 2) == 0
    with pytest.raises(Counterexample, match="a living owner that renews in time is found"):
        explore(owners(0, RENEWALS_PER_LEASE, 1, 0, 2))
    explore(owners(0, RENEWALS_PER_LEASE + 1, 1, 0, 2))  # a lease with one renewal more


def test_a_renewal_that_is_not_on_time_is_found() -> None:
    """Its thread is late by one tick: as if the clock were ahead by one more."""
    times = (3, 1, 0, 0)
    late = owners(room(*times) - 1, 3, 2, 0, 0)
    assert shortest(late) is not None
    assert shortest(owners(room(*times) - 1, *times)) is None


@pytest.mark.parametrize(
    ("policy", "ends"),
    [
        (InDoubtPolicy.RAISE, {"answered", "replayed", "InFlightError", "InDoubtError"}),
        (InDoubtPolicy.RERUN, {"answered", "replayed", "InFlightError", "ClaimLostError"}),
        (
            InDoubtPolicy.RECONCILE,
            {"answered", "replayed", "InFlightError", "ClaimLostError", "Declined"},
        ),
    ],
)
def test_beyond_the_bound_nothing_is_overwritten(policy: InDoubtPolicy, ends: set[str]) -> None:
    """All other invariants hold: one answer, and a late owner is told that its claim is lost.

    Its effect is doubled only if the policy is to run again. A ledger that denies an effect refuses
    it from then on: the run whose claim was lost gets nothing done.
    """
    near = Scenario(
        (Caller("A", 0), Caller("A", 1)),
        may=Left(ticks=3),
        places=(0, 1, 2),
        on_in_doubt=policy,
        lease=3,
        ttl=9,
        wait=0,
        renewals=3,
        clocks=(0, 5, 0),
        on_time=OnTime(1),
    )
    assert explore(near).ends.keys() == {f"execute: {end}" for end in ends}


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_an_answer_expires_earlier_by_what_a_clock_is_ahead(ahead: int) -> None:
    """It was stored just now, for two ticks; a clock that is ahead by them calls it expired."""
    answers = Scenario(
        (Caller("A", 0), Caller("A", 1)), places=(0, 1, 2), ttl=2, lease=9, clocks=(0, ahead, 0)
    )
    ends = explore(answers).ends
    assert ("execute: ExpiredError" in ends) is (ahead == 2)
    assert "execute: replayed" in ends  # the other way round, it lives for longer
