"""Invoices: what is asked for is what they say."""

from __future__ import annotations

import attrs
import pytest

from kvreplay.demo.invoice import NodeKey, make_invoice, read_invoice
from kvreplay.demo.params import InvoiceRequest
from support.demo_node import GOOD, HASH


@pytest.mark.parametrize("amount", [1, 999, 3_000_000, 10**11, 10**14 - 1])
def test_an_invoice_says_what_was_asked(amount: int) -> None:
    key = NodeKey.from_seed("a seed")
    request = InvoiceRequest.read({**GOOD, "amount_msat": amount})
    invoice = read_invoice(make_invoice(request, key))
    assert attrs.asdict(invoice) == {
        "currency": "bcrt",
        "node_id": key.node_id,
        "payment_hash": HASH,
        "amount_msat": amount,
        "description_hash": "ef" * 32,
        "expiry_sec": 3600,
        "min_final_cltv_expiry_delta": 144,
    }


def test_no_two_invoices_are_alike_and_another_seed_is_another_node() -> None:
    key, other = NodeKey.from_seed("a"), NodeKey.from_seed("b")
    request = InvoiceRequest.read(GOOD)
    assert make_invoice(request, key) != make_invoice(request, key)
    assert key.node_id == NodeKey.from_seed("a").node_id != other.node_id
    assert key.secret not in repr(key)


@pytest.mark.parametrize("text", ["", "lnbcrt1", "lnbcrt1qqqqqq", "bc1qw508d6qejxtdg4y5r3z"])
def test_what_is_no_invoice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no BOLT11 invoice"):
        read_invoice(text)
    whole = make_invoice(InvoiceRequest.read(GOOD), NodeKey.from_seed("a"))
    with pytest.raises(ValueError, match="no BOLT11 invoice"):
        read_invoice(whole[:-1])
