"""The requests that are made of a replay: their keys and params, and what they leave in a store."""

from __future__ import annotations

from typing import Any

import pytest

from kvreplay._protocol.keys import name
from support.replaying import Handler, Interrupt

__all__ = ["KEY", "NAMESPACE", "OTHER", "PARAMS", "abandon", "entry", "reopened"]

KEY = ("02lsp", "session-1")
PARAMS = {"amount_msat": 1000, "hash": b"\x01" * 32}
OTHER = {"amount_msat": 1001, "hash": b"\x01" * 32}
NAMESPACE = "request_invoice"


def entry(store: Any, key: tuple[str, str] = KEY) -> bytes | None:
    """The stored record of a key."""
    address = (NAMESPACE, name(key[0]), name(key[1]))
    return store.read(*address) if address[2] in store.list(*address[:2]) else None


def abandon(replay: Any, key: tuple[str, str] = KEY, params: Any = PARAMS) -> None:
    """Leave the key in doubt, as an interrupt of the handler does."""
    with pytest.raises(Interrupt):
        replay.execute(key, params, Handler(Interrupt()))


def reopened(engine: Any, store: Any) -> Any:
    """The store after a restart, as far as its entries outlive the process."""
    if engine.durable:
        store.close()
    return engine.open()
