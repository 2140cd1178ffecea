"""A process of ``support.history_process`` in a cluster's network, with either face of the store."""

from __future__ import annotations

from typing import Any

from kvreplay import open_store
from kvreplay.testing.blocking import Blocking
from support import history_process
from support.broken_etcd import BROKEN
from support.networks import enter


def main(told: dict[str, Any]) -> None:
    enter(told["network"])
    if told["broken_engine"]:
        BROKEN[told["broken_engine"]]()
    opened: list[Any] = []  # a store that nobody has is closed

    def opens(url: str) -> Any:
        store: Any = open_store(url)
        opened.append(store)
        return Blocking(lambda: store.awaited) if told["face"] == "awaited" else store

    history_process.main(told, opens)
