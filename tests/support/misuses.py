"""What a type checker must refuse in a consumer: each marked line is wrong, and no other.

It is checked, not run. The mark names the checkers that report the line.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from kvreplay import (
    AsyncReplay,
    AtomicKVStore,
    KVTransaction,
    NotStored,
    RecordError,
    Replay,
    ReplayEvent,
    ReplayRecord,
    State,
    StoredFailureError,
    open_store,
)
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.testing import FaultyStore, ManualClock, kill_in_handler

KEY = ("node", "session")


@attrs.frozen
class Invoice:
    bolt11: str


class CardDeclined(Exception): ...


def make_invoice() -> Invoice:
    return Invoice("lnbcrt1")


def make_invoice_in(transaction: KVTransaction) -> Invoice:
    return Invoice("lnbcrt1")


def ask_for_an_invoice() -> NotStored[Invoice]:
    return NotStored(Invoice("pending"))


def count() -> int:
    return 1


async def make_invoice_later() -> Invoice:
    return Invoice("lnbcrt1")


async def count_later() -> int:
    return 1


def typed(replay: Replay) -> None:
    invoice = replay.execute(KEY, 1, make_invoice, returns=Invoice)
    invoice.response.no_such  # error: mypy pyright
    invoice.answer  # error: mypy pyright
    invoice.created_at.year  # error: mypy pyright
    invoice.expires_at + 1  # error: mypy pyright
    many = replay.execute(KEY, 1, lambda: [make_invoice()], returns=list[Invoice])
    many.response.bolt11  # error: mypy pyright
    replay.execute(KEY, 1, ask_for_an_invoice, returns=Invoice).response.response  # error: mypy pyright
    NotStored(Invoice("")).response.no_such  # error: mypy pyright
    replay.execute(KEY, 1, count, returns=Invoice).response.bolt11  # error: mypy pyright
    replay.execute(KEY, 1, lambda: 5, returns=Invoice).response.bolt11  # error: mypy pyright
    replay.execute(KEY, 1, make_invoice(), returns=Invoice)  # error: mypy pyright
    replay.execute(KEY, 1, make_invoice_in, returns=Invoice)  # error: mypy pyright
    replay.execute(KEY, 1, make_invoice, ttl=None, returns=Invoice).bolt11  # error: mypy pyright
    replay.execute("node", 1, make_invoice)  # error: mypy pyright
    replay.execute(("node", "session", "more"), 1, make_invoice)  # error: mypy pyright
    replay.execute(KEY, 1, make_invoice, ttl=b"10min")  # error: mypy pyright
    replay.execute(KEY, 1, make_invoice, timeout=5)  # error: mypy pyright
    replay.execute(KEY, 1, make_invoice, wait_timeout=[5])  # error: mypy pyright
    replay.execute(KEY, make_invoice)  # error: mypy pyright


def typed_in_a_transaction(replay: Replay) -> None:
    outcome = replay.execute_in_transaction(KEY, 1, make_invoice_in, returns=Invoice)
    outcome.response.no_such  # error: mypy pyright
    replay.execute_in_transaction(KEY, 1, make_invoice)  # error: mypy pyright
    replay.execute_in_transaction(KEY, 1, lambda t: t.commit())  # error: mypy pyright
    replay.execute_in_transaction(KEY, 1, lambda t: 5, returns=Invoice).response.bolt11  # error: mypy pyright


def looked_up(replay: Replay) -> None:
    found = replay.lookup(KEY, 1, returns=Invoice)
    found.response  # error: mypy pyright
    if found is not None:
        found.response.no_such  # error: mypy pyright
    replay.lookup(KEY)  # error: mypy pyright
    replay.lookup(KEY, 1, operation=5)  # error: mypy pyright


def decorated(replay: Replay) -> None:
    @replay.idempotent(key=lambda node, session="first", *, msat=0: (node, session))
    def request_invoice(node: str, session: str = "first", *, msat: int = 0) -> Invoice:
        return Invoice(node)

    request_invoice()  # error: mypy pyright
    request_invoice("node", "session", 5)  # error: mypy pyright
    request_invoice(5)  # error: mypy pyright
    request_invoice(nodes="node")  # error: mypy pyright
    request_invoice("node", msat="5")  # error: mypy pyright
    request_invoice("node").no_such  # error: mypy pyright
    request_invoice("node").response  # error: mypy pyright

    @replay.idempotent(key=lambda node: (node, "x"), operation="told", outcome=True)
    def told(node: str) -> Invoice:
        return Invoice(node)

    told("node").bolt11  # error: mypy pyright
    told("node").response.no_such  # error: mypy pyright
    told(5)  # error: mypy pyright

    @replay.idempotent(key=lambda node: (node, "x"), operation="maybe")
    def asked(node: str) -> Invoice | NotStored[Invoice]:
        return NotStored(Invoice(node))

    asked("node").response  # error: mypy pyright

    replay.idempotent()  # error: mypy pyright
    replay.idempotent(lambda node: (node, "x"))  # error: mypy pyright
    replay.idempotent(key=KEY)  # error: mypy pyright
    replay.idempotent(key=lambda node: (node, "x"), params={"msat": 1})  # error: mypy pyright
    replay.idempotent(key=lambda node: (node, "x"), encode="json")  # error: mypy pyright
    replay.idempotent(key=lambda node: (node, "x"), outcome="yes")  # error: mypy pyright


REPLAY = Replay(MemoryStore(), "wallet", ttl="1h")


class Wallet:
    @REPLAY.idempotent(key=lambda self, session: ("wallet", session))
    def pay(self, session: str) -> Invoice:
        return Invoice(session)

    @classmethod
    @REPLAY.idempotent(key=lambda cls, session: ("all", session), operation="open")
    def open(cls, session: str) -> Invoice:
        return Invoice(session)


def methods(wallet: Wallet) -> None:
    wallet.pay()  # error: mypy pyright
    wallet.pay(5)  # error: mypy pyright
    wallet.pay("session").no_such  # error: mypy pyright
    Wallet.open("session", "more")  # error: mypy pyright


async def awaited(replay: AsyncReplay, blocking: Replay) -> None:
    replay.execute(KEY, 1, make_invoice_later)  # error: mypy pyright
    replay.execute(KEY, 1, make_invoice_later, returns=Invoice).response  # error: mypy pyright
    replay.execute_in_transaction(KEY, 1, make_invoice_in)  # error: mypy pyright
    await blocking.execute(KEY, 1, make_invoice, returns=Invoice)  # error: mypy pyright
    await blocking.record(KEY)  # error: mypy pyright
    outcome = await replay.execute(KEY, 1, make_invoice_later, returns=Invoice)
    outcome.response.no_such  # error: mypy pyright
    await outcome.response  # error: mypy pyright
    (await replay.execute(KEY, 1, count_later, returns=Invoice)).response.bolt11  # error: mypy pyright
    (await replay.execute_in_transaction(KEY, 1, lambda t: 5, returns=Invoice)).response.bolt11  # error: mypy pyright
    (await replay.lookup(KEY, 1, returns=Invoice)).response  # error: mypy pyright
    blocking.execute(KEY, 1, make_invoice_later, returns=Invoice).response.bolt11  # error: mypy pyright

    @replay.idempotent(key=lambda node: (node, "x"))
    async def request_invoice(node: str) -> Invoice:
        return Invoice(node)

    request_invoice("node")  # error: mypy pyright
    request_invoice("node").bolt11  # error: mypy pyright
    await request_invoice(5)  # error: mypy pyright
    (await request_invoice("node")).no_such  # error: mypy pyright

    @replay.idempotent(key=lambda node: (node, "x"))  # error: mypy pyright
    def blocks(node: str) -> Invoice:
        return Invoice(node)

    replay.release(KEY)  # error: mypy pyright
    replay.close()  # error: mypy pyright
    replay.sweep()  # error: mypy pyright
    async for record in await replay.records():  # error: mypy pyright
        print(record)
    for record in replay.records():  # error: mypy pyright
        print(record)
    with replay.sweeping():  # error: mypy pyright
        pass


def tells_a_bool(record: ReplayRecord) -> bool:
    return True


def takes_a_text(event: str) -> None: ...


async def reconciles_later(record: ReplayRecord) -> None: ...


def configured(store: AtomicKVStore) -> None:
    Replay(store, "ns")  # error: mypy pyright
    Replay(store, "ns", ttl=b"1h")  # error: mypy pyright
    Replay(store, "ns", ttl=None)  # error: mypy pyright
    Replay(store, "ns", ttl=1, lease=[30])  # error: mypy pyright
    Replay(store, "ns", ttl=1, expired="rerun")  # error: mypy pyright
    Replay(store, "ns", ttl=1, on_expired="ignore")  # error: mypy pyright
    Replay(store, "ns", ttl=1, on_in_doubt="ignore")  # error: mypy pyright
    Replay(store, "ns", ttl=1, on_in_doubt=tells_a_bool)  # error: mypy pyright
    Replay(store, "ns", ttl=1, store_errors=(CardDeclined(),))  # error: mypy pyright
    Replay(store, "ns", ttl=1, store_errors=CardDeclined)  # error: mypy pyright
    Replay(store, "ns", ttl=1, store_errors=(KeyboardInterrupt,))  # error: mypy pyright
    Replay(store, "ns", ttl=1, doubt_on=TimeoutError)  # error: mypy pyright
    Replay(store, "ns", ttl=1, params_key=5)  # error: mypy pyright
    Replay(store, "ns", ttl=1, params_key="a text is no secret of bytes")  # error: mypy pyright
    Replay(store, "ns", ttl=1, params_key=("a text", "another"))  # error: mypy pyright
    Replay(store, "ns", ttl=1, on_event=takes_a_text)  # error: mypy pyright
    Replay(store, "ns", ttl=1, on_event=[takes_a_text])  # error: mypy pyright
    Replay(store, "ns", ttl=1, encode="json")  # error: mypy pyright
    Replay(store, "ns", ttl=1, clock=0)  # error: mypy pyright
    Replay("memory:", "ns", ttl=1)  # error: mypy pyright
    AsyncReplay(store, "ns", ttl=1, on_in_doubt=reconciles_later)  # error: mypy pyright


def audit(event: ReplayEvent) -> None:
    if event.kind == "completed":
        print(event.swept.removed)  # error: mypy pyright
    event.key.lower()  # error: mypy pyright
    event.response  # error: mypy pyright


def looked_at(replay: Replay) -> None:
    replay.record(KEY).state  # error: mypy pyright
    replay.records(state="failed")  # error: mypy pyright
    replay.records(State.FAILED)  # error: mypy pyright
    replay.records(in_doubt="yes")  # error: mypy pyright
    replay.resolve(KEY)  # error: mypy pyright
    replay.resolve(KEY, response=1, seen=KEY)  # error: mypy pyright
    replay.forget("node")  # error: mypy pyright
    replay.release(KEY, response=1)  # error: mypy pyright
    replay.close(b"10s")  # error: mypy pyright
    replay.close().left  # error: mypy pyright
    with replay.sweeping(every=None):  # error: mypy pyright
        pass


def answered_with_an_error(error: StoredFailureError, damage: RecordError) -> None:
    error.arguments[0]  # error: mypy pyright
    error.name()  # error: mypy pyright
    for primary, name in damage.addresses:  # error: mypy pyright
        print(primary, name)


def transacts() -> None:
    open_store("memory:").transaction()  # error: mypy pyright
    open_store("memory:", transactional=False).transaction()  # error: mypy pyright
    open_store("memory:", transactional="yes")  # error: mypy pyright
    open_store("memory:", transactional=True).commit()  # error: mypy pyright


def tests_its_handlers(path: Path, replay: Replay) -> None:
    ManualClock("noon")  # error: mypy pyright
    ManualClock().advance(b"1h")  # error: mypy pyright
    FaultyStore(path)  # error: mypy pyright
    store = FaultyStore(FilesystemStore(path))
    store.fail(on=5)  # error: mypy pyright
    store.lose_outcome()  # error: mypy pyright
    kill_in_handler(store, replay.execute(KEY, 1, make_invoice))  # error: mypy pyright
    kill_in_handler(replay, make_invoice)  # error: mypy pyright
