"""What a request meets that comes after everything else: no key is stuck, and no answer forgotten.

Every process has been restarted, and every lease that nobody can look up is over.
"""

from __future__ import annotations

from typing import Any

import attrs

from kvreplay import NOT_APPLIED, Applied, KVReplayError
from kvreplay._protocol.record import TOKEN_SIZE
from kvreplay._protocol.steps import (
    BEGIN,
    READ,
    Call,
    CheckAndPut,
    ExpiredPolicy,
    InDoubtPolicy,
    Probe,
    Reconcile,
    Request,
    Wait,
)
from simulation.flows import Protocol
from simulation.invariants import Violation, answer_of
from simulation.scenario import KEY, PARAMS, TICK, Scenario
from simulation.world import describe, place_of, view


def check_latecomers(
    label: str,
    scenario: Scenario,
    protocol: Protocol,
    data: bytes | None,
    now: int,
    effect: str | None,
) -> None:
    """Let one more request of either params come, alone; ``effect``: what the ledger alone knows."""
    entry = view(data)
    if entry is not None and entry.claim is not None:
        now = max(now, entry.claim.lease_expires_at)
    for params in PARAMS:
        end = _Latecomer(scenario, protocol, data, now, effect).ask(params)
        allowed = _allowed(scenario, data, now, effect)
        if end not in allowed:
            due = " or ".join(sorted(allowed))
            broken = f"a request for {params} that comes later {end}, and due was that it {due}"
            raise Violation(f"{label} the store has {describe(data)}", broken)


def _allowed(scenario: Scenario, data: bytes | None, now: int, effect: str | None) -> set[str]:
    entry = view(data)
    if entry is None:
        return {"runs"}
    if entry.claim is not None:
        outcome = {
            InDoubtPolicy.RAISE: "ends with InDoubtError",
            InDoubtPolicy.RERUN: "runs",
            InDoubtPolicy.RECONCILE: "runs" if effect is None else f"gets {effect}",
        }[scenario.on_in_doubt]
        return {outcome, "ends with ParamsMismatchError"}
    if entry.response is not None and now < entry.expires_at:
        return {f"gets {entry.response}", "ends with ParamsMismatchError"}
    if scenario.on_expired is ExpiredPolicy.RERUN:
        return {"runs"}
    return (
        {"ends with ExpiredError"}
        if entry.response is not None or now < entry.expires_at
        else {"runs"}
    )


@attrs.define
class _Latecomer:
    scenario: Scenario
    protocol: Protocol
    data: bytes | None
    now: int
    effect: str | None

    def ask(self, params: str) -> str:
        """Return how the request ends: what it gets or raises, or that it runs the handler."""
        request = Request(KEY, PARAMS[params], self.scenario.ttl * TICK)
        flow = self.protocol.execute(request, self.scenario.policy)
        try:
            step = next(flow)
            while not isinstance(step, Call | Wait):
                step = flow.send(self._answer(step))
        except StopIteration as returned:
            return f"gets {answer_of('(later)', returned.value)}"
        except KVReplayError as error:
            return f"ends with {type(error).__name__}"
        return "runs" if isinstance(step, Call) else "waits"

    def _answer(self, step: Any) -> Any:
        if step is READ:
            return self.data, self.now
        if step is BEGIN:
            return b"later".ljust(TOKEN_SIZE, b"\0"), "0:99:1"
        if isinstance(step, Probe):
            return False if place_of(step.claim) == 0 else None
        if isinstance(step, Reconcile):
            return NOT_APPLIED if self.effect is None else Applied(self.effect), self.now
        assert isinstance(step, CheckAndPut)
        found = self.data
        if found == step.expected:
            self.data = step.value
        return found, self.now
