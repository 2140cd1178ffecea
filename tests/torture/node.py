"""A node: threads that ask for keys, each run of which has an effect that the ledger notes."""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs

from kvreplay import InDoubtError, InFlightError, KeyNotFoundError, StoreError
from support.replaying import Async, Sync
from torture.ledger import PARAMS, SCOPE, Ledger, answer


@attrs.frozen
class Mode:
    """How a node asks."""

    face: type[Sync] | type[Async]
    lease: float | None = 30.0
    transaction: bool = False

    @property
    def claims(self) -> bool:
        return self.lease is not None and not self.transaction

    @property
    def promised(self) -> dict[str, bool]:
        """What :func:`torture.ledger.audit` may hold against it."""
        return {"claims": self.claims, "transaction": self.transaction}


MODES = {
    "sync": Mode(Sync),
    "async": Mode(Async),
    "sync-without-lease": Mode(Sync, lease=None),
    "async-without-lease": Mode(Async, lease=None),
    "sync-in-transaction": Mode(Sync, transaction=True),
    "async-in-transaction": Mode(Async, transaction=True),
}


class Node:
    """One process's requests to a store."""

    def __init__(self, store: Any, ledger: Ledger, mode: Mode, **settings: Any) -> None:
        settings = {"ttl": 3600, "lease": mode.lease, "wait_timeout": 30, **settings}
        self.face = mode.face(store, "ns", **settings)
        self._execute = self.face.execute_in_transaction if mode.transaction else self.face.execute
        self._ledger = ledger

    def serve(self, keys: Sequence[str], threads: int) -> None:
        """Ask for every key on every thread, each in an order of its own."""
        with ThreadPoolExecutor(threads) as pool:
            for served in [pool.submit(self._serve, keys) for _ in range(threads)]:
                served.result()

    def ask(self, key: str) -> None:
        """Ask once, and note what came of it."""
        try:
            outcome = self._execute((SCOPE, key), PARAMS, lambda *txn: self._run(key, *txn))
        except InDoubtError:
            self._ledger.note("doubt", key)
        except (StoreError, InFlightError) as error:
            self._ledger.note("failure", key, repr(error))
        except BaseException as error:
            self._ledger.note("bug", key, repr(error))
            raise
        else:
            token = outcome.response.rstrip(".")
            assert outcome.response == answer(token)
            self._ledger.note("answer", key, token)

    def _serve(self, keys: Sequence[str]) -> None:
        for key in random.sample(keys, len(keys)):
            self.ask(key)

    def _run(self, key: str, *transaction: Any) -> str:
        token = secrets.token_hex(8)
        if transaction:
            (txn,) = transaction
            try:
                txn.read("ledger", "", key)
            except KeyNotFoundError:
                txn.write("ledger", "", key, token.encode())
            else:
                self._ledger.note("bug", key, "a second run saw the effect of the first")
        else:
            self._ledger.note("effect", key, token)
        return answer(token)
