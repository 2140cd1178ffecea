"""A process of ``support.history_process`` in a cluster's network, with either face of the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvreplay import open_store
from kvreplay.backends.etcd import operations
from kvreplay.testing.blocking import Blocking
from support import history_process
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


def reads_from_one_member() -> None:
    """It believes what a member has, though others may have decided something else."""
    one = operations.one
    operations.one = lambda key: one(key)[:-1] + b',"serializable":true}'


def sends_a_change_again() -> None:
    """It takes a change for a read, which is sent again if its answer was lost."""
    transaction = operations.transaction
    operations.transaction = lambda *args, **more: transaction(*args, **{**more, "changes": False})


BROKEN: Mapping[str, Callable[[], None]] = {
    each.__name__: each for each in (reads_from_one_member, sends_a_change_again)
}
