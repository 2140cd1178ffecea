"""Who asks for what, under which policy, and what may go wrong, how often."""

from __future__ import annotations

from typing import Literal, NamedTuple

import attrs

from kvreplay import ReplayKey
from kvreplay._protocol.params import canonical
from kvreplay._protocol.steps import ExpiredPolicy, InDoubtPolicy, Policy, Request
from simulation.flows import Refused

TICK = 1000  # milliseconds: what the clock moves by
START = 1_000_000
KEY = ReplayKey("lsp", "session")
PARAMS = {letter: canonical({"params": letter}) for letter in "AB"}

Kind = Literal[
    *("execute", "transact", "joined", "lookup"),
    *("operator", "walk", "forget", "forget seen"),
]
End = Literal[
    *("returns", "declines", "unsure", "interrupted"),
    *("times out", "loses a leg", "never begins", "denies"),
    *("fails", "keeps nothing", "commits"),
]
"""How a handler ends. It denies by a NotAppliedError, and never begins for want of a thread.

It fails by a final failure, and keeps nothing of an answer by returning it as NotStored.
In its caller's own transaction it may commit that, against the rules, and then return.
"""


class Caller(NamedTuple):
    """One request, or one visit of a sweeping walk, or an operator.

    A request is joined in a transaction of its caller's own.

    An operator settles a key in doubt, or forgets an answer: any, or the one that he has seen.
    """

    params: str
    process: int = 0
    kind: Kind = "execute"


class Left(NamedTuple):
    """How often each thing may still happen."""

    crashes: int = 0
    ticks: int = 0
    sweeps: int = 0
    faults: int = 0
    unknowns: int = 0
    """How often the ledger does not know yet when a reconciler asks it."""
    timeouts: int = 0
    """How often the time is over of a request that waits for its own process's run."""
    jumps: int = 0
    """How often the clock of a place is set anew."""


NOTHING = Left()


class OnTime(NamedTuple):
    """How renewals keep time, in ticks. The clocks of the places do not count here.

    A renewal begins one ``interval`` after the last one has ended, or after the handler has begun.
    It ``takes`` that long at most, and so does what comes before the handler and after it: from the
    time that a claim's lease is reckoned from to the handler, and from the handler to the answer.
    """

    interval: int
    takes: int = 0


@attrs.frozen
class Scenario:
    """Times are ticks. ``places``: where each process is; only there it can be looked up."""

    callers: tuple[Caller, ...]
    may: Left = NOTHING
    places: tuple[int, ...] = (0, 0, 0)
    on_in_doubt: InDoubtPolicy = InDoubtPolicy.RAISE
    lease: int | None = 1
    ttl: int = 1
    tombstone: int = 0
    wait: int = 2  # milliseconds to wait for another owner: looks again once
    renewals: int = 0
    ends: tuple[End, ...] = ("returns",)
    doubt_on: tuple[type[Exception], ...] = (TimeoutError, ConnectionError)
    on_expired: ExpiredPolicy = ExpiredPolicy.STALE
    slow_clocks: bool = False
    """Whether the clock may move between what a store does and the time that is told with it."""
    clocks: tuple[int, ...] = (0, 0, 0)
    """By how much the clock of each place is ahead at first."""
    jumps_to: tuple[int, ...] = ()
    """By how much a clock may be ahead once it is set anew."""
    on_time: OnTime | None = None
    """``None``: a renewal may come at any time, or too late."""
    finds_no_living: bool = False
    """Whether no owner that lives may be found in doubt: renewals are on time, and clocks near."""

    @property
    def policy(self) -> Policy:
        return Policy(
            lease=None if self.lease is None else self.lease * TICK,
            tombstone_ttl=self.tombstone * TICK,
            on_in_doubt=self.on_in_doubt,
            max_record_bytes=10_000,
            doubt_on=self.doubt_on,
            store_errors=(Refused,),
            on_expired=self.on_expired,
        )

    def request(self, caller: Caller) -> Request:
        return Request(KEY, PARAMS[caller.params], self.ttl * TICK)

    def __str__(self) -> str:
        callers = ", ".join(
            f"{name_of(index)}: {each.kind} {each.params} in P{each.process}"
            for index, each in enumerate(self.callers)
        )
        processes = sorted({each.process for each in self.callers})
        places = "".join(str(self.places[process]) for process in processes)
        settings = [f"{callers}", f"places {places}", f"in doubt: {self.on_in_doubt.value}"]
        settings.append(f"lease {self.lease}, ttl {self.ttl}, tombstone {self.tombstone}")
        settings.extend(f"{n} {what}" for what, n in self.may._asdict().items() if n)
        if self.renewals:
            settings.append(f"{self.renewals} renewals")
        if self.ends != ("returns",):
            settings.append(f"the handler {' or '.join(self.ends)}")
        if self.doubt_on == (Exception,):
            settings.append("every exception leaves doubt")
        if self.on_expired is not ExpiredPolicy.STALE:
            settings.append(f"expired: {self.on_expired.value}")
        if self.slow_clocks:
            settings.append("slow clocks")
        if any(self.clocks) or self.jumps_to:
            jumps = f", or {' or '.join(map(str, self.jumps_to))}" if self.jumps_to else ""
            settings.append(f"clocks ahead by {' and '.join(map(str, self.clocks))}{jumps}")
        if self.on_time is not None:
            settings.append(f"renewed every {self.on_time.interval}, within {self.on_time.takes}")
        return "; ".join(settings)


def name_of(index: int, attempt: int = 1) -> str:
    """A caller's name; each attempt after a crash adds a stroke."""
    return f"r{index + 1}" + "'" * (attempt - 1)
