"""``async_order.request_invoice``: what a node does with kvreplay.

The handler makes an invoice and writes it into the payment ledger. kvreplay makes
sure that a retry gets that invoice again. If a crash has left a request in doubt, the reconciler
asks the ledger whether the invoice was made.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack

from kvreplay import (
    NOT_APPLIED,
    Applied,
    AtomicKVStore,
    ClaimLostError,
    Config,
    ExpiredError,
    IndeterminateError,
    InDoubtError,
    InFlightError,
    KeyNotFoundError,
    KVReplayError,
    NotApplied,
    OutcomeUnknownError,
    ParamsMismatchError,
    Replay,
    ReplayRecord,
    StoreError,
    StoreUnavailableError,
)
from kvreplay.demo.invoice import NodeKey, make_invoice
from kvreplay.demo.params import (
    InvalidFieldError,
    InvoiceRequest,
    check_fields,
    payment_hash_of,
)
from kvreplay.demo.rpc import INTERNAL_ERROR, INVALID_PARAMS, Method, RpcError

__all__ = ["IN_DOUBT", "IN_FLIGHT", "PAYMENT_HASH_USED", "STALE_FLOW", "Ledger", "Orders"]

STALE_FLOW: Final = 1105
IN_FLIGHT: Final = 1106
IN_DOUBT: Final = 1107
PAYMENT_HASH_USED: Final = 1108

_log: Final = logging.getLogger("kvreplay.demo")


class Ledger:
    """The invoices that others may pay to this node, in their own namespace and without expiry."""

    NAMESPACE: Final = "inbound_payments"

    def __init__(self, store: AtomicKVStore) -> None:
        self._store = store

    def find(self, payment_hash: str) -> dict[str, Any] | None:
        """Return the entry of a payment hash, or ``None``."""
        try:
            entry = self._store.read(self.NAMESPACE, "", payment_hash)
        except KeyNotFoundError:
            return None
        found: dict[str, Any] = msgpack.unpackb(entry)
        return found

    def add(self, request: InvoiceRequest, bolt11: str) -> bool:
        """Write an invoice down durably; ``False``: the payment hash has an invoice already."""
        entry = msgpack.packb({**request.params, "bolt11": bolt11})
        found = self._store.check_and_put(
            self.NAMESPACE, "", request.payment_hash, expected=None, value=entry
        )
        return found is None

    def count(self) -> int:
        """Return how many invoices there are."""
        return len(self._store.list(self.NAMESPACE, ""))


class Orders:
    """The node's methods, over one store.

    Args:
        written: the handler calls it when the invoice is in the ledger, but not yet in the
            replay record. This is the worst moment to crash.
    """

    REPLAYS: Final = "request_invoice"

    def __init__(
        self,
        store: AtomicKVStore,
        config: Config,
        key: NodeKey,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        settings = config.replay(self.REPLAYS, on_in_doubt=self._reconcile)
        self.replay = Replay(store, **settings)
        self.ledger = Ledger(store)
        self._key = key
        self._written = written
        self._made = 0
        self._lock = threading.Lock()  # guards _made

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by their JSON-RPC names; on purpose they raise only RpcError."""
        return {
            "async_order.request_invoice": _reporting(self.request_invoice),
            "node.invoice": _reporting(self.invoice),
            "node.status": _reporting(self.status),
        }

    def request_invoice(self, params: Mapping[str, Any]) -> object:
        """Return ``{payment_hash, bolt11}``: the same invoice for every retry of a request.

        Raises:
            InvalidFieldError: a parameter is unknown, missing or wrong; nothing ran.
            RpcError: 1105 stale_flow, 1106 in_flight, 1107 in_doubt, 1108 payment_hash_used.
        """
        request = InvoiceRequest.read(params)
        try:
            outcome = self.replay.execute(request.key, request.params, lambda: self._make(request))
        except ParamsMismatchError:
            raise RpcError(STALE_FLOW, "stale_flow", {"reason": "params_mismatch"}) from None
        except ExpiredError:
            raise RpcError(STALE_FLOW, "stale_flow", {"reason": "expired"}) from None
        except InFlightError as error:
            raise RpcError(IN_FLIGHT, "in_flight", {"retry_after": error.retry_after}) from None
        except ClaimLostError:  # the owner that took over has the answer
            raise RpcError(IN_FLIGHT, "in_flight", {"retry_after": 1.0}) from None
        except InDoubtError:
            raise RpcError(IN_DOUBT, "in_doubt", {"retry_after": 1.0}) from None
        return outcome.response

    def invoice(self, params: Mapping[str, Any]) -> object:
        """Return ``{payment_hash, bolt11}`` as the ledger has it, or null."""
        payment_hash = payment_hash_of(params)
        entry = self.ledger.find(payment_hash)
        return entry and _result(entry)

    def status(self, params: Mapping[str, Any]) -> object:
        """Count the ledger's invoices, those this process made, and replay records by state."""
        check_fields(params, ())
        states = Counter(record.state.name.lower() for record in self.replay.records())
        return {"invoices": self.ledger.count(), "made": self._made, "records": states}

    def _make(self, request: InvoiceRequest) -> dict[str, Any]:
        """The handler: its effect is the invoice in the ledger."""
        if self.ledger.find(request.payment_hash) is not None:
            raise _payment_hash_used()
        bolt11 = make_invoice(request, self._key)
        with self._lock:
            self._made += 1
        try:
            added = self.ledger.add(request, bolt11)
        except OutcomeUnknownError as error:
            raise IndeterminateError("the ledger may or may not have the invoice") from error
        if not added:  # another was faster; nobody has seen this invoice
            return self._made_earlier(request)
        self._written()
        return {"payment_hash": request.payment_hash, "bolt11": bolt11}

    def _made_earlier(self, request: InvoiceRequest) -> dict[str, Any]:
        """Return the invoice of an earlier run of this request.

        In a cluster a write whose answer was lost may come late: after the reconciler has looked.
        """
        entry = self.ledger.find(request.payment_hash)
        if entry is None or {**request.params, "bolt11": entry["bolt11"]} != entry:
            raise _payment_hash_used()
        return _result(entry)

    def _reconcile(self, record: ReplayRecord) -> Applied | NotApplied:
        """Tell from the ledger whether a request in doubt has made its invoice.

        The ledger is in the same store, so a process that has ended can write nothing to it any
        more, but in a cluster a write of its may come late: then ``_make`` finds it.
        """
        entry = self.ledger.find(record.load_params()["payment_hash"])
        if entry is None or _session(entry) != (record.key.scope, record.key.id):
            return NOT_APPLIED
        return Applied(_result(entry))


def _reporting(method: Method) -> Method:
    """Tell the client what went wrong, and no more than that."""

    @functools.wraps(method)
    def reporting(params: Mapping[str, Any]) -> object:
        try:
            return method(params)
        except InvalidFieldError as error:
            problem = f"invalid params: {error}"
            raise RpcError(INVALID_PARAMS, problem, {"field": error.field}) from None
        except KVReplayError as error:  # its message shows neither a payload nor a key
            _log.error("%s: %s", type(error).__name__, error)
            reason = "store" if isinstance(error, StoreError) else "replay"
            if isinstance(error, StoreUnavailableError):  # nothing happened: the client may retry
                reason = "store_unavailable"
            raise RpcError(INTERNAL_ERROR, "internal error", {"reason": reason}) from None

    return reporting


def _session(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["lsp_node_id"], entry["claim_session_id"]


def _result(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"payment_hash": entry["payment_hash"], "bolt11": entry["bolt11"]}


def _payment_hash_used() -> RpcError:
    return RpcError(PAYMENT_HASH_USED, "payment_hash_used", {"field": "payment_hash"})
