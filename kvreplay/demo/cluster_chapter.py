"""The story on an etcd cluster of its own, whose members are killed in the middle of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, Final

import attrs

from kvreplay.demo.chapter import Step
from kvreplay.demo.client import ask_until_answered
from kvreplay.demo.members import Members
from kvreplay.demo.orders import IN_DOUBT, IN_FLIGHT
from kvreplay.demo.rpc import INTERNAL_ERROR
from kvreplay.demo.stage import REQUEST, Stage, UntrueError, same

__all__ = ["ClusterChapter"]

_ORDERS: Final = 32
_KILLED_AFTER: Final = 8  # answers
_AGAIN: Final = (IN_FLIGHT, IN_DOUBT, INTERNAL_ERROR)
"""The errors after which a client asks again."""


class ClusterChapter:
    """The steps, with two nodes on one stage.

    Args:
        members: those that the stage's nodes ask.
    """

    def __init__(self, stage: Stage, members: Members) -> None:
        self._stage = stage
        self._members = members
        self._answers: list[tuple[Mapping[str, Any], Any]] = []  # each order, and its answer
        self._before: dict[str, int] = {}
        self._refused: dict[str, Any] = {}

    def steps(self, usual: Sequence[Step]) -> list[Step]:
        """Return the story in its order: the usual one on these members, and then its own.

        Args:
            usual: the steps of the story on any store.
        """
        begin = "three etcd members start, and have a leader"
        killed = f"SIGKILL of the leader amid {2 * _ORDERS} requests to two nodes: all answered"
        again = "each again, from both nodes: the same bolt11, one invoice each"
        second = "SIGKILL of a second member: StoreUnavailableError, nothing made"
        back = "both restart: all answers are there, the refused one is made"
        return [
            Step(begin, self._members.start, None),
            *(attrs.evolve(step, needs=step.needs or begin) for step in usual),
            Step(killed, self._kill_one, usual[0].sentence),
            Step(again, self._again, killed),
            Step(second, self._kill_two, again),
            Step(back, self._back, second),
        ]

    def _kill_one(self) -> None:
        self._stage.kill()
        self._members.let_first_lead()
        ports = [self._stage.start().port, self._stage.start().port]
        orders = [self._stage.new_order() for _ in range(_ORDERS)]
        before = self._stage.counts()
        with ThreadPoolExecutor(len(ports) * len(orders)) as threads:
            asked = [
                [threads.submit(ask_until_answered, port, REQUEST, order, _AGAIN) for port in ports]
                for order in orders
            ]
            self._kill_amid([each for pair in asked for each in pair])
        for order, pair in zip(orders, asked, strict=True):
            one, other = (each.result() for each in pair)
            same(other, one, "the answer of the other node")
            self._answers.append((order, one))
        same(self._more(before), {"invoices": _ORDERS, "completed": _ORDERS}, "the change")

    def _kill_amid(self, asked: Sequence[Future[Any]]) -> None:
        """Kill the first member when some are answered and others are not."""
        for answered, _ in enumerate(as_completed(asked), 1):
            if answered == _KILLED_AFTER:
                running = sum(not each.done() for each in asked)
                self._members.kill(0)
                same(running > 0, True, "whether requests ran when the member was killed")
                return

    def _again(self) -> None:
        with self._stage.changes():
            self._check_answers()

    def _check_answers(self) -> None:
        for order, answer in self._answers:
            for node in self._stage.nodes:
                same(node.call(REQUEST, order), answer, "the retry's answer")
            same(self._stage.ledger(order), answer, "the ledger's invoice")

    def _kill_two(self) -> None:
        self._before = self._stage.counts()
        self._refused = self._stage.new_order()
        self._members.kill(1)
        error = self._stage.refusal(self._refused, INTERNAL_ERROR)
        same(error.data, {"reason": "store_unavailable"}, "the error's data")
        if "StoreUnavailableError: " not in (words := self._stage.last_words()):
            raise UntrueError(f"no StoreUnavailableError in the node's log{words}")

    def _back(self) -> None:
        self._members.start()
        same(self._stage.counts(), self._before, "the counts after both restarts")
        self._check_answers()
        with self._stage.changes(invoices=1, made=1, completed=1):
            self._stage.request(self._refused)

    def _more(self, before: Mapping[str, int]) -> dict[str, int]:
        """Return by how much counts have grown, but for how many invoices were signed.

        Who does not hear whether the ledger has its invoice asks the ledger; if it is not there,
        another one is signed.
        """
        after = self._stage.counts()
        grown = {name: after[name] - before[name] for name in after if name != "made"}
        return {name: number for name, number in grown.items() if number}
