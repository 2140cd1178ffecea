"""What the tests ask of the demo's node, and the config that it is started with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["CONFIG", "GOOD", "HASH", "NODE_ID", "write_config"]

HASH = "ab" * 32
NODE_ID = "02" + "cd" * 32
GOOD: Mapping[str, Any] = {
    "lsp_node_id": NODE_ID,
    "claim_session_id": "session",
    "hash_index": "42",
    "payment_hash": HASH,
    "amount_msat": 3_000_000,
    "asset_id": "rgb:asset",
    "asset_amount": 7,
    "description_hash": "ef" * 32,
    "invoice_expiry_sec": 3600,
    "min_final_cltv_expiry_delta": 144,
}
CONFIG = '[store]\nurl = "{url}"\n\n[replay.request_invoice]\nttl = "1h"\n{more}\n'


def write_config(directory: Path, url: str = "memory:", more: str = "") -> Path:
    config = directory / "node.toml"
    config.write_text(CONFIG.format(url=url, more=more))
    return config
