"""Real BOLT11 invoices for regtest: made, signed, and read back with the ``bolt11`` package."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Final

import attrs

from kvreplay import ConfigError
from kvreplay.demo.params import InvoiceRequest

try:
    import bolt11
    from bolt11.models.features import Feature, FeatureExtra, Features, FeatureState
    from bolt11.models.signature import Signature
    from bolt11.models.tags import Tag, TagChar, Tags
except ImportError as error:  # missing, or beside a bitstring that it cannot use
    raise ConfigError(
        f"the demo makes real invoices with the package bolt11, which cannot be imported ({error});"
        " nothing was started. Install it: pip install 'kvreplay[demo]'"
    ) from error

__all__ = ["Invoice", "NodeKey", "make_invoice", "read_invoice"]

CURRENCY: Final = "bcrt"

_FEATURES: Final[dict[Feature | FeatureExtra, FeatureState]] = {
    # What an invoice with a payment secret must say (BOLT 11, "Feature Bits").
    Feature.var_onion_optin: FeatureState.required,
    Feature.payment_secret: FeatureState.required,
    Feature.basic_mpp: FeatureState.supported,
}


@attrs.frozen(repr=False)
class NodeKey:
    """A node's key for regtest. Whoever knows the seed has the key: never use it for money."""

    secret: str

    @classmethod
    def from_seed(cls, seed: str) -> NodeKey:
        """Derive the key."""
        return cls(hashlib.sha256(b"kvreplay demo node key\0" + seed.encode()).hexdigest())

    @property
    def node_id(self) -> str:
        """The public key: 33 bytes in hex."""
        signed = Signature.from_private_key("ln", self.secret, b"whose key is it?")
        node_id: str = signed.recover_public_key()
        return node_id


@attrs.frozen
class Invoice:
    """What an invoice says."""

    currency: str
    node_id: str
    payment_hash: str
    amount_msat: int
    description_hash: str
    expiry_sec: int
    min_final_cltv_expiry_delta: int


def make_invoice(request: InvoiceRequest, key: NodeKey) -> str:
    """Make and sign a new invoice. No two are equal: each has its own payment secret."""
    tags = [
        Tag(TagChar.payment_hash, request.payment_hash),
        Tag(TagChar.payment_secret, secrets.token_hex(32)),
        Tag(TagChar.description_hash, request.description_hash),
        Tag(TagChar.expire_time, request.invoice_expiry_sec),
        Tag(TagChar.min_final_cltv_expiry, request.min_final_cltv_expiry_delta),
        Tag(TagChar.features, Features.from_feature_list(_FEATURES)),
    ]
    unsigned = bolt11.Bolt11(
        CURRENCY, int(time.time()), Tags(tags), bolt11.MilliSatoshi(request.amount_msat)
    )
    encoded: str = bolt11.encode(unsigned, key.secret, strict=True)
    return encoded


def read_invoice(encoded: str) -> Invoice:
    """Decode an invoice, and recover who signed it.

    Raises:
        ValueError: it is no invoice, or lacks a field that our invoices have.
    """
    try:
        read = bolt11.decode(encoded, strict=True)
        return Invoice(
            currency=read.currency,
            node_id=read.payee or "",
            payment_hash=read.payment_hash,
            amount_msat=int(read.amount_msat or 0),
            description_hash=read.description_hash or "",
            expiry_sec=read.expiry,
            min_final_cltv_expiry_delta=read.min_final_cltv_expiry,
        )
    except Exception as error:  # each layer of bolt11's decoder raises its own errors
        raise ValueError(f"no BOLT11 invoice ({type(error).__name__})") from error
