"""The story on one store, step by step: the sentence of each step, and the check that it is true.

The memory store forgets everything when its process ends. Its steps say so, and check it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from kvreplay.demo.client import ask_at_once
from kvreplay.demo.invoice import NodeKey, read_invoice
from kvreplay.demo.orders import STALE_FLOW
from kvreplay.demo.rpc import INVALID_PARAMS
from kvreplay.demo.stage import REQUEST, SEED, Stage, UntrueError, distinct, same

__all__ = ["Chapter", "Step"]

TIMES: Final = 64
TTL: Final = "300ms"


@attrs.frozen
class Step:
    """One sentence of the story, and its check, which raises if it is untrue.

    ``needs``: the sentence of an earlier step that must be true, or this one means nothing.
    """

    sentence: str
    check: Callable[[], None]
    needs: str | None


class Chapter:
    """The steps, on one stage.

    Args:
        forgets: the store's entries end with its process.
    """

    def __init__(self, stage: Stage, *, forgets: bool) -> None:
        self._stage = stage
        self._forgets = forgets
        # The first request and its answer; later steps use them again.
        self._order: dict[str, Any] = {}
        self._answer: dict[str, Any] = {}

    def steps(self) -> list[Step]:
        """Return the story in its order."""
        begin = "a node process starts, and answers"
        first = "first request: one invoice, signed, of that hash, amount, expiry"
        told = [
            Step(begin, self._start, None),
            Step(first, self._first, begin),
            Step("the same under another JSON-RPC id: the same bolt11", self._again, first),
            Step('the same in upper-case hex, "0042" for "42": the same', self._respelled, first),
            Step("another amount: error 1105 stale_flow, params_mismatch", self._mismatch, first),
            Step("unknown field, missing field, bad hex: -32602 naming it", self._bad_input, begin),
            Step(f"{TIMES} requests at once: one invoice", self._at_once, begin),
        ]
        killed = "SIGKILL, restart, retry"
        crashed = "SIGKILL between ledger and record, retry"
        two = f"two node processes, {TIMES} requests at once"
        if self._forgets:
            told += [
                Step(
                    f"{killed}: memory has forgotten, a second invoice",
                    self._forgotten,
                    first,
                ),
                Step(f"{crashed}: memory has forgotten both", self._crash_forgotten, begin),
                Step(f"{two}: one invoice of each", self._two_memories, begin),
            ]
        else:
            told += [
                Step(f"{killed}: the same bolt11", self._restart, first),
                Step(f"{crashed}: reconciled, same bolt11", self._crash, begin),
                Step(f"{two} on one store: one invoice", self._two_nodes, begin),
            ]
        told.append(
            Step(
                f"after a ttl of {TTL}: 1105 expired, record gone, ledger untouched",
                self._expiry,
                begin,
            )
        )
        return told

    def _start(self) -> None:
        nothing = {"invoices": 0, "made": 0, "completed": 0, "in_progress": 0}
        same(self._stage.counts(), nothing, "a new node's counts")

    def _first(self) -> None:
        order = self._stage.new_order()
        with self._stage.changes(invoices=1, made=1, completed=1):
            answer = self._stage.request(order)
        same(sorted(answer), ["bolt11", "payment_hash"], "the result's fields")
        same(answer["payment_hash"], order["payment_hash"], "the result's payment_hash")
        try:
            invoice = read_invoice(answer["bolt11"])
        except ValueError as error:
            raise UntrueError(str(error)) from error
        expected = {
            "currency": "bcrt",
            "node_id": NodeKey.from_seed(SEED).node_id,
            "payment_hash": order["payment_hash"],
            "amount_msat": order["amount_msat"],
            "description_hash": order["description_hash"],
            "expiry_sec": order["invoice_expiry_sec"],
            "min_final_cltv_expiry_delta": order["min_final_cltv_expiry_delta"],
        }
        same(attrs.asdict(invoice), expected, "the decoded invoice")
        same(self._stage.ledger(order), answer, "the ledger's invoice")
        self._order, self._answer = order, answer

    def _again(self) -> None:
        with self._stage.changes():
            same(self._stage.request(self._order), self._answer, "the retry's answer")

    def _respelled(self) -> None:
        hexes = ("lsp_node_id", "payment_hash", "description_hash")
        respelled = {
            **self._order,
            **{name: self._order[name].upper() for name in hexes},
            "hash_index": "00" + self._order["hash_index"],
        }
        with self._stage.changes():
            same(self._stage.request(respelled), self._answer, "the answer")

    def _mismatch(self) -> None:
        other = {**self._order, "amount_msat": self._order["amount_msat"] + 1}
        with self._stage.changes():
            error = self._stage.refusal(other, STALE_FLOW)
            same(error.message, "stale_flow", "the error's message")
            same(error.data, {"reason": "params_mismatch"}, "the error's data")
            same(self._stage.request(self._order), self._answer, "the first request's answer")

    def _bad_input(self) -> None:
        order = self._stage.new_order()
        wrong = {
            "tip_msat": {**order, "tip_msat": 1},
            "asset_id": {name: order[name] for name in order if name != "asset_id"},
            "payment_hash": {**order, "payment_hash": "zz" * 32},
            "description_hash": {**order, "description_hash": "ab" * 31},
        }
        with self._stage.changes():
            for field, params in wrong.items():
                error = self._stage.refusal(params, INVALID_PARAMS)
                same(error.data, {"field": field}, "the error's data")
                same(field in error.message, True, f'"{field}" in the error\'s message')

    def _at_once(self) -> None:
        [node] = self._stage.nodes
        with self._stage.changes(invoices=1, made=1, completed=1):
            answers = ask_at_once([node.port], REQUEST, self._stage.new_order(), TIMES)
            same(distinct(answers), 1, f"different invoices in {TIMES} answers")

    def _restart(self) -> None:
        before = self._stage.counts()
        self._stage.kill()
        same(self._stage.request(self._order), self._answer, "the answer after the restart")
        same(self._stage.counts(), {**before, "made": 0}, "the counts after the restart")

    def _forgotten(self) -> None:
        self._stage.kill()
        self._start()  # with nothing
        with self._stage.changes(invoices=1, made=1, completed=1):
            answer = self._stage.request(self._order)
        same(distinct([self._answer, answer]), 2, "different invoices")

    def _crash(self) -> None:
        order = self._stage.new_order()
        written = self._stage.crash_after_ledger(order)
        with self._stage.changes(completed=1, in_progress=-1):  # and none is made
            same(self._stage.request(order), written, "the answer after the restart")
        same(self._stage.ledger(order), written, "the ledger's invoice")

    def _crash_forgotten(self) -> None:
        order = self._stage.new_order()
        written = self._stage.crash_after_ledger(order)
        self._start()  # with nothing
        with self._stage.changes(invoices=1, made=1, completed=1):
            answer = self._stage.request(order)
        same(distinct([written, answer]), 2, "different invoices")

    def _two_nodes(self) -> None:
        self._stage.start()
        ports = [node.port for node in self._stage.nodes]
        with self._stage.changes(invoices=1, made=1, completed=1):
            answers = ask_at_once(ports, REQUEST, self._stage.new_order(), TIMES)
            same(distinct(answers), 1, f"different invoices in {TIMES} answers of two nodes")

    def _two_memories(self) -> None:
        self._stage.start()
        ports = [node.port for node in self._stage.nodes]
        with self._stage.changes(invoices=1, made=2, completed=1):  # as one node sees it
            answers = ask_at_once(ports, REQUEST, self._stage.new_order(), TIMES)
            same(distinct(answers), 2, f"different invoices in {TIMES} answers of two nodes")

    def _expiry(self) -> None:
        self._stage.kill()
        self._stage.start(environ={"KVREPLAY_REPLAY_REQUEST_INVOICE_TTL": TTL})
        order = self._stage.new_order()
        with self._stage.changes(invoices=1, made=1):  # and no record is left
            answer = self._stage.request(order)
            error = self._stage.ask_until_refused(order, answer)
        same(error.code, STALE_FLOW, "the error's code")
        same(error.data, {"reason": "expired"}, "the error's data")
        same(self._stage.ledger(order), answer, "the ledger's invoice")
