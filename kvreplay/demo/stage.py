"""The means of the story: one store's config and nodes, requests, counts, comparisons."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from kvreplay.demo.client import NODE, Node
from kvreplay.demo.rpc import RpcError

__all__ = ["REQUEST", "SEED", "Stage", "UntrueError", "distinct", "same"]

REQUEST: Final = "async_order.request_invoice"
SEED: Final = "kvreplay demo"

_DEADLINE: Final = 30.0
_LSP: Final = "02" + hashlib.sha256(b"an LSP").hexdigest()

_CONFIG: Final = """\
[store]
{store}

[replay.request_invoice]
ttl = "1h"
lease = "3s"

[node]
host = "127.0.0.1"
port = 0
seed = "{seed}"
"""


class UntrueError(Exception):
    """A sentence of the story is not true; the message says what is true."""


class Stage:
    """One store's config file, the nodes that run on it, and the requests made.

    Args:
        store: the store's table in the config.
        directory: an empty directory for the config, the log and the store.
        command: the command that runs a node.
    """

    def __init__(
        self, store: Mapping[str, str], directory: Path, command: Sequence[str] = NODE
    ) -> None:
        lines = [f"{name} = {json.dumps(value)}" for name, value in store.items()]
        self._config = directory / "node.toml"
        self._config.touch(0o600)  # its URL may have a password
        self._config.write_text(_CONFIG.format(store="\n".join(lines), seed=SEED))
        self._log = directory / "node.log"
        self._command = command
        self._nodes: list[Node] = []
        self._sessions = 0

    def close(self) -> None:
        """End every node."""
        while self._nodes:
            self._nodes.pop().close()

    def last_words(self) -> str:
        """Return the end of the running nodes' log."""
        return self._nodes[-1].last_words() if self._nodes else ""

    @property
    def nodes(self) -> Sequence[Node]:
        """The running nodes. If the last one does not run, a new one is started first."""
        if not self._nodes or not self._nodes[-1].running:
            self.start()
        return tuple(self._nodes)

    def start(self, *options: str, environ: dict[str, str] | None = None) -> Node:
        """Start one more node."""
        node = Node(
            self._config, self._log, options=options, environ=environ, command=self._command
        )
        self._nodes.append(node)
        return node

    def kill(self) -> None:
        """Send SIGKILL to every node."""
        self.close()

    def new_order(self) -> dict[str, Any]:
        """Return the params of a session that nobody has used."""
        self._sessions += 1
        preimage = f"preimage {self._sessions}".encode()
        return {
            "lsp_node_id": _LSP,
            "claim_session_id": f"session-{self._sessions}",
            "hash_index": "42",
            "payment_hash": hashlib.sha256(preimage).hexdigest(),
            "amount_msat": 3_000_000,
            "asset_id": "rgb:2dkSTbr-jFhznbPmo-TQafzswCN-av4gTsJjX-ttx6CNou5-M98k8Zd",
            "asset_amount": 7,
            "description_hash": hashlib.sha256(b"seven assets").hexdigest(),
            "invoice_expiry_sec": 3600,
            "min_final_cltv_expiry_delta": 144,
        }

    def request(self, order: Mapping[str, Any]) -> Any:
        """Ask for an invoice."""
        return self.nodes[-1].call(REQUEST, order)

    def refusal(self, order: Mapping[str, Any], code: int) -> RpcError:
        """Ask for an invoice; an error with that code must come instead. Return that error."""
        try:
            self.request(order)
        except RpcError as error:
            same(error.code, code, "the error's code")
            return error
        raise UntrueError(f"the node gave an invoice instead of error {code}")

    def ask_until_refused(self, order: Mapping[str, Any], answer: Any) -> RpcError:
        """Repeat a request until it fails; return the error. Before, its answer must not change."""
        deadline = time.monotonic() + _DEADLINE
        while time.monotonic() < deadline:
            try:
                same(self.request(order), answer, "the answer before the ttl is over")
            except RpcError as error:
                return error
            time.sleep(0.02)
        raise UntrueError(f"{_DEADLINE} s later, the request is still answered")

    def crash_after_ledger(self, order: Mapping[str, Any]) -> Any:
        """Kill a node that has written the invoice down but not answered; return the invoice."""
        self.kill()
        node = self.start("--hold-after-ledger")
        answers: list[object] = []

        def ask() -> None:
            try:
                answers.append(node.call(REQUEST, order))
            except (OSError, http.client.HTTPException) as error:
                answers.append(error)
            node.lines.put("an answer")  # "holding" must come first

        asking = threading.Thread(target=ask)
        with self.changes(invoices=1, made=1, in_progress=1):
            asking.start()
            try:
                node.wait_for("holding")
            except BaseException:
                self.kill()  # this ends the thread that asks
                raise
        written = self.ledger(order)
        self.kill()
        asking.join(_DEADLINE)
        if written is None or not (answers and isinstance(answers[0], Exception)):
            raise UntrueError("the node was not killed between its ledger and its answer")
        return written

    def ledger(self, order: Mapping[str, Any]) -> Any:
        """Return the invoice that the ledger has for the order, or None."""
        return self.nodes[-1].call("node.invoice", {"payment_hash": order["payment_hash"]})

    def counts(self) -> dict[str, int]:
        """Count the invoices and the records that one node sees, and what all nodes have made."""
        statuses = [node.call("node.status", {}) for node in self.nodes]
        records = statuses[-1]["records"]
        return {
            "invoices": statuses[-1]["invoices"],
            "made": sum(status["made"] for status in statuses),
            "completed": records.get("completed", 0),
            "in_progress": records.get("in_progress", 0),
        }

    @contextmanager
    def changes(self, **expected: int) -> Iterator[None]:
        """Check that the block changes these counts by so much, and no others."""
        before = self.counts()
        yield
        after = self.counts()
        changed = {name: after[name] - before[name] for name in after}
        same(changed, dict.fromkeys(after, 0) | expected, "the change")


def same(found: object, expected: object, what: str) -> None:
    """Check that two things are equal.

    Raises:
        UntrueError: they are not.
    """
    if found != expected:
        raise UntrueError(f"{what}: {_short(found)}, and should be {_short(expected)}")


def distinct(answers: Sequence[Mapping[str, Any]]) -> int:
    """Count different invoices."""
    return len({answer["bolt11"] for answer in answers})


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_short(each)}" for name, each in value.items()) + "}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:18]}…{text[-18:]}"
