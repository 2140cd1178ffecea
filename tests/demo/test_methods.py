"""The methods, on a store of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest

from kvreplay import (
    CorruptStoreError,
    OutcomeUnknownError,
    StoreError,
    StoreUnavailableError,
    load_config,
)
from kvreplay.backends.memory import MemoryStore
from kvreplay.demo.invoice import NodeKey, read_invoice
from kvreplay.demo.orders import Ledger, Orders
from kvreplay.demo.rpc import RpcError
from kvreplay.demo.stage import REQUEST
from support.demo_node import CONFIG, GOOD, HASH, NODE_ID, write_config


def orders_on(store: Any, more: str = "", tmp_path: Path | None = None) -> Orders:
    environ = {"KVREPLAY_STORE": "memory:"}
    file = None
    if tmp_path is not None:
        file = tmp_path / "node.toml"
        file.write_text(CONFIG.format(url="memory:", more=more))
    config = load_config(file, environ=environ)
    return Orders(store, config, NodeKey.from_seed("a seed"))


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return orders_on(MemoryStore(), tmp_path=tmp_path)


def ask(orders: Orders, **changed: object) -> Any:
    return orders.methods[REQUEST]({**GOOD, **changed})


def refusal(orders: Orders, **changed: object) -> tuple[int, str, object]:
    with pytest.raises(RpcError) as caught:
        ask(orders, **changed)
    return caught.value.code, caught.value.message, caught.value.data


def status(orders: Orders) -> Any:
    return orders.methods["node.status"]({})


def test_a_retry_gets_the_same_and_other_params_are_stale(orders: Orders) -> None:
    first = ask(orders)
    stale = (1105, "stale_flow", {"reason": "params_mismatch"})
    for field in GOOD:
        if field in ("lsp_node_id", "claim_session_id"):
            continue
        other = {"hash_index": "43", "asset_id": "other"}.get(field) or (
            GOOD[field] + 1 if isinstance(GOOD[field], int) else "00" * 32
        )
        assert refusal(orders, **{field: other}) == stale
    assert ask(orders, hash_index="0042", payment_hash=HASH.upper()) == first
    assert status(orders) == {"invoices": 1, "made": 1, "records": {"completed": 1}}


def test_another_session_gets_no_invoice_for_a_used_payment_hash(orders: Orders) -> None:
    first = ask(orders)
    used = (1108, "payment_hash_used", {"field": "payment_hash"})
    assert refusal(orders, claim_session_id="another") == used
    assert refusal(orders, lsp_node_id="another") == used
    assert status(orders) == {"invoices": 1, "made": 1, "records": {"completed": 1}}
    assert ask(orders) == first  # and its own session still gets it
    other = ask(orders, claim_session_id="another", payment_hash="cd" * 32)
    assert other["bolt11"] != first["bolt11"]


def test_after_expiry_a_used_payment_hash_is_not_invoiced_again(tmp_path: Path) -> None:
    store = MemoryStore()
    orders = orders_on(store, tmp_path=tmp_path)
    orders.replay = type(orders.replay)(store, "request_invoice", ttl=0)
    first = ask(orders)
    assert refusal(orders) == (1105, "stale_flow", {"reason": "expired"})
    assert refusal(orders) == (1108, "payment_hash_used", {"field": "payment_hash"})
    assert orders.methods["node.invoice"]({"payment_hash": HASH}) == first
    assert status(orders) == {"invoices": 1, "made": 1, "records": {}}


class Unsure(MemoryStore):
    """Its first commit to the ledger ends with an unknown outcome."""

    def __init__(self, *, happens: bool) -> None:
        super().__init__()
        self._happens = happens
        self._sure = False

    def check_and_put(self, primary_namespace: str, *address: str, **change: Any) -> bytes | None:
        if primary_namespace == Ledger.NAMESPACE and not self._sure:
            self._sure = True
            if self._happens:
                super().check_and_put(primary_namespace, *address, **change)
            raise OutcomeUnknownError("the commit may or may not have happened")
        return super().check_and_put(primary_namespace, *address, **change)


@pytest.mark.parametrize("happens", [True, False])
def test_an_unknown_outcome_of_the_ledger_is_in_doubt_until_the_ledger_tells(
    happens: bool, tmp_path: Path
) -> None:
    orders = orders_on(Unsure(happens=happens), tmp_path=tmp_path)
    assert refusal(orders) == (1107, "in_doubt", {"retry_after": 1.0})
    assert status(orders)["records"] == {"in_progress": 1}
    answer = ask(orders)
    assert read_invoice(answer["bolt11"]).payment_hash == HASH
    assert status(orders) == {
        "invoices": 1,
        "made": 1 if happens else 2,  # one that nobody has seen was lost
        "records": {"completed": 1},
    }
    assert ask(orders) == answer


class Late(MemoryStore):
    """Its first write to the ledger is lost, and happens just before the second one."""

    def __init__(self, **changed: object) -> None:
        super().__init__()
        self._changed = changed
        self._late: Any = None

    def check_and_put(self, primary_namespace: str, *address: str, **change: Any) -> bytes | None:
        if primary_namespace == Ledger.NAMESPACE:
            if self._late is None:
                self._late = (primary_namespace, *address), change
                raise OutcomeUnknownError("it may happen a little later")
            late_address, late = self._late
            entry = {**msgpack.unpackb(late["value"]), **self._changed}
            super().check_and_put(*late_address, **{**late, "value": msgpack.packb(entry)})
        return super().check_and_put(primary_namespace, *address, **change)


def test_a_write_to_the_ledger_that_comes_late_is_the_answer(tmp_path: Path) -> None:
    orders = orders_on(Late(), tmp_path=tmp_path)
    assert refusal(orders)[0] == 1107
    answer = ask(orders)
    assert orders.methods["node.invoice"]({"payment_hash": HASH}) == answer
    assert status(orders) == {"invoices": 1, "made": 2, "records": {"completed": 1}}
    assert ask(orders) == answer


def test_a_late_write_of_another_session_is_not(tmp_path: Path) -> None:
    orders = orders_on(Late(claim_session_id="another"), tmp_path=tmp_path)
    assert refusal(orders)[0] == 1107
    assert refusal(orders) == (1108, "payment_hash_used", {"field": "payment_hash"})


class Unavailable(MemoryStore):
    """The ledger cannot be written to while it is broken."""

    broken: StoreError | None = StoreUnavailableError("busy")

    def check_and_put(self, primary_namespace: str, *address: str, **change: Any) -> bytes | None:
        if primary_namespace == Ledger.NAMESPACE and self.broken is not None:
            raise self.broken
        return super().check_and_put(primary_namespace, *address, **change)


def test_a_failing_store_is_an_internal_error_and_a_retry_runs_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Unavailable()
    orders = orders_on(store, tmp_path=tmp_path)
    assert refusal(orders) == (-32603, "internal error", {"reason": "store_unavailable"})
    store.broken = CorruptStoreError("damaged")
    assert refusal(orders) == (-32603, "internal error", {"reason": "store"})
    assert HASH not in caplog.text
    assert status(orders)["records"] == {}
    store.broken = None
    assert ask(orders)["payment_hash"] == HASH


def test_a_damaged_record_is_an_internal_error(tmp_path: Path) -> None:
    store = MemoryStore()
    orders = orders_on(store, tmp_path=tmp_path)
    store.write("request_invoice", NODE_ID, "session", b"damaged")
    assert refusal(orders) == (-32603, "internal error", {"reason": "replay"})
    assert ask(orders, claim_session_id="another")["payment_hash"] == HASH


def test_a_claim_that_was_lost_is_in_flight_elsewhere(tmp_path: Path) -> None:
    store = MemoryStore()
    config = load_config(write_config(tmp_path), environ={})

    def lose() -> None:
        store.remove("request_invoice", NODE_ID, "session")

    orders = Orders(store, config, NodeKey.from_seed("a seed"), written=lose)
    assert refusal(orders) == (1106, "in_flight", {"retry_after": 1.0})


def test_a_ledger_entry_of_another_session_settles_nothing(tmp_path: Path) -> None:
    """In doubt, and meanwhile another session has used the payment hash: refused, not adopted."""
    store = Unsure(happens=False)
    orders = orders_on(store, tmp_path=tmp_path)
    assert refusal(orders)[0] == 1107
    ask(orders, claim_session_id="another")
    assert refusal(orders) == (1108, "payment_hash_used", {"field": "payment_hash"})
    assert status(orders)["records"] == {"completed": 1}
