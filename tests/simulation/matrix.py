"""The scenarios that are walked: what comes together in each, under every in-doubt policy.

``EVERY_TIME`` is for each run of the tests. ``AT_LENGTH`` asks for more of everything at once.
"""

from __future__ import annotations

from typing import Any

from kvreplay._protocol.steps import ExpiredPolicy, InDoubtPolicy
from simulation.scenario import Caller, Left, OnTime, Scenario

POLICIES: dict[str, dict[str, Any]] = {
    **{policy.value: {"on_in_doubt": policy} for policy in InDoubtPolicy},
    "lease=None": {"lease": None},
}


def _callers(params: str, processes: str, kinds: tuple[str, ...] = ()) -> tuple[Caller, ...]:
    """``("AAB", "001")``: two with the same params in one process, one with others in another."""
    kinds = kinds or ("execute",) * len(params)
    return tuple(map(Caller, params, map(int, processes), kinds))  # type: ignore[arg-type]


def _under_every_policy(
    title: str, callers: tuple[Caller, ...], **settings: Any
) -> dict[str, Scenario]:
    return {
        f"{name}: {title}": Scenario(callers, **{**settings, **policy})
        for name, policy in POLICIES.items()
    }


_ELSEWHERE: Any = {"places": (0, 1, 2)}
_RERUN_EXPIRED: Any = {"on_expired": ExpiredPolicy.RERUN}
_ANSWERS: Any = {"ends": ("returns", "fails", "keeps nothing")}
_ALL_ENDS: Any = {"ends": ("returns", "declines", "unsure", "interrupted")}
_ON_TIME: Any = {"lease": 3, "ttl": 9, "renewals": 4, "wait": 0, "on_time": OnTime(1), **_ELSEWHERE}
_NEAR: Any = {"clocks": (0, 1, 1), "finds_no_living": True}  # test_clocks.py has why this is near
_WITH_LEASES = ("raise", "rerun", "reconcile")

EVERY_TIME: dict[str, Scenario] = {
    **_under_every_policy("three processes, a crash", _callers("AAA", "012"), may=Left(crashes=1)),
    **_under_every_policy(
        "three processes, other params, a crash, expiry",
        _callers("AAB", "012"),
        may=Left(crashes=1, ticks=1, sweeps=1),
        wait=0,
    ),
    **_under_every_policy(
        "one process, other params, a crash, expiry",
        _callers("AAB", "000"),
        may=Left(crashes=1, ticks=2, sweeps=1),
    ),
    **_under_every_policy(
        "two in one process, one in another, a crash, expiry",
        _callers("AAA", "001"),
        may=Left(crashes=1, ticks=1, sweeps=1),
        wait=0,
    ),
    **_under_every_policy(
        "two in one process, other params in another, a crash, expiry",
        _callers("AAB", "001"),
        may=Left(crashes=1, ticks=2, sweeps=1),
    ),
    **_under_every_policy(
        "one process, no more time to wait, a crash, expiry",
        _callers("AAB", "000"),
        may=Left(crashes=1, ticks=1, timeouts=2),
    ),
    **_under_every_policy(
        "two in one process, one in another, no more time to wait, a crash",
        _callers("AAA", "001"),
        may=Left(crashes=1, timeouts=1),
        ends=("returns", "declines"),
    ),
    **_under_every_policy(
        "three machines, a lease over",
        _callers("AAA", "012"),
        may=Left(ticks=1),
        ttl=2,
        wait=0,
        **_ELSEWHERE,
    ),
    **_under_every_policy(
        "two machines, a crash, leases over, expiry",
        _callers("AA", "01"),
        may=Left(crashes=1, ticks=2, sweeps=1),
        **_ELSEWHERE,
    ),
    **_under_every_policy(
        "two processes, every end of a handler, a crash",
        _callers("AA", "01"),
        may=Left(crashes=1, ticks=1),
        **_ALL_ENDS,
    ),
    **_under_every_policy(
        "two machines, every end of a handler, leases over",
        _callers("AA", "01"),
        may=Left(ticks=1),
        **_ALL_ENDS,
        **_ELSEWHERE,
    ),
    **_under_every_policy(
        "two processes, a handler that does not know its end in every way",
        _callers("AA", "01"),
        may=Left(ticks=1),
        ends=("returns", "times out", "loses a leg", "never begins"),
    ),
    **_under_every_policy(
        "three processes, a handler that never begins, a crash",
        _callers("AAB", "012"),
        may=Left(crashes=1),
        wait=0,
        ends=("returns", "never begins"),
    ),
    **_under_every_policy(
        "one process, a handler that never begins, a fault of the store",
        _callers("AAB", "000"),
        may=Left(faults=1),
        ends=("returns", "never begins", "times out"),
    ),
    **_under_every_policy(
        "two processes, every exception leaves doubt, a crash",
        _callers("AB", "01"),
        may=Left(crashes=1),
        ends=("returns", "declines", "denies"),
        doubt_on=(Exception,),
    ),
    "reconcile: two processes, a ledger that does not know yet, a crash": Scenario(
        _callers("AA", "01"),
        may=Left(crashes=1, unknowns=2),
        wait=0,
        ends=("returns", "unsure", "declines"),
        **POLICIES["reconcile"],
    ),
    **_under_every_policy(
        "two processes, a fault of the store, a crash, expiry",
        _callers("AA", "01"),
        may=Left(crashes=1, ticks=1, faults=1),
    ),
    **_under_every_policy(
        "one process, a fault of the store, a crash",
        _callers("AAB", "000"),
        may=Left(crashes=1, faults=1),
    ),
    **_under_every_policy(
        "two processes, slow clocks, expiry",
        _callers("AA", "01"),
        may=Left(ticks=2, sweeps=1),
        slow_clocks=True,
    ),
    **_under_every_policy(
        "two machines, slow clocks, a crash, leases over",
        _callers("AA", "01"),
        may=Left(crashes=1, ticks=1),
        slow_clocks=True,
        ttl=2,
        wait=0,
        **_ELSEWHERE,
    ),
    **_under_every_policy(
        "two processes, tombstones, a sweep and a walk",
        _callers("AAA", "012", ("execute", "execute", "walk")),
        may=Left(ticks=2, sweeps=1),
        tombstone=1,
        wait=0,
    ),
    **_under_every_policy(
        "lookups of a key that is run",
        _callers("AAB", "010", ("execute", "lookup", "lookup")),
        may=Left(crashes=1, ticks=1),
    ),
    **_under_every_policy(
        "transactions, a crash, expiry, a fault of the store",
        _callers("AAB", "012", ("transact", "transact", "transact")),
        may=Left(crashes=1, ticks=1, sweeps=1, faults=1),
    ),
    **_under_every_policy(
        "a transaction and a run with a claim, a crash",
        _callers("AA", "01", ("transact", "execute")),
        may=Left(crashes=1, ticks=1),
        ends=("returns", "declines"),
    ),
    **_under_every_policy(
        "two joined in their callers' transactions, other params in one, a crash, expiry",
        _callers("AAB", "010", ("joined", "joined", "execute")),
        may=Left(crashes=1, ticks=1, sweeps=1),
    ),
    **_under_every_policy(
        "two joined, every end, faults, a crash",
        _callers("AA", "01", ("joined", "joined")),
        may=Left(crashes=1, ticks=1, faults=1),
        wait=0,
        ends=("returns", "declines", "fails", "keeps nothing", "commits"),
    ),
    **_under_every_policy(
        "joined beside a run with a claim in one process, faults, a crash",
        _callers("AA", "00", ("joined", "execute")),
        may=Left(crashes=1, faults=1),
        wait=0,
        **_ANSWERS,
    ),
    **_under_every_policy(
        "joined beside a transaction, a fault, a crash",
        _callers("AA", "01", ("joined", "transact")),
        may=Left(crashes=1, ticks=1, faults=1),
        ends=("returns", "fails"),
    ),
    **_under_every_policy(
        "joined on another machine than a run with a claim, leases over",
        _callers("AAB", "012", ("joined", "execute", "joined")),
        may=Left(ticks=1),
        ends=("returns", "keeps nothing"),
        **_ELSEWHERE,
    ),
    **{
        f"{name}: two machines, a renewal, leases over": Scenario(
            _callers("AA", "01"),
            may=Left(ticks=2),
            renewals=1,
            ttl=2,
            wait=0,
            **POLICIES[name],
            **_ELSEWHERE,
        )
        for name in ("raise", "rerun", "reconcile")
    },
    **{
        f"{name}: two machines, a renewal, a fault of the store": Scenario(
            _callers("AA", "01"),
            may=Left(ticks=1, faults=1),
            renewals=1,
            wait=0,
            **POLICIES[name],
            **_ELSEWHERE,
        )
        for name in ("raise", "rerun", "reconcile")
    },
    **{
        f"{name}: {title}": Scenario(
            _callers("AA", "01"), **{**_ON_TIME, **settings, **POLICIES[name]}
        )
        for name in _WITH_LEASES
        for title, settings in {
            "two machines, near clocks, renewals on time, a crash": {
                **_NEAR,
                "may": Left(crashes=1, ticks=3),
                "ends": ("returns", "declines", "unsure"),
            },
            "two machines, clocks that are set anew and stay near, renewals on time": {
                **_NEAR,
                "may": Left(ticks=3, jumps=2),
                "clocks": (0, 0, 0),
                "jumps_to": (0, 1),
            },
            "two machines, a clock ahead by a lease, a crash": {
                "may": Left(crashes=1, ticks=2),
                "clocks": (0, 3, 3),
            },
            "two machines, clocks that are set far ahead and back": {
                "may": Left(ticks=3, jumps=2),
                "jumps_to": (0, 2),
            },
        }.items()
    },
    **_under_every_policy(
        "two machines, clocks apart, expiry, tombstones, a sweep",
        _callers("AA", "01"),
        may=Left(ticks=2, sweeps=1),
        ttl=2,
        tombstone=1,
        wait=0,
        clocks=(0, 1, 1),
        **_ELSEWHERE,
    ),
    **_under_every_policy(
        "two machines, clocks that are set anew, what has expired is run again",
        _callers("AA", "01"),
        may=Left(ticks=1, jumps=2),
        wait=0,
        jumps_to=(0, 2),
        **_RERUN_EXPIRED,
        **_ELSEWHERE,
    ),
    **_under_every_policy(
        "other params, a handler that declines, a crash",
        _callers("AAB", "012"),
        may=Left(crashes=1),
        wait=0,
        ends=("returns", "declines", "denies"),
    ),
    **_under_every_policy(
        "other params, a final failure, an answer that is not kept, a crash",
        _callers("AAB", "012"),
        may=Left(crashes=1),
        wait=0,
        **_ANSWERS,
    ),
    **_under_every_policy(
        "one process, other params, a final failure, an answer that is not kept, expiry",
        _callers("AAB", "000"),
        may=Left(ticks=1),
        **_ANSWERS,
    ),
    **_under_every_policy(
        "two machines, a final failure, an answer that is not kept, leases over, expiry",
        _callers("AA", "01"),
        may=Left(ticks=2),
        **_ANSWERS,
        **_ELSEWHERE,
    ),
    **_under_every_policy(
        "a final failure, an answer that is not kept, a fault of the store, a crash",
        _callers("AA", "01"),
        may=Left(crashes=1, faults=1),
        wait=0,
        **_ANSWERS,
    ),
    **_under_every_policy(
        "a transaction with a final failure and a run with a claim, a crash, a fault of the store",
        _callers("AA", "01", ("transact", "execute")),
        may=Left(crashes=1, faults=1),
        wait=0,
        **_ANSWERS,
    ),
    **_under_every_policy(
        "lookups of a final failure, of an answer that is not kept, and of one that has expired",
        _callers("AAB", "010", ("execute", "lookup", "lookup")),
        may=Left(crashes=1, ticks=1),
        **_ANSWERS,
        **_RERUN_EXPIRED,
    ),
    **_under_every_policy(
        "what has expired is run again, other params, a sweep",
        _callers("AAB", "012"),
        may=Left(ticks=1, sweeps=1),
        wait=0,
        **_RERUN_EXPIRED,
    ),
    **_under_every_policy(
        "what has expired is run again, tombstones, a walk, a crash",
        _callers("AAA", "012", ("execute", "execute", "walk")),
        may=Left(crashes=1, ticks=1),
        tombstone=1,
        wait=0,
        **_RERUN_EXPIRED,
    ),
    **_under_every_policy(
        "two machines, what has expired is run again, leases over",
        _callers("AA", "01"),
        may=Left(ticks=3),
        wait=0,
        **_RERUN_EXPIRED,
        **_ELSEWHERE,
    ),
    **_under_every_policy(
        "an operator forgets, tombstones, a crash",
        _callers("AAA", "012", ("execute", "execute", "forget")),
        may=Left(crashes=1, ticks=1),
        tombstone=1,
        wait=0,
    ),
    **_under_every_policy(
        "an operator forgets what he has seen, other params, a final failure",
        _callers("ABA", "012", ("execute", "execute", "forget seen")),
        may=Left(crashes=1, ticks=1),
        wait=0,
        ends=("returns", "fails"),
    ),
    **_under_every_policy(
        "an operator forgets, a fault of the store, a crash",
        _callers("AA", "01", ("execute", "forget")),
        may=Left(crashes=1, faults=1),
        wait=0,
        **_ANSWERS,
    ),
    "raise: an operator elsewhere settles the claim that it has looked at": Scenario(
        _callers("AAA", "012", ("execute", "execute", "operator")),
        may=Left(crashes=1, ticks=1),
        wait=0,
        **_ELSEWHERE,
    ),
    "raise: an operator settles a key in doubt": Scenario(
        _callers("AAA", "012", ("execute", "execute", "operator")),
        may=Left(crashes=1, ticks=1),
        **_ALL_ENDS,
    ),
}

AT_LENGTH: dict[str, Scenario] = {
    **_under_every_policy(
        "three processes, two crashes", _callers("AAA", "012"), may=Left(crashes=2), wait=0
    ),
    **_under_every_policy(
        "three processes, a crash, expiry",
        _callers("AAA", "012"),
        may=Left(crashes=1, ticks=1, sweeps=1),
    ),
    **_under_every_policy(
        "three processes, other params, two crashes, expiry",
        _callers("AAB", "012"),
        may=Left(crashes=2, ticks=1, sweeps=1),
        wait=0,
    ),
    **_under_every_policy(
        "one process, other params, two crashes, expiry",
        _callers("AAB", "000"),
        may=Left(crashes=2, ticks=3, sweeps=2),
    ),
    **_under_every_policy(
        "two in one process, one in another, two crashes, expiry",
        _callers("AAA", "001"),
        may=Left(crashes=2, ticks=1, sweeps=1),
    ),
    **_under_every_policy(
        "three machines, a crash, leases over",
        _callers("AAA", "012"),
        may=Left(crashes=1, ticks=1),
        ttl=2,
        wait=0,
        **_ELSEWHERE,
    ),
    **_under_every_policy(
        "two machines of three processes, other params, a crash, leases over, expiry",
        _callers("AAB", "012"),
        may=Left(crashes=1, ticks=2, sweeps=1),
        places=(0, 1, 1),
    ),
    **_under_every_policy(
        "three processes, every end of a handler",
        _callers("AAA", "012"),
        **_ALL_ENDS,
    ),
    **_under_every_policy(
        "three machines, a final failure, leases over",
        _callers("AAA", "012"),
        may=Left(ticks=1),
        ttl=2,
        wait=0,
        ends=("returns", "fails"),
        **_ELSEWHERE,
    ),
    **_under_every_policy(
        "a final failure, an answer that is not kept, a fault of the store, a crash, expiry",
        _callers("AA", "01"),
        may=Left(crashes=1, ticks=1, faults=1),
        **_ANSWERS,
    ),
    **_under_every_policy(
        "two transactions with a final failure, a crash, a fault, a run with a claim",
        _callers("AAA", "012", ("transact", "transact", "execute")),
        may=Left(crashes=1, faults=1),
        wait=0,
        **_ANSWERS,
    ),
    **_under_every_policy(
        "what has expired is run again, other params, tombstones, a crash, a sweep",
        _callers("AAB", "012"),
        may=Left(crashes=1, ticks=2, sweeps=1),
        tombstone=1,
        wait=0,
        **_RERUN_EXPIRED,
    ),
    **_under_every_policy(
        "joined, a transaction and a run with a claim, a crash, a fault of the store",
        _callers("AAA", "012", ("joined", "transact", "execute")),
        may=Left(crashes=1, faults=1),
        wait=0,
        ends=("returns", "fails"),
    ),
    **_under_every_policy(
        "two joined, every end, a fault, two crashes, expiry",
        _callers("AA", "01", ("joined", "joined")),
        may=Left(crashes=2, ticks=1, sweeps=1, faults=1),
        ends=("returns", "declines", "fails", "keeps nothing", "commits"),
    ),
    "reconcile: three processes, a ledger that does not know yet, a crash": Scenario(
        _callers("AAA", "012"),
        may=Left(crashes=1, unknowns=2),
        wait=0,
        ends=("returns", "unsure", "declines"),
        **POLICIES["reconcile"],
    ),
    **_under_every_policy(
        "three processes, a fault of the store, a crash",
        _callers("AAA", "012"),
        may=Left(crashes=1, faults=1),
        wait=0,
    ),
    **_under_every_policy(
        "two processes, two faults of the store, two crashes, expiry",
        _callers("AA", "01"),
        may=Left(crashes=2, ticks=1, faults=2),
        wait=0,
    ),
    **_under_every_policy(
        "two machines, slow clocks, a crash, leases over, expiry",
        _callers("AA", "01"),
        may=Left(crashes=1, ticks=2, sweeps=1),
        slow_clocks=True,
        wait=0,
        **_ELSEWHERE,
    ),
    **_under_every_policy(
        "transactions and a run with a claim, a crash, expiry, a fault of the store",
        _callers("AAA", "012", ("transact", "transact", "execute")),
        may=Left(crashes=1, ticks=1, faults=1),
        wait=0,
    ),
    **{
        f"{name}: an operator elsewhere settles the claim that it has looked at": Scenario(
            _callers("AAA", "012", ("execute", "execute", "operator")),
            may=Left(crashes=1, ticks=2),
            wait=0,
            **POLICIES[name],
            **_ELSEWHERE,
        )
        for name in ("rerun", "reconcile")
    },
    **{
        f"{name}: two machines, two renewals, a crash, a fault of the store": Scenario(
            _callers("AA", "01"),
            may=Left(crashes=1, ticks=2, faults=1),
            renewals=2,
            wait=0,
            **POLICIES[name],
            **_ELSEWHERE,
        )
        for name in ("raise", "rerun", "reconcile")
    },
    **{
        f"{name}: two machines, near clocks, slow renewals on time, a crash": Scenario(
            _callers("AA", "01"),
            may=Left(crashes=1, ticks=7),
            **{**_ON_TIME, **_NEAR, "lease": 6, "on_time": OnTime(2, 1), **POLICIES[name]},
        )
        for name in _WITH_LEASES
    },
    **{
        f"{name}: an operator elsewhere, a clock ahead by a lease, a crash": Scenario(
            _callers("AAA", "012", ("execute", "execute", "operator")),
            may=Left(crashes=1, ticks=2),
            **{**_ON_TIME, "clocks": (0, 0, 3), **POLICIES[name]},
        )
        for name in _WITH_LEASES
    },
}
