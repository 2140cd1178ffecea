"""Bugs planted in the protocol, each of them a way in which such libraries have been broken.

``patched`` is ``flow.py`` with some of its text replaced; ``rewritten`` lets the real flows run and
changes the steps that they yield.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import attrs

from kvreplay._protocol import endings as real_endings
from kvreplay._protocol import flow as real_flow
from kvreplay._protocol.steps import CheckAndPut, ExpiredPolicy, Flow, InDoubtPolicy
from simulation.answers import ANYTHING
from simulation.flows import REAL, Protocol
from simulation.scenario import Caller, Left, OnTime, Scenario
from simulation.world import view


def patched(*changes: tuple[str, str]) -> Protocol:
    """Return the flows of copies of ``flow.py`` and ``endings.py`` in which each text is another.

    It is there once, in one of them.
    """
    sources = {each: inspect.getsource(each) for each in (real_endings, real_flow)}
    for old, new in changes:
        (place,) = [each for each, source in sources.items() if source.count(old)] or [real_flow]
        if sources[place].count(old) != 1:
            raise LookupError(f"there are {sources[place].count(old)} of these, not one: {old!r}")
        sources[place] = sources[place].replace(old, new)
    for name, source in zip(("planted_endings", "planted_flow"), sources.values(), strict=True):
        module = ModuleType(name)
        sys.modules[name] = module  # attrs and enum look their module up, and one the other
        source = source.replace("from kvreplay._protocol.endings ", "from planted_endings ")
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return Protocol.of(module)


def rewritten(change: Callable[[Flow[Any]], Flow[Any]], protocol: Protocol = REAL) -> Protocol:
    """Return the flows with ``change`` around each."""

    def around(make: Callable[..., Flow[Any]]) -> Callable[..., Flow[Any]]:
        return lambda *args: change(make(*args))

    return Protocol(*map(around, protocol))


def unconditional(chosen: Callable[[CheckAndPut], bool]) -> Protocol:
    """Return the flows whose chosen puts do not compare, and believe that they did."""

    def change(flow: Flow[Any]) -> Flow[Any]:
        step = next(flow)
        while True:
            asked = step
            if isinstance(step, CheckAndPut) and chosen(step):
                asked = attrs.evolve(step, expected=ANYTHING)
            try:
                answer = yield asked
            except BaseException as error:
                step, sent = None, error
            else:
                sent = (step.expected, answer[1]) if asked is not step else answer
            try:
                step = flow.throw(sent) if step is None else flow.send(sent)
            except StopIteration as returned:
                return returned.value

    return rewritten(change)


def _two(**settings: Any) -> Scenario:
    """Two requests with the same params, in two processes of one machine."""
    return Scenario((Caller("A", 0), Caller("A", 1)), **settings)


def _three(**settings: Any) -> Scenario:
    return Scenario((Caller("A", 0), Caller("A", 1), Caller("A", 2)), wait=0, **settings)


@attrs.frozen
class Planted:
    """A bug, a scenario in which it shows, and what is then seen broken."""

    name: str
    plant: Callable[[], Protocol]
    scenario: Scenario
    broken: str


_RERUN: Any = {"on_in_doubt": InDoubtPolicy.RERUN}
_RECONCILE: Any = {"on_in_doubt": InDoubtPolicy.RECONCILE}
_ELSEWHERE: Any = {"places": (0, 1, 2)}
_JOINED = Scenario((Caller("A", 0, "joined"), Caller("A", 1, "joined")))
_FAILS: Any = {"ends": ("returns", "fails")}


def _is_prune(step: CheckAndPut) -> bool:
    return step.event is None and _is_answer(step.expected) and not _is_claim(step.value)


def _is_claim(data: bytes | None) -> bool:
    entry = view(data)
    return entry is not None and entry.claim is not None


def _is_answer(data: bytes | None) -> bool:
    entry = view(data)
    return entry is not None and entry.claim is None


def _event(event: str) -> Callable[[CheckAndPut], bool]:
    return lambda step: step.event == event


PLANTED = [
    Planted(
        "a completion that does not compare",
        lambda: unconditional(_event("completed")),
        _two(may=Left(ticks=1), ttl=2, **_RERUN, **_ELSEWHERE),
        "the acknowledged answer 'r.' is lost",
    ),
    Planted(
        "a prune that does not compare",
        lambda: unconditional(_is_prune),
        _three(may=Left(ticks=1, sweeps=1)),
        "the acknowledged answer 'r.' is lost",
    ),
    Planted(
        "a claim after the handler",
        lambda: patched(
            (
                """        found, now = yield CheckAndPut(entry.found, held.data, event=event)
        if found != entry.found:
            return Free(found, now)
        claimed = True
        end, now = yield call
""",
                """        end, now = yield call
        found, _ = yield CheckAndPut(entry.found, held.data, event=event)
        if found != entry.found:
            return Free(found, now)
        claimed = True
""",
            )
        ),
        _two(),
        "runs again while the owner of 'r.' lives",
    ),
    Planted(
        "a take-over that does not compare",
        lambda: unconditional(_event("taken_over")),
        _three(may=Left(crashes=1), **_RERUN),
        "the acknowledged answer 'r.' is lost",
    ),
    Planted(
        "a release that does not compare",
        lambda: unconditional(_event("released")),
        _three(may=Left(ticks=1), ends=("returns", "declines"), **_RERUN, **_ELSEWHERE),
        "the acknowledged answer 'r.' is lost",
    ),
    Planted(
        "an operator's release that does not compare",
        lambda: REAL._replace(settle=unconditional(_event("released_by_operator")).settle),
        Scenario(
            (Caller("A", 0), Caller("A", 1), Caller("A", 2, "operator")),
            may=Left(crashes=1),
            **_RERUN,
        ),
        "the acknowledged answer 'r.' is lost",
    ),
    Planted(
        "an operator who settles whatever claim is there",
        lambda: patched(
            ("not (seen is None or _is_same_claim(seen.claim, record.claim))", "False")
        ),
        Scenario(
            (Caller("A", 0), Caller("A", 1), Caller("A", 2, "operator")),
            may=Left(crashes=1, ticks=1),
            wait=0,
            **_ELSEWHERE,
        ),
        "runs again, and the policy does not allow it",
    ),
    Planted(
        "a ledger's answer that does not compare",
        lambda: unconditional(_event("reconciled")),
        _three(may=Left(crashes=1), **_RECONCILE),
        "'r.' is stored a second time",
    ),
    Planted(
        "a renewal that does not compare",
        lambda: REAL._replace(renew=unconditional(lambda step: True).renew),
        _two(may=Left(ticks=1), ttl=2, renewals=1, **_RERUN, **_ELSEWHERE),
        "the acknowledged answer 'r.' is lost",
    ),
    Planted(
        "a renewal that gives up its claim once an outcome is lost",
        lambda: patched(
            (
                """    if claim_of(found, held.token) is None:
        return False
    claim =""",
                """    if found != held.data:
        return False
    claim =""",
            )
        ),
        _two(
            may=Left(ticks=6, faults=2),
            lease=4,
            ttl=9,
            renewals=3,
            wait=0,
            on_time=OnTime(1),
            finds_no_living=True,
            **_ELSEWHERE,
        ),
        "a living owner that renews in time is found in doubt",
    ),
    Planted(
        "liveness by the lease alone",
        lambda: patched(
            (
                "return now < claim.lease_expires_at if runs is None else bool(runs)",
                "return now < claim.lease_expires_at",
            )
        ),
        _two(may=Left(ticks=1), **_RERUN),
        "runs again while the owner of 'r.' lives",
    ),
    Planted(
        "an owner that is gone and is waited for",
        lambda: patched(
            (
                "return now < claim.lease_expires_at if runs is None else bool(runs)",
                "return runs is not None or now < claim.lease_expires_at",
            )
        ),
        _two(may=Left(crashes=1)),
        "told to wait for an owner that is gone|comes later waits",
    ),
    Planted(
        "a lease that is not looked at",
        lambda: patched(
            (
                "return now < claim.lease_expires_at if runs is None else bool(runs)",
                "return bool(runs)",
            )
        ),
        _two(**_RERUN, **_ELSEWHERE),
        "runs again while the owner of 'r.' lives",
    ),
    Planted(
        "params that are not compared with a claim's",
        lambda: patched(("if not _has_params(", "if record.claim is None and not _has_params(")),
        Scenario((Caller("A", 0), Caller("B", 1)), may=Left(crashes=1), **_RERUN),
        "runs for other params than the run of 'r.' had",
    ),
    Planted(
        "params that are not compared with an answer's",
        lambda: patched(("if not _has_params(", "if record.claim and not _has_params(")),
        Scenario((Caller("A", 0), Caller("B", 1))),
        "got the answer to other params",
    ),
    Planted(
        "an answer from an expired record",
        lambda: patched(("None and now >= record.expires_at", "None and now > record.expires_at")),
        _two(may=Left(ticks=1)),
        "from an expired record",
    ),
    Planted(
        "a late completion that is believed",
        lambda: patched(
            (
                """        if found == step.expected:
            return
        if claim_of""",
                """        return
        if claim_of""",
            )
        ),
        _two(may=Left(ticks=1), **_RERUN, **_ELSEWHERE),
        "never stored",
    ),
    Planted(
        "a late completion that follows another's claim",
        lambda: patched(
            (
                "if claim_of(found, held.token) is None:\n            raise",
                "if found is None:\n            raise",
            )
        ),
        _two(may=Left(ticks=1), ttl=2, **_RERUN, **_ELSEWHERE),
        "the acknowledged answer 'r.' is lost",
    ),
    Planted(
        "a key in doubt that is silently run again",
        lambda: patched(("if policy.on_in_doubt is InDoubtPolicy.RERUN:", "if True:")),
        _two(may=Left(crashes=1)),
        "the policy does not allow it",
    ),
    Planted(
        "a claim released by a handler that does not know its end",
        lambda: patched(("(raised and not leaves_doubt(error, policy.doubt_on))", "raised")),
        _two(ends=("returns", "unsure")),
        "the policy does not allow it",
    ),
    Planted(
        "a claim released by an interrupt",
        lambda: patched(
            (
                "if not call.begun or (",
                "if not call.begun or not isinstance(error, Exception) or (",
            )
        ),
        _two(ends=("returns", "interrupted")),
        "the policy does not allow it",
    ),
    Planted(
        "a claim that a sweep removes",
        lambda: patched(
            (
                "CheckAndPut(entry.found, held.data, event=event)",
                "CheckAndPut(entry.found, held.data, claim.lease_expires_at, event)",
            )
        ),
        _two(may=Left(ticks=1, sweeps=1)),
        "runs again while the owner of 'r.' lives",
    ),
    Planted(
        "a tombstone that a sweep removes",
        lambda: patched(
            (
                "CheckAndPut(expected, data, expires_at + policy.tombstone_ttl,",
                "CheckAndPut(expected, data, expires_at,",
            )
        ),
        _two(may=Left(ticks=1, sweeps=1), tombstone=1),
        "runs again although 'r.' is the answer",
    ),
    Planted(
        "an expired answer pruned without leaving its tombstone",
        lambda: patched(("until += policy.tombstone_ttl", "pass")),
        _three(may=Left(ticks=1), tombstone=1),
        "runs again although 'r.' is the answer",
    ),
    Planted(
        "a tombstone that binds nobody",
        lambda: patched(("is_absent = is_over and record", "is_absent = record")),
        _three(may=Left(ticks=1), tombstone=1),
        "a request for . that comes later runs",
    ),
    Planted(
        "a failed completion that is believed",
        lambda: patched(
            (
                """        except Exception as error:  # the store's or the clock's
            raise InDoubtError(
                "the handler ran, but the store may not have saved its response: the key""",
                """        except Exception as error:  # the store's or the clock's
            return
            raise InDoubtError(
                "the handler ran, but the store may not have saved its response: the key""",
            )
        ),
        _two(may=Left(faults=1)),
        "never stored",
    ),
    Planted(
        "a failed completion that releases the claim",
        lambda: patched(
            (
                """        except Exception as error:  # the store's or the clock's
            raise InDoubtError(
                "the handler ran, but the store may not have saved its response: the key""",
                """        except Exception as error:  # the store's or the clock's
            yield CheckAndPut(held.data, None)
            raise InDoubtError(
                "the handler ran, but the store may not have saved its response: the key""",
            )
        ),
        _two(may=Left(faults=1)),
        "runs again while the owner of 'r.' lives|the policy does not allow it",
    ),
    Planted(
        "a claim kept by a run that never began",
        lambda: patched(("if not call.begun or (", "if (")),
        _two(ends=("returns", "never begins")),
        "a run that never began leaves its claim",
    ),
    Planted(
        "a claim kept although its commit was not known to have failed",
        lambda: patched(
            (
                "isinstance(error, StoreError) and not isinstance(error, OutcomeUnknownError)",
                "isinstance(error, StoreError)",
            )
        ),
        _two(may=Left(faults=1)),
        "a run that never began leaves its claim",
    ),
    Planted(
        "an end that is not told",
        lambda: patched(("        yield from end_in_doubt(token)\n", "")),
        _two(ends=("returns", "unsure")),
        "does not say so in its claim",
    ),
    Planted(
        "an end that is told and not believed",
        lambda: patched(("    if claim.ended_at is not None:", "    if False:")),
        _two(ends=("returns", "unsure")),
        "told to wait for an owner that is gone",
    ),
    Planted(
        "an end that is told of another's claim",
        lambda: patched((" or record.claim.token != token:", ":")),
        _three(may=Left(ticks=1), ends=("returns", "unsure"), **_RERUN, **_ELSEWHERE),
        "runs again while the owner of 'r.' lives",
    ),
    Planted(
        "a group that is not looked into",
        lambda: patched(("pending.extend(each.exceptions)", "pass")),
        _two(ends=("returns", "loses a leg")),
        "a request ended with ExceptionGroup",
    ),
    Planted(
        "a group of which only the first level is looked at",
        lambda: patched(
            (
                "pending.extend(each.exceptions)",
                "pending.extend(x for x in each.exceptions if not isinstance(x, ExceptionGroup))",
            )
        ),
        _two(ends=("returns", "loses a leg")),
        "a request ended with ExceptionGroup",
    ),
    Planted(
        "doubt_on that is not looked at",
        lambda: patched(("if isinstance(each, named) and", "if False and")),
        _two(ends=("returns", "times out")),
        "a request ended with TimeoutError",
    ),
    Planted(
        "a rerun that declines and forgets the run before",
        lambda: patched(("before = entry.found if reran else None", "before = None")),
        Scenario(
            (Caller("A", 0), Caller("A", 1), Caller("B", 2)),
            may=Left(crashes=1),
            ends=("returns", "declines"),
            wait=0,
            **_RERUN,
        ),
        "runs for other params than the run of 'r.' had",
    ),
    Planted(
        "a ledger that does not know yet and is taken for one that denies",
        lambda: patched(("if verdict is NOT_APPLIED:", "if not isinstance(verdict, Applied):")),
        _two(may=Left(crashes=1, unknowns=1), **_RECONCILE),
        "the policy does not allow it",
    ),
    Planted(
        "doubt about a key that was answered meanwhile",
        lambda: patched(("if seen != found:  # its owner", "if False:  # its owner")),
        _two(may=Left(crashes=1)),
        "in doubt that was not",
    ),
    Planted(
        "a lookup that takes a key in doubt for free",
        lambda: patched(("(policy, on_in_doubt=InDoubtPolicy.RAISE)", "(policy)")),
        Scenario((Caller("A", 0), Caller("A", 1, "lookup")), may=Left(crashes=1), **_RERUN),
        "a lookup knew nothing of a key in doubt",
    ),
    Planted(
        "patience without an end",
        lambda: patched(
            (
                "if delays is None or not (yield Wait(next(delays))):",
                "if (yield Wait(next(delays))) is None:",
            )
        ),
        _two(),
        "waits longer than its wait_timeout",
    ),
    Planted(
        "a loop that looks again and never decides",
        lambda: patched(
            (
                "            if delays is None or not (yield",
                """            found, now = yield READ
            continue
            if delays is None or not (yield""",
            )
        ),
        _two(),
        "goes round in circles|does not come to an end",
    ),
    Planted(
        "a transaction that does not look again",
        lambda: patched(
            (
                """    if found != entry.found:
        return Free(found, now)
    record = _record_of(request, now, policy)""",
                "    record = _record_of(request, now, policy)",
            )
        ),
        Scenario((Caller("A", 0, "transact"), Caller("A", 1, "transact"))),
        "runs again although 'r.' is the answer",
    ),
    Planted(
        "without a claim, a loser who answers for itself",
        lambda: patched(
            (
                """        if found == step.expected:
            return None
        try:""",
                """        if True:
            return None
        try:""",
            )
        ),
        _two(lease=None),
        "never stored",
    ),
    Planted(
        "without a claim, an answer that does not compare",
        lambda: unconditional(_event("completed")),
        _two(lease=None),
        "the acknowledged answer 'r.' is lost",
    ),
    Planted(
        "a final failure that does not compare",
        lambda: unconditional(_event("failed")),
        _two(may=Left(ticks=1), ends=("returns", "fails"), ttl=2, **_RERUN, **_ELSEWHERE),
        "the failure 'r.' is stored over another's claim|the acknowledged answer 'r.' is lost",
    ),
    Planted(
        "a final failure that is told, and leaves a free key",
        lambda: patched(("if is_final(end.error, policy) and not reran:", "if False:")),
        _two(ends=("returns", "fails")),
        "an answer was given that was never stored",
    ),
    Planted(
        "a final failure that settles the run before it",
        lambda: patched(
            (
                "is_final(end.error, policy) and not reran",
                "is_final(end.error, policy)",
            )
        ),
        _two(may=Left(crashes=1), ends=("returns", "fails"), **_RERUN),
        "the failure 'r.' settles the run before it",
    ),
    Planted(
        "a transaction's final failure that settles the run before it",
        lambda: patched((" or _is_rerun(entry, policy):", ":")),
        Scenario(
            (Caller("A", 0), Caller("A", 1, "transact")),
            may=Left(crashes=1),
            ends=("returns", "fails"),
            **_RERUN,
        ),
        "the failure 'r.' settles the run before it",
    ),
    Planted(
        "a final failure that is replayed as an answer",
        lambda: patched(("if record.load_failure() is not None:", "if False:")),
        _two(ends=("returns", "fails")),
        "an answer was given that was never stored",
    ),
    Planted(
        "an answer that is not kept, and leaves its claim",
        lambda: patched(
            ("            yield from _replace_claim(held, step, end.response.response)\n", "")
        ),
        _two(ends=("returns", "keeps nothing")),
        "an answer that is not kept leaves its claim",
    ),
    Planted(
        "an answer that is not kept, and forgets the run before",
        lambda: patched(
            (
                "step = CheckAndPut(held.data, before, event=left)",
                "step = CheckAndPut(held.data, None)",
            )
        ),
        Scenario(
            (Caller("A", 0), Caller("A", 1), Caller("B", 2)),
            may=Left(crashes=1),
            ends=("returns", "keeps nothing"),
            wait=0,
            **_RERUN,
        ),
        "runs for other params than the run of 'r.' had",
    ),
    Planted(
        "an answer that is not to be kept, and is stored",
        lambda: patched(
            (
                "        if isinstance(end.response, NotStored):\n            left",
                """        if isinstance(end.response, NotStored):
            end.response = end.response.response
        if False:
            left""",
            )
        ),
        _two(ends=("returns", "keeps nothing")),
        "an answer that is not to be kept is stored",
    ),
    Planted(
        "a rerun of what has expired that answers it",
        lambda: patched(
            (
                "        if is_absent or on_expired is ExpiredPolicy.RERUN:",
                """        if on_expired is ExpiredPolicy.RERUN and record.response is not None:
            return Decision.REPLAY
        if is_absent or on_expired is ExpiredPolicy.RERUN:""",
            )
        ),
        _two(may=Left(ticks=1), on_expired=ExpiredPolicy.RERUN),
        "from an expired record",
    ),
    Planted(
        "a rerun of what has expired that does not compare",
        lambda: unconditional(lambda step: _is_claim(step.value) and _is_answer(step.expected)),
        _three(may=Left(ticks=1), on_expired=ExpiredPolicy.RERUN),
        "runs again while the owner of 'r.' lives|the acknowledged answer 'r.' is lost",
    ),
    Planted(
        "an operator who forgets a claim",
        lambda: patched(
            (
                """        if record.claim is not None:
            if (yield from _is_running""",
                """        if False:
            if (yield from _is_running""",
            )
        ),
        Scenario((Caller("A", 0), Caller("A", 1, "forget"))),
        "to forget an answer removes a claim",
    ),
    Planted(
        "an operator who forgets without comparing",
        lambda: unconditional(_event("forgotten")),
        Scenario(
            (Caller("A", 0), Caller("A", 1), Caller("A", 2, "forget")),
            may=Left(ticks=1),
            on_expired=ExpiredPolicy.RERUN,
        ),
        "to forget an answer removes a claim",
    ),
    Planted(
        "an operator who forgets whatever answer is there",
        lambda: patched(("if seen is not None and record != seen:", "if False:")),
        Scenario(
            (Caller("A", 0), Caller("A", 1), Caller("A", 2, "forget seen")),
            may=Left(ticks=1),
            on_expired=ExpiredPolicy.RERUN,
        ),
        "another record than the one that was seen is forgotten",
    ),
    Planted(
        "an operator who takes a key for in doubt that was answered meanwhile",
        lambda: patched(("if there != found:  # its owner", "if False:  # its owner")),
        Scenario((Caller("A", 0), Caller("A", 1, "forget")), may=Left(crashes=1)),
        "in doubt that was not",
    ),
    Planted(
        "a joined run that does not look again under its placeholder",
        lambda: patched(
            (
                """    if found != entry.found:
        return Free(found, now)
    end, now = yield Call(None)
    reran""",
                """    end, now = yield Call(None)
    reran""",
            )
        ),
        _JOINED,
        "runs again although 'r.' is the answer",
    ),
    Planted(
        "a joined placeholder that does not compare",
        lambda: unconditional(lambda step: step.event is None and _is_claim(step.value)),
        _JOINED,
        "runs again although 'r.' is the answer|the acknowledged answer 'r.' is lost",
    ),
    Planted(
        "a joined run that puts no answer in its placeholder's place",
        lambda: patched(
            (
                """placeholder, policy, UNDONE)
    yield from _replace_placeholder(step)
""",
                """placeholder, policy, UNDONE)
""",
            )
        ),
        _JOINED,
        "a placeholder is committed",
    ),
    Planted(
        "a joined final failure that undoes nothing",
        lambda: patched(("        yield UNDO\n", "")),
        attrs.evolve(_JOINED, **_FAILS),
        "a Probe in a transaction that holds others off",
    ),
    Planted(
        "a joined final failure that keeps what its handler has written",
        lambda: patched(
            (
                """        yield UNDO
        step = failure_of(record, end.error, now, entry.found, request, policy)
""",
                """        step = failure_of(record, end.error, now, placeholder, request, policy)
""",
            )
        ),
        attrs.evolve(_JOINED, **_FAILS),
        "a failure is committed with what its handler has written",
    ),
    Planted(
        "a joined final failure that counts although another owner was faster",
        lambda: patched(
            ("return end if found == step.expected else Free(found, now)", "return end")
        ),
        attrs.evolve(_JOINED, **_FAILS),
        "an answer was given that was never stored",
    ),
    Planted(
        "a joined final failure that settles the run before it",
        lambda: patched(
            ("not is_final(end.error, policy) or reran", "not is_final(end.error, policy)")
        ),
        Scenario(
            (Caller("A", 0), Caller("A", 1, "joined")), may=Left(crashes=1), **_FAILS, **_RERUN
        ),
        "the failure 'r.' settles the run before it",
    ),
    Planted(
        "a joined answer that is not kept, and forgets the run before",
        lambda: patched(
            (
                "CheckAndPut(placeholder, entry.found if reran else None)",
                "CheckAndPut(placeholder, None)",
            )
        ),
        Scenario(
            (Caller("A", 0), Caller("A", 1, "joined"), Caller("B", 2)),
            may=Left(crashes=1),
            ends=("returns", "keeps nothing"),
            wait=0,
            **_RERUN,
        ),
        "runs for other params than the run of 'r.' had",
    ),
    Planted(
        "without a claim, although a lease is set",
        lambda: patched(("if policy.lease is None else _run_claimed", "if True else _run_claimed")),
        _two(),
        "runs again while the owner of 'r.' lives",
    ),
]
