"""What a type checker must refuse in a consumer: each marked line is wrong, and no other.

It is checked, not run.
"""

# ruff: noqa: B018  # to look at an attribute is what many of them do

from __future__ import annotations

from pathlib import Path
from sqlite3 import Connection
from typing import Any

import attrs
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.middleware import Middleware

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
from kvreplay.asgi import IdempotencyMiddleware
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.http import IdempotentRequest, answer, answer_of, downstream_key, request_of
from kvreplay.store import AsyncAtomicKVStore
from kvreplay.testing import FaultyStore, ManualClock, kill_in_handler
from kvreplay.wsgi import IdempotencyMiddleware as WSGIIdempotencyMiddleware

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
    invoice.response.no_such  # error
    invoice.answer  # error
    invoice.created_at.year  # error
    invoice.expires_at + 1  # error
    many = replay.execute(KEY, 1, lambda: [make_invoice()], returns=list[Invoice])
    many.response.bolt11  # error
    replay.execute(KEY, 1, ask_for_an_invoice, returns=Invoice).response.response  # error
    NotStored(Invoice("")).response.no_such  # error
    replay.execute(KEY, 1, count, returns=Invoice).response.bolt11  # error
    replay.execute(KEY, 1, lambda: 5, returns=Invoice).response.bolt11  # error
    replay.execute(KEY, 1, make_invoice(), returns=Invoice)  # error
    replay.execute(KEY, 1, make_invoice_in, returns=Invoice)  # error
    replay.execute(KEY, 1, make_invoice, ttl=None, returns=Invoice).bolt11  # error
    replay.execute("node", 1, make_invoice)  # error
    replay.execute(("node", "session", "more"), 1, make_invoice)  # error
    replay.execute(KEY, 1, make_invoice, ttl=b"10min")  # error
    replay.execute(KEY, 1, make_invoice, timeout=5)  # error
    replay.execute(KEY, 1, make_invoice, wait_timeout=[5])  # error
    replay.execute(KEY, make_invoice)  # error


def typed_in_a_transaction(replay: Replay) -> None:
    outcome = replay.execute_in_transaction(KEY, 1, make_invoice_in, returns=Invoice)
    outcome.response.no_such  # error
    replay.execute_in_transaction(KEY, 1, make_invoice)  # error
    replay.execute_in_transaction(KEY, 1, lambda t: t.commit())  # error
    replay.execute_in_transaction(KEY, 1, lambda t: 5, returns=Invoice).response.bolt11  # error


def make_invoice_on(connection: Connection) -> Invoice:
    return Invoice("lnbcrt1")


def typed_on_a_connection(replay: Replay, connection: Connection) -> None:
    joined = replay.execute_in_transaction
    booked = joined(KEY, 1, make_invoice_on, connection=connection, returns=Invoice)
    booked.response.no_such  # error
    joined(KEY, 1, make_invoice, connection=connection)  # error
    joined(KEY, 1, make_invoice_on)  # error
    joined(KEY, 1, make_invoice_on, connection="wallet.db")  # error
    joined(KEY, 1, make_invoice_in, connection=connection)  # error


def looked_up(replay: Replay) -> None:
    found = replay.lookup(KEY, 1, returns=Invoice)
    found.response  # error
    if found is not None:
        found.response.no_such  # error
    replay.lookup(KEY)  # error
    replay.lookup(KEY, 1, operation=5)  # error


def decorated(replay: Replay) -> None:
    @replay.idempotent(key=lambda node, session="first", *, msat=0: (node, session))
    def request_invoice(node: str, session: str = "first", *, msat: int = 0) -> Invoice:
        return Invoice(node)

    request_invoice()  # error
    request_invoice("node", "session", 5)  # error
    request_invoice(5)  # error
    request_invoice(nodes="node")  # error
    request_invoice("node", msat="5")  # error
    request_invoice("node").no_such  # error
    request_invoice("node").response  # error

    @replay.idempotent(key=lambda node: (node, "x"), operation="told", outcome=True)
    def told(node: str) -> Invoice:
        return Invoice(node)

    told("node").bolt11  # error
    told("node").response.no_such  # error
    told(5)  # error

    @replay.idempotent(key=lambda node: (node, "x"), operation="maybe")
    def asked(node: str) -> Invoice | NotStored[Invoice]:
        return NotStored(Invoice(node))

    asked("node").response  # error

    replay.idempotent()  # error
    replay.idempotent(lambda node: (node, "x"))  # error
    replay.idempotent(key=KEY)  # error
    replay.idempotent(key=lambda node: (node, "x"), params={"msat": 1})  # error
    replay.idempotent(key=lambda node: (node, "x"), encode="json")  # error
    replay.idempotent(key=lambda node: (node, "x"), outcome="yes")  # error


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
    wallet.pay()  # error
    wallet.pay(5)  # error
    wallet.pay("session").no_such  # error
    Wallet.open("session", "more")  # error


async def awaited(replay: AsyncReplay, blocking: Replay) -> None:
    replay.execute(KEY, 1, make_invoice_later)  # error
    replay.execute(KEY, 1, make_invoice_later, returns=Invoice).response  # error
    replay.execute_in_transaction(KEY, 1, make_invoice_in)  # error
    await blocking.execute(KEY, 1, make_invoice, returns=Invoice)  # error
    await blocking.record(KEY)  # error
    outcome = await replay.execute(KEY, 1, make_invoice_later, returns=Invoice)
    outcome.response.no_such  # error
    await outcome.response  # error
    (await replay.execute(KEY, 1, count_later, returns=Invoice)).response.bolt11  # error
    wrong = await replay.execute_in_transaction(KEY, 1, lambda t: 5, returns=Invoice)
    wrong.response.bolt11  # error
    (await replay.lookup(KEY, 1, returns=Invoice)).response  # error
    blocking.execute(KEY, 1, make_invoice_later, returns=Invoice).response.bolt11  # error

    @replay.idempotent(key=lambda node: (node, "x"))
    async def request_invoice(node: str) -> Invoice:
        return Invoice(node)

    request_invoice("node")  # error
    request_invoice("node").bolt11  # error
    await request_invoice(5)  # error
    (await request_invoice("node")).no_such  # error

    @replay.idempotent(key=lambda node: (node, "x"))  # error
    def blocks(node: str) -> Invoice:
        return Invoice(node)

    replay.release(KEY)  # error
    replay.close()  # error
    replay.sweep()  # error
    async for record in await replay.records():  # error
        print(record)
    for record in replay.records():  # error
        print(record)
    with replay.sweeping():  # error
        pass


def tells_a_bool(record: ReplayRecord) -> bool:
    return True


def takes_a_text(event: str) -> None: ...


async def reconciles_later(record: ReplayRecord) -> None: ...


def configured(store: AtomicKVStore) -> None:
    Replay(store, "ns")  # error
    Replay(store, "ns", ttl=b"1h")  # error
    Replay(store, "ns", ttl=None)  # error
    Replay(store, "ns", ttl=1, lease=[30])  # error
    Replay(store, "ns", ttl=1, expired="rerun")  # error
    Replay(store, "ns", ttl=1, on_expired="ignore")  # error
    Replay(store, "ns", ttl=1, on_in_doubt="ignore")  # error
    Replay(store, "ns", ttl=1, on_in_doubt=tells_a_bool)  # error
    Replay(store, "ns", ttl=1, store_errors=(CardDeclined(),))  # error
    Replay(store, "ns", ttl=1, store_errors=CardDeclined)  # error
    Replay(store, "ns", ttl=1, store_errors=(KeyboardInterrupt,))  # error
    Replay(store, "ns", ttl=1, doubt_on=TimeoutError)  # error
    Replay(store, "ns", ttl=1, params_key=5)  # error
    Replay(store, "ns", ttl=1, params_key="a text is no secret of bytes")  # error
    Replay(store, "ns", ttl=1, params_key=("a text", "another"))  # error
    Replay(store, "ns", ttl=1, on_event=takes_a_text)  # error
    Replay(store, "ns", ttl=1, on_event=[takes_a_text])  # error
    Replay(store, "ns", ttl=1, encode="json")  # error
    Replay(store, "ns", ttl=1, clock=0)  # error
    Replay("memory:", "ns", ttl=1)  # error
    AsyncReplay(store, "ns", ttl=1, on_in_doubt=reconciles_later)  # error


def on_an_asynchronous_store(store: AsyncAtomicKVStore) -> None:
    Replay(store, "ns", ttl=1)  # error
    AsyncReplay(store, "ns", ttl=1).record(KEY).state  # error


def payer(scope: dict[str, Any]) -> str | None:
    return str(scope["payer"])


async def payer_later(scope: dict[str, Any]) -> str | None:
    return payer(scope)


def payer_number(scope: dict[str, Any]) -> int:
    return 7


def in_front_of_asgi(app: FastAPI, replay: AsyncReplay, blocking: Replay) -> None:
    app.add_middleware(IdempotencyMiddleware, replay=replay)  # error
    app.add_middleware(IdempotencyMiddleware, scope=payer)  # error
    app.add_middleware(IdempotencyMiddleware, replay=blocking, scope=payer)  # error
    app.add_middleware(IdempotencyMiddleware, replay=replay, scope="payer")  # error
    app.add_middleware(IdempotencyMiddleware, replay=replay, scope=payer_number)  # error
    app.add_middleware(IdempotencyMiddleware, replay=replay, scope=payer, key="x")  # error
    app.add_middleware(WSGIIdempotencyMiddleware, replay=blocking, scope=payer)  # error
    Starlette(middleware=[Middleware(IdempotencyMiddleware, replay=replay)])  # error
    IdempotencyMiddleware(app, replay)  # error
    IdempotencyMiddleware(app, replay, payer)  # error
    IdempotencyMiddleware(app, blocking, scope=payer)  # error
    IdempotencyMiddleware(Flask("payments"), replay, scope=payer)  # error
    IdempotencyMiddleware(app, replay, scope=payer, profile="paypal")  # error
    IdempotencyMiddleware(app, replay, scope=payer, statuses={404: "free"})  # error
    IdempotencyMiddleware(app, replay, scope=payer, covers=True)  # error
    IdempotencyMiddleware(app, replay, scope=payer, required="yes")  # error
    IdempotencyMiddleware(app, replay, scope=payer, retry_after=None)  # error
    IdempotencyMiddleware(app, replay, scope=payer, max_body_bytes="1MiB")  # error


def in_front_of_wsgi(app: Flask, replay: Replay, awaited: AsyncReplay) -> None:
    WSGIIdempotencyMiddleware(app, replay)  # error
    WSGIIdempotencyMiddleware(app, awaited, scope=payer)  # error
    WSGIIdempotencyMiddleware(app, replay, scope=payer_later)  # error
    WSGIIdempotencyMiddleware(app, replay, scope=payer_number)  # error
    WSGIIdempotencyMiddleware(FastAPI(), replay, scope=payer)  # error
    WSGIIdempotencyMiddleware(app, replay, scope=payer, wait=5)  # error


def an_application(told: IdempotentRequest) -> None:
    told.ending = "paid"  # error
    told.ending = True  # error
    downstream_key("k-1")  # error
    downstream_key(told.key, 1)  # error


def settled_over_http(replay: Replay, record: ReplayRecord) -> None:
    replay.resolve(record.key, response=answer("201"))  # error
    replay.resolve(record.key, response=answer(201, {"id": 7}))  # error
    replay.resolve(record.key, response=answer(201, b"", {"content-length": 0}))  # error
    replay.resolve(record.key, answer(201))  # error
    request_of(record).path  # error
    answer_of(record).status  # error
    answer_of(record.key)  # error
    replay.is_in_doubt(record.key)  # error


def audit(event: ReplayEvent) -> None:
    if event.kind == "completed":
        print(event.swept.removed)  # error
    event.key.lower()  # error
    event.response  # error


def looked_at(replay: Replay) -> None:
    replay.record(KEY).state  # error
    replay.records(state="failed")  # error
    replay.records(State.FAILED)  # error
    replay.records(in_doubt="yes")  # error
    replay.resolve(KEY)  # error
    replay.resolve(KEY, response=1, seen=KEY)  # error
    replay.forget("node")  # error
    replay.release(KEY, response=1)  # error
    replay.close(b"10s")  # error
    replay.close().left  # error
    with replay.sweeping(every=None):  # error
        pass


def answered_with_an_error(error: StoredFailureError, damage: RecordError) -> None:
    error.arguments[0]  # error
    error.name()  # error
    for primary, name in damage.addresses:  # error
        print(primary, name)


def transacts() -> None:
    open_store("memory:").transaction()  # error
    open_store("memory:", transactional=False).transaction()  # error
    open_store("memory:", transactional="yes")  # error
    open_store("memory:", transactional=True).commit()  # error


def tests_its_handlers(path: Path, replay: Replay) -> None:
    ManualClock("noon")  # error
    ManualClock().advance(b"1h")  # error
    FaultyStore(path)  # error
    store = FaultyStore(FilesystemStore(path))
    store.fail(on=5)  # error
    store.lose_outcome()  # error
    kill_in_handler(store, replay.execute(KEY, 1, make_invoice))  # error
    kill_in_handler(replay, make_invoice)  # error
