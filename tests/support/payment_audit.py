"""Whether the answers to payments were right: what clients saw, beside what the bank has paid.

A *payment* is what one caller wants once, under one key. Clients ask for it again and again, and note what they saw.
The rules here need no knowledge of which worker died when: they follow from the order in which the answers came.

* The bank has paid it once at most.
* It has one answer, given for the first time once at most; every other time it is a replay, byte for byte.
* ``201`` goes with its one transfer in the ledger; ``402`` goes with none.
* Once it is answered, or in doubt, it stays so: every later request says the same.
* It is in doubt only if a run of it ended badly: its worker died, or the bank closed the connection.
* It is running only while somebody else's request for it is under way.
* A connection breaks only because a worker was killed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import attrs

from support.bank import Transfer
from support.http_servers import Response

__all__ = ["Kill", "Observation", "Payment", "What", "complaints", "is_settled", "stands_in_doubt"]

What = Literal["pay", "another body", "state"]
"""What somebody asks of a payment."""

FINAL = (201, 402)
SLACK = (
    0.1  # seconds that a connection to a killed worker is still accepted after the kill was noted
)


@attrs.frozen
class Payment:
    """What a caller wants once. ``to`` names nobody else's payment, and how the bank behaves."""

    caller: str
    key: str
    to: str
    amount: int

    def behaviour(self) -> str:
        return self.to.partition(":")[0]


@attrs.frozen
class Observation:
    """What a client saw; times are those of ``time.monotonic()``.

    ``response`` is ``None`` if the connection broke, or if the client itself closed it
    (``left``) and its request went on.
    """

    payment: Payment
    what: What
    began: float
    ended: float
    response: Response | None
    left: bool = False

    def status(self) -> int | None:
        return None if self.response is None else self.response.status

    def problem(self) -> str | None:
        return None if self.response is None else self.response.problem


@attrs.frozen
class Kill:
    """A worker that was killed, just after ``at``."""

    worker: int
    at: float


def complaints(
    observations: Sequence[Observation], transfers: Sequence[Transfer], kills: Sequence[Kill]
) -> Sequence[str]:
    """Return what was wrong, each in a sentence; nothing, if all was right."""
    of_payment: Mapping[Payment, list[Observation]] = defaultdict(list)
    for each in sorted(observations, key=lambda each: each.began):
        of_payment[each.payment].append(each)
    paid: Mapping[str, list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        paid[transfer.to].append(transfer)
    found = [
        f"{complaint}: {payment}"
        for payment, seen in of_payment.items()
        for complaint in (
            *_ledger(payment, seen, paid[payment.to]),
            *_answers(payment, seen, paid[payment.to]),
            *(complaint for each in seen for complaint in _one(each, seen, kills)),
        )
    ]
    wanted = {payment.to for payment in of_payment}
    return [*found, *(f"paid, and nobody wanted it: {to}" for to in paid if to not in wanted)]


def _ledger(
    payment: Payment, seen: Sequence[Observation], paid: Sequence[Transfer]
) -> Iterator[str]:
    if len(paid) > 1:
        yield f"paid {len(paid)} times"
    if len({transfer.key for transfer in paid} | {None}) > 2:
        yield "the bank was given several keys"
    if any(transfer.amount != payment.amount for transfer in paid):
        yield "paid another amount"
    if any(transfer.key is None for transfer in paid):
        yield "the bank was given no key"
    if payment.behaviour() == "declines" and paid:
        yield "paid, though the bank declined"


def _answers(
    payment: Payment, seen: Sequence[Observation], paid: Sequence[Transfer]
) -> Iterator[str]:
    """What is wrong with its final answers, taken together."""
    answers = [each.response for each in seen if each.what == "pay" and each.status() in FINAL]
    given = [each for each in answers if each is not None]
    if len({(each.status, each.body, each.header("Content-Type")) for each in given}) > 1:
        yield "two different answers"
    if sum(not each.replayed for each in given) > 1:
        yield "answered twice for the first time"
    for each in given[:1]:
        declines = payment.behaviour() == "declines"
        if declines != (each.status == 402):
            yield f"answered {each.status}"
        if each.status == 201 and [transfer.id for transfer in paid] != [each.json["transfer"]]:
            yield "201 does not name the one transfer in the ledger"
    if sum(each.status() == 503 for each in seen) > 1:
        yield "the bank was away twice"


def _one(each: Observation, seen: Sequence[Observation], kills: Sequence[Kill]) -> Iterator[str]:
    """What is wrong with one observation, given those that had ended before it began."""
    before = [other for other in seen if other.ended < each.began]
    answer = next((other.response for other in before if _is_answer(other)), None)
    doubted = any(stands_in_doubt(other) for other in before)
    response = each.response
    if response is None:
        if not each.left and not any(each.began - SLACK <= kill.at <= each.ended for kill in kills):
            yield "a connection broke, and no worker was killed"
    elif each.what == "another body":
        if (response.status, response.problem) != (422, "key-reused"):
            yield f"another body got {_told(response)}"
    elif each.what == "state":
        yield from _state(each, response, answer, doubted, seen)
    elif answer is not None:
        if not (response.replayed and _same(response, answer)):
            yield f"it was answered, and then got {_told(response)}"
    elif doubted:
        if response.problem != "in-doubt":
            yield f"it was in doubt, and then got {_told(response)}"
    elif response.problem == "running":
        if not (response.header("Retry-After") or "").isdigit():
            yield "running, without a Retry-After"
        if not _may_run(each, seen):
            yield "running, and nobody had asked"
    elif response.problem == "in-doubt":
        if response.header("Retry-After") is not None:
            yield "in doubt, with a Retry-After, though nobody reconciles"
        if not _may_be_in_doubt(each, seen):
            yield "in doubt, though no run of it ended badly"
    elif response.problem is not None or response.status not in _possible(each.payment):
        yield f"an unexpected {_told(response)}"


def _possible(payment: Payment) -> Collection[int]:
    """The statuses of the application's own answers."""
    of_behaviour = {"declines": {402}, "is-away": {503, 201}, "drops": {500}}
    return of_behaviour.get(payment.behaviour(), {201})


def _state(
    each: Observation,
    response: Response,
    answer: Response | None,
    doubted: bool,
    seen: Sequence[Observation],
) -> Iterator[str]:
    """What is wrong with a state, as the layer tells it."""
    if response.status == 404 and response.problem == "unknown-key":
        if answer is not None or doubted:
            yield "answered or in doubt, and its key was unknown"
        return
    state = response.json.get("state") if response.status == 200 else None
    if answer is not None:
        if (state, response.json.get("status")) != ("answered", answer.status):
            yield f"answered, and its state was {state}"
    elif doubted:
        if state != "in doubt":
            yield f"in doubt, and its state was {state}"
    elif state == "running":
        if not _may_run(each, seen):
            yield "its state was running, and nobody had asked"
    elif state == "in doubt":
        if not _may_be_in_doubt(each, seen):
            yield "its state was in doubt, though no run of it ended badly"
    elif state != "answered":
        yield f"its state was told as {_told(response)}"


def _may_run(each: Observation, seen: Sequence[Observation]) -> bool:
    return any(
        other.what == "pay"
        and other is not each
        and other.began <= each.ended
        and (other.ended >= each.began or other.left)
        for other in seen
    )


def _may_be_in_doubt(each: Observation, seen: Sequence[Observation]) -> bool:
    """Say whether a run ended badly before: of somebody who saw no answer, or at a bank that drops."""
    return each.payment.behaviour() == "drops" or any(
        other.what == "pay" and other.response is None and other.began <= each.ended
        for other in seen
    )


def _is_answer(each: Observation) -> bool:
    return each.what == "pay" and each.status() in FINAL


def stands_in_doubt(each: Observation) -> bool:
    """Say whether a request for a payment was told that it is in doubt, or left it so."""
    return each.what == "pay" and (each.problem() == "in-doubt" or each.status() == 500)


def is_settled(each: Observation) -> bool:
    """Say whether every later request for this payment must say the same."""
    return _is_answer(each) or stands_in_doubt(each)


def _same(one: Response, other: Response) -> bool:
    return (one.status, one.body) == (other.status, other.body)


def _told(response: Response) -> str:
    return f"{response.status} {response.problem or ''}".strip()
