"""The audit finds what is wrong: each planted answer is one that a service must never give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
import pytest

from support.bank import Transfer
from support.http_servers import Response
from support.payment_audit import Kill, Observation, Payment, complaints

PAYMENT = Payment("alice", "key", "pays:carol", 5)
PAID = Transfer("t-1", "downstream", "pays:carol", 5, at=1.5)
PROBLEM = "application/problem+json"


def answered(status: int = 201, transfer: str = "t-1", *, replayed: bool = False) -> Response:
    headers = [("Content-Type", "application/json")]
    marker = [("Idempotent-Replayed", "true")] if replayed else []
    return Response(status, headers + marker, json.dumps({"transfer": transfer}).encode())


def problem(status: int, slug: str, *headers: tuple[str, str]) -> Response:
    body = json.dumps({"type": f"/idempotency#{slug}", "status": status}).encode()
    return Response(status, [("Content-Type", PROBLEM), *headers], body)


def state(told: str, **more: Any) -> Response:
    body = json.dumps({"state": told, **more}).encode()
    return Response(200, [("Content-Type", "application/json")], body)


FIRST, AGAIN = answered(), answered(replayed=True)
RUNNING = problem(409, "running", ("Retry-After", "1"))
IN_DOUBT = problem(409, "in-doubt")
REUSED = problem(422, "key-reused")
KILLED = Kill(4711, at=1.7)


def seen(
    began: float, ended: float, response: Response | None, what: Any = "pay", **more: Any
) -> Observation:
    return Observation(PAYMENT, what, began, ended, response, **more)


@attrs.frozen
class History:
    """What was seen, what the bank has paid, and the worker that was killed, if one was."""

    seen: Sequence[Observation]
    paid: Sequence[Transfer] = (PAID,)
    kills: Sequence[Kill] = ()


RIGHT = {
    "answered, and replayed": History([seen(1, 2, FIRST), seen(3, 4, AGAIN)]),
    "a duplicate": History([seen(1, 2, FIRST), seen(1.1, 1.2, RUNNING)]),
    "another body": History([seen(1, 2, FIRST), seen(3, 4, REUSED, "another body")]),
    "killed after the effect": History([seen(1, 2, None), seen(3, 4, IN_DOUBT)], kills=[KILLED]),
    "killed before the effect": History(
        [seen(1, 2, None), seen(3, 4, IN_DOUBT)], paid=[], kills=[KILLED]
    ),
    "killed before the claim": History([seen(1, 2, None), seen(3, 4, FIRST)], kills=[KILLED]),
    "left": History([seen(1, 1.1, None, left=True), seen(2, 3, RUNNING), seen(4, 5, AGAIN)]),
    "states": History(
        [
            seen(0.5, 0.6, problem(404, "unknown-key"), "state"),
            seen(1, 2, FIRST),
            seen(1.1, 1.2, state("running"), "state"),
            seen(3, 4, state("answered", status=201), "state"),
        ]
    ),
}
WRONG = {
    "paid 2 times": History(
        [seen(1, 2, None), seen(3, 4, FIRST)], paid=[PAID, PAID], kills=[KILLED]
    ),
    "the bank was given several keys": History(
        [seen(1, 2, FIRST)], paid=[PAID, attrs.evolve(PAID, key="another")]
    ),
    "paid another amount": History([seen(1, 2, FIRST)], paid=[attrs.evolve(PAID, amount=6)]),
    "paid, and nobody wanted it": History(
        [seen(1, 2, FIRST)], paid=[PAID, attrs.evolve(PAID, to="pays:mallory")]
    ),
    "two different answers": History(
        [seen(1, 2, FIRST), seen(3, 4, answered(transfer="t-2", replayed=True))]
    ),
    "answered twice for the first time": History([seen(1, 2, FIRST), seen(1, 2, FIRST)]),
    "201 does not name": History([seen(1, 2, FIRST)], paid=[]),
    "answered 402": History([seen(1, 2, answered(402))]),
    "it was answered, and then got 409 in-doubt": History(
        [seen(1, 2, FIRST), seen(3, 4, IN_DOUBT)]
    ),
    "it was answered, and then got 201": History([seen(1, 2, FIRST), seen(3, 4, FIRST)]),
    "it was in doubt, and then got 201": History(
        [seen(1, 2, None), seen(3, 4, IN_DOUBT), seen(5, 6, FIRST)], kills=[KILLED]
    ),
    "running, and nobody had asked": History(
        [seen(1, 2, None), seen(3, 4, RUNNING)], kills=[KILLED]
    ),
    "running, without a Retry-After": History(
        [seen(1, 2, FIRST), seen(1.1, 1.2, problem(409, "running"))]
    ),
    "in doubt, though no run of it ended badly": History([seen(1, 2, IN_DOUBT)]),
    "in doubt, with a Retry-After": History(
        [seen(1, 2, None), seen(3, 4, problem(409, "in-doubt", ("Retry-After", "1")))],
        kills=[KILLED],
    ),
    "a connection broke, and no worker was killed": History(
        [seen(3, 4, None)], paid=[], kills=[KILLED]
    ),
    "another body got 201": History([seen(1, 2, FIRST), seen(3, 4, AGAIN, "another body")]),
    "an unexpected 500": History([seen(1, 2, answered(500))]),
    "an unexpected 503 unavailable": History([seen(1, 2, problem(503, "unavailable"))], paid=[]),
    "answered or in doubt, and its key was unknown": History(
        [seen(1, 2, FIRST), seen(3, 4, problem(404, "unknown-key"), "state")]
    ),
    "in doubt, and its state was running": History(
        [seen(1, 2, None), seen(3, 4, IN_DOUBT), seen(5, 6, state("running"), "state")],
        kills=[KILLED],
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_no_complaint(name: str) -> None:
    history = RIGHT[name]
    assert complaints(history.seen, history.paid, history.kills) == []


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str) -> None:
    history = WRONG[name]
    found = complaints(history.seen, history.paid, history.kills)
    assert any(each.startswith(name) for each in found)
