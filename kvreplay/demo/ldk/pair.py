"""Alice and Bob: two LDK nodes, a channel between them, and what they keep in their stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from kvreplay import KeyNotFoundError, Outcome, Replay, open_store
from kvreplay.demo.ldk.process import LDKNodes
from kvreplay.ldk import TurnStore

__all__ = ["NAMES", "PUSH_MSAT", "SATOSHIS", "Pair"]

NAMES: Final = ("alice", "bob")
SATOSHIS: Final = 1_000_000
"""The channel's, which Alice pays for."""
PUSH_MSAT: Final = 400_000_000
"""What Bob has of them in the beginning."""

_RECEIVED: Final = ("ledger", "", "received_msat")
_INVOICES: Final = ("ledger", "invoices")


class Pair:
    """Two nodes on two stores of one engine, below a folder; a second pair goes on where it ended.

    A node that takes turns has two things beside LDK's own in its store, each in the commit of the
    turn that it belongs to: the invoices that were requested of it, and what it has been paid,
    counted once for each payment, however often LDK repeats the event.

    Args:
        program: the folder with the nodes' program; see :mod:`kvreplay.demo.ldk.program`.
        engine: a scheme that :func:`kvreplay.open_store` knows, or a URL for each node.
        turns: each turn of a node is one transaction; else each write is a commit of its own.
        nodes: starts the process.
        options: of the nodes' ``start``; see ``main.mjs``.
    """

    def __init__(
        self,
        program: Path,
        folder: Path,
        engine: str | Mapping[str, str],
        *,
        turns: bool,
        nodes: Callable[..., LDKNodes] = LDKNodes,
        **options: Any,
    ) -> None:
        self._program = program
        self._turns = turns
        self._nodes = nodes
        self._options = options
        self.nodes: Any = None  # LDKNodes, as the caller's ``nodes`` makes them
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.stores: dict[str, Any] = {}
        for name in NAMES:
            if isinstance(engine, str):
                place = "memory:" if engine == "memory" else f"{engine}:{folder / name}"
            else:
                place = engine[name]
            self.stores[name] = open_store(place)
        self._used: dict[str, Any] = dict(self.stores)
        self._requests: dict[str, Replay] = {}
        self._counted: dict[str, Replay] = {}
        if turns:
            for name, store in self.stores.items():
                self._used[name] = used = TurnStore(store)
                self._requests[name] = Replay(used, "request_invoice", ttl=3600)
                self._counted[name] = Replay(used, "counted_events", ttl=86400)
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and close the stores."""
        if self.nodes is not None:
            self.nodes.close()
        for store in self.stores.values():
            store.close()

    def start(self) -> None:
        """Start the process, and both nodes from what is in their stores; connect them.

        A process that ran before is ended first.
        """
        if self.nodes is not None:
            self.nodes.close()
        self.nodes = self._nodes(self._program, self._used, on_event=self._told)
        self.loaded = {
            name: self.ask("start", node=name, turns=self._turns, **self._options)["loaded"]
            for name in NAMES
        }
        self.ask("connect", node="alice", peer="bob")

    def restart(self) -> None:
        """Kill the process, and start it again."""
        self.nodes.kill()
        self.start()

    def ask(self, command: str, **fields: Any) -> Any:
        """Let the nodes do something; see :meth:`LDKNodes.ask`."""
        return self.nodes.ask(command, **fields)

    # Channels and payments

    def open_channel(self) -> bool:
        """Open the channel, and say whether both can use it."""
        opened = self.ask("open_channel", node="alice", satoshis=SATOSHIS, push_msat=PUSH_MSAT)
        return bool(opened["usable"])

    def pay(self, sender: str, msat: int) -> str:
        """Let one pay the other; return what the sender knows then, ``sent`` if all is well."""
        [receiver] = set(NAMES) - {sender}
        invoice = {"msat": msat, "description": "a coffee", "expiry_seconds": 3600}
        return self.pay_invoice(sender, self.ask("invoice", node=receiver, **invoice))

    def pay_invoice(self, sender: str, bolt11: str) -> str:
        """Do as :meth:`pay`, for an invoice."""
        return str(self.ask("pay", node=sender, bolt11=bolt11)["ended"])

    def channels(self) -> dict[str, Any]:
        """Return each node's only channel; ``None`` if it has been closed."""
        described = self.ask("describe")
        return {name: next(iter(described[name]["channels"]), None) for name in NAMES}

    def is_force_closed(self) -> bool:
        """Whether the channel has been closed, which nobody here asks for."""
        closed = any(event["kind"] == "channel_closed" for _, event in self.events)
        return closed or None in self.channels().values()

    # What is in the commit of a turn beside LDK's own

    def request_invoice(self, name: str, session: tuple[str, str], msat: int) -> Outcome[Any]:
        """Answer ``async_order.request_invoice``: the same bolt11 for each retry, made once.

        The record of the answer, the ledger's entry and the channel manager are one commit.

        Args:
            session: the ``lsp_node_id`` and the ``claim_session_id``.

        Raises:
            StaleFlowError: the session was answered for other params, or its answer has expired.
        """
        params = {"msat": msat, "description": "an order", "expiry_seconds": 3600}

        def make(txn: Any) -> str:
            bolt11: str = self.ask("invoice_in_turn", node=name, **params)
            txn.write(*_INVOICES, session[1], bolt11.encode())
            return bolt11

        outcome = self._requests[name].execute_in_transaction(session, params, make)
        self.ask("left", node=name)
        return outcome

    def invoices(self, name: str) -> list[str]:
        """Return the sessions that a node has made an invoice for."""
        sessions: list[str] = self.stores[name].list(*_INVOICES)
        return sessions

    def received(self, name: str) -> int:
        """Return how many millisatoshis a node has counted."""
        return _count(self.stores[name])

    def _told(self, name: str, event: Mapping[str, Any]) -> None:
        self.events.append((name, event))
        if event["kind"] == "payment_claimed" and name in self._counted:
            self._counted[name].execute_in_transaction(
                ("payment_claimed", event["payment_hash"]),
                event["msat"],
                lambda txn: txn.write(*_RECEIVED, str(_count(txn) + event["msat"]).encode()),
            )


def _count(store: Any) -> int:
    try:
        return int(store.read(*_RECEIVED))
    except KeyNotFoundError:
        return 0
