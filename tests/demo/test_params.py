"""The parameters of a request: each wrong value is named, and its right twin is normalised."""

from __future__ import annotations

import pytest

from kvreplay.demo.params import InvalidFieldError, InvoiceRequest
from support.demo_node import GOOD, HASH, NODE_ID

# field, a value that is refused, its twin that is not, and what that becomes
VALUES: list[tuple[str, object, object, object]] = [
    ("lsp_node_id", 2, "2", "2"),
    ("lsp_node_id", "", "x", "x"),
    ("lsp_node_id", None, "An-LSP", "An-LSP"),
    ("lsp_node_id", "\ud800", "\U0001f680", "\U0001f680"),
    ("lsp_node_id", "x" * 257, NODE_ID.upper(), NODE_ID),
    ("claim_session_id", ["s"], "s", "s"),
    ("claim_session_id", "", "A", "A"),
    ("claim_session_id", "s" * 257, "s" * 256, "s" * 256),
    ("hash_index", 42, "42", "42"),
    ("hash_index", "", "0", "0"),
    ("hash_index", "-1", "0042", "42"),
    ("hash_index", "4.2", "000", "0"),
    ("hash_index", "42\n", "1", "1"),
    ("hash_index", "٤٢", "9", "9"),
    ("hash_index", "0x42", "042", "42"),
    ("hash_index", str(2**64), str(2**64 - 1), str(2**64 - 1)),
    ("hash_index", "9" * 5000, "0" * 255 + "9", "9"),
    ("payment_hash", "zz" * 32, HASH, HASH),
    ("payment_hash", "ab" * 31, HASH.upper(), HASH),
    ("payment_hash", HASH + "ab", "aB" * 32, HASH),
    ("payment_hash", f"{HASH}\n", HASH, HASH),
    ("payment_hash", f"0x{'ab' * 31}", HASH, HASH),
    ("payment_hash", 7, HASH, HASH),
    ("description_hash", "", HASH, HASH),
    ("description_hash", "g" * 64, "F" * 64, "f" * 64),
    ("amount_msat", True, 1, 1),
    ("amount_msat", 0, 1, 1),
    ("amount_msat", -1, 1000, 1000),
    ("amount_msat", 1.0, 2**40 + 1, 2**40 + 1),
    ("amount_msat", "3000", 3000, 3000),
    ("amount_msat", 10**14, 10**14 - 1, 10**14 - 1),
    ("amount_msat", None, 5, 5),
    ("asset_id", 1, "1", "1"),
    ("asset_id", "", "rgb:x", "rgb:x"),
    ("asset_amount", False, 1, 1),
    ("asset_amount", 2**64, 2**64 - 1, 2**64 - 1),
    ("invoice_expiry_sec", 0, 1, 1),
    ("invoice_expiry_sec", 367 * 86_400, 366 * 86_400, 366 * 86_400),
    ("min_final_cltv_expiry_delta", {}, 18, 18),
    ("min_final_cltv_expiry_delta", 65_536, 65_535, 65_535),
]


@pytest.mark.parametrize(("field", "wrong", "right", "normal"), VALUES)
def test_each_wrong_value_is_named_and_its_right_twin_normalised(
    field: str, wrong: object, right: object, normal: object
) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        InvoiceRequest.read({**GOOD, field: wrong})
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    if isinstance(wrong, str) and len(wrong) > 10:
        assert wrong not in str(caught.value)
    read = InvoiceRequest.read({**GOOD, field: right})
    assert getattr(read, field) == normal
    assert type(getattr(read, field)) is type(normal)


@pytest.mark.parametrize("field", GOOD)
def test_every_field_is_required(field: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        InvoiceRequest.read({name: GOOD[name] for name in GOOD if name != field})
    assert (caught.value.field, caught.value.problem) == (field, "it is missing")


def test_an_unknown_field_is_refused_and_shown_cut_short() -> None:
    with pytest.raises(InvalidFieldError) as caught:
        InvoiceRequest.read({**GOOD, "x" * 1000: 1})
    assert caught.value.field == "x" * 64
    assert InvoiceRequest.read(GOOD).params == GOOD


def test_a_request_shows_nothing_in_its_repr() -> None:
    request = InvoiceRequest.read(GOOD)
    assert HASH not in repr(request)
    assert request.key == (NODE_ID, "session")
