"""A small consumer of the installed package, for ``mypy --strict``: it is checked, not run."""

from collections.abc import Callable
from pathlib import Path

from kvreplay import (
    NOT_APPLIED,
    Applied,
    AsyncReplay,
    AtomicKVStore,
    ExpiringKVStore,
    InProcessAtomicStore,
    KVStoreSync,
    NotApplied,
    Outcome,
    Replay,
    ReplayRecord,
    TransactionalKVStore,
    load_config,
    open_store,
)
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.ldk import TurnStore
from kvreplay.testing import FaultyStore, ManualClock, StoreContract, die, kill_in_handler


def reconcile(record: ReplayRecord) -> Applied | NotApplied:
    return Applied({"bolt11": "lnbcrt1"}) if record.key.scope else NOT_APPLIED


def every_engine_is_what_it_says(path: Path) -> None:
    lmdb: TransactionalKVStore = LMDBStore(path)
    memory: TransactionalKVStore = MemoryStore()
    files: ExpiringKVStore = FilesystemStore(path)
    plain: KVStoreSync = files
    wrapped: AtomicKVStore = InProcessAtomicStore(plain)
    turns: TransactionalKVStore = TurnStore(lmdb)
    plain = TurnStore(open_store("memory:"))
    for store in (lmdb, memory, files, wrapped, turns):
        Replay(store, "ns", ttl=1.0, on_in_doubt=reconcile)


def takes_turns(store: TurnStore, send: Callable[[], None]) -> None:
    with store.turn() as turn, store.transaction() as part:
        turn.list("", "")
        part.write("", "", "manager", b"")
        store.after_commit(send)


def blocking() -> str:
    with open_store("memory:") as store:
        replay = Replay(store, "request_invoice", ttl=60)

        @replay.idempotent(key=lambda node, session: (node, session))
        def request_invoice(node: str, session: str) -> dict[str, str]:
            return {"bolt11": node + session}

        request_invoice("node", session="session")
        outcome: Outcome = replay.execute(("a", "b"), {"amount": 1}, lambda: 5)
        return str(outcome.response)


async def awaited(path: Path) -> None:
    config = load_config(path)
    with config.open_store() as store:
        replay = AsyncReplay(store, **config.replay("request_invoice"))
        Replay(store, **config.replay("request_invoice", on_in_doubt=reconcile))

        async def handler() -> int:
            return 1

        await replay.execute(("a", "b"), [1], handler, ttl=5)
        async with replay.sweeping(every=60):
            pass


def transacts(path: Path) -> None:
    with open_store("lmdb:data", transactional=True) as store, store.transaction() as txn:
        txn.write("p", "s", "k", b"v")
    config = load_config(path)
    with config.open_store(transactional=True) as store:
        ledger: TransactionalKVStore = store
        with ledger.transaction() as txn:
            txn.remove("p", "s", "k")
        Replay(store, "ns", ttl="1h").execute_in_transaction(("a", "b"), 1, lambda txn: 5)
    with config.open_store() as whichever:
        whichever.transaction()  # type: ignore[attr-defined]  # not every engine has it


def tests_its_handlers(path: Path) -> None:
    clock = ManualClock()
    clock.advance("1h")
    store = FaultyStore(LMDBStore(path, lock_timeout="5s"))
    store.fail(on=("read", "commit"))
    store.lose_outcome(applied=True, after=1)
    transactional: TransactionalKVStore = store
    replay = Replay(transactional, "ns", ttl=60, clock=clock)
    kill_in_handler(store, lambda: replay.execute(("a", "b"), 1, die))


class TestTheClass(StoreContract):
    open = LMDBStore


class TestTheMethod(StoreContract):
    durable = False

    def open(self, path: Path) -> MemoryStore:
        return MemoryStore()
