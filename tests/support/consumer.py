"""A consumer of the installed package, for type checkers: it is checked, not run.

It uses all that has a type, and says of each what it must be. ``misuses.py`` is its twin: there
each marked line is wrong.
"""

# The arguments of a lambda have no types; all else has.
# pyright: strict, reportUnknownLambdaType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from sqlite3 import Connection
from typing import Any, assert_type
from wsgiref.types import WSGIApplication, WSGIEnvironment

import attrs
from fastapi import FastAPI
from flask import Flask
from litestar import Litestar
from litestar.middleware import DefineMiddleware
from litestar.types import Scope as LitestarScope
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from kvreplay import (
    EVENT_KINDS,
    NOT_APPLIED,
    Applied,
    AsyncReplay,
    AtomicKVStore,
    EventKind,
    ExpiringKVStore,
    InDoubtError,
    InFlightError,
    InProcessAtomicStore,
    KVStoreSync,
    KVTransaction,
    NotApplied,
    NotStored,
    Outcome,
    RecordError,
    Replay,
    ReplayEvent,
    ReplayKey,
    ReplayRecord,
    State,
    StoredFailureError,
    SweepResult,
    TransactionalKVStore,
    Unknown,
    load_config,
    open_store,
)
from kvreplay.asgi import IdempotencyMiddleware
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.http import (
    Answer,
    Ending,
    HTTPRequest,
    IdempotentRequest,
    answer,
    answer_of,
    downstream_key,
    request_of,
)
from kvreplay.ldk import TurnStore
from kvreplay.store import AsyncAtomicKVStore, AsyncKVTransaction
from kvreplay.testing import Blocking, FaultyStore, ManualClock, StoreContract, die, kill_in_handler
from kvreplay.wsgi import IdempotencyMiddleware as WSGIIdempotencyMiddleware

KEY = ("node", "session")


@attrs.frozen
class Invoice:
    bolt11: str


@dataclass(frozen=True)
class Receipt:
    msat: int


class Refund(BaseModel):
    reason: str


class CardDeclined(Exception): ...


class NoRoute(Exception): ...


def make_invoice() -> Invoice:
    return Invoice("lnbcrt1")


def make_invoice_in(transaction: KVTransaction) -> Invoice:
    transaction.write("ledger", "", "invoice", b"")
    return Invoice("lnbcrt1")


def make_invoices() -> list[Invoice]:
    return [make_invoice()]


def make_receipt() -> Receipt:
    return Receipt(1)


def make_refund() -> Refund:
    return Refund(reason="late")


def ask_for_an_invoice() -> Invoice | NotStored[Invoice]:
    return NotStored(Invoice("pending"))


def find_invoice() -> Invoice | None:
    return None


# Answers that have a type.


def typed(replay: Replay) -> None:
    outcome = replay.execute(KEY, {"msat": 1}, make_invoice, ttl="10min", returns=Invoice)
    assert_type(outcome, Outcome[Invoice])
    assert_type(outcome.response.bolt11, str)
    assert_type(outcome.replayed, bool)
    assert_type(outcome.created_at, int)
    assert_type(outcome.expires_at, int | None)
    assert_type(replay.execute(KEY, 1, make_receipt, returns=Receipt).response.msat, int)
    assert_type(replay.execute(KEY, 1, make_refund, returns=Refund).response.reason, str)
    many = replay.execute(KEY, 1, make_invoices, wait_timeout=None, returns=list[Invoice])
    assert_type(many.response, list[Invoice])
    assert_type(replay.execute(KEY, 1, lambda: make_invoice(), returns=Invoice).response, Invoice)
    not_kept = replay.execute(KEY, 1, ask_for_an_invoice, returns=Invoice)
    assert_type(not_kept.response, Invoice)


def typed_only_where_a_type_is_declared(replay: Replay) -> None:
    assert_type(replay.execute(KEY, 1, make_invoice), Outcome[Any])
    optional = replay.execute(KEY, 1, find_invoice, returns=Invoice | None)
    assert_type(optional, Outcome[Any])
    declared: Outcome[Invoice | None] = optional
    assert_type(declared.response, Invoice | None)


def typed_in_a_transaction(replay: Replay) -> None:
    outcome = replay.execute_in_transaction(KEY, 1, make_invoice_in, returns=Invoice)
    assert_type(outcome, Outcome[Invoice])
    plain = replay.execute_in_transaction(KEY, 1, lambda transaction: transaction.list("", ""))
    assert_type(plain, Outcome[Any])


def make_invoice_on(connection: Connection) -> Invoice:
    connection.execute("INSERT INTO ledger VALUES (1)")
    return Invoice("lnbcrt1")


def typed_on_a_connection(replay: Replay, connection: Connection) -> None:
    outcome = replay.execute_in_transaction(
        KEY, 1, make_invoice_on, connection=connection, wait_timeout=None, returns=Invoice
    )
    assert_type(outcome, Outcome[Invoice])
    plain = replay.execute_in_transaction(KEY, 1, make_invoice_on, connection=connection)
    assert_type(plain, Outcome[Any])


def looked_up(replay: Replay) -> None:
    assert_type(replay.lookup(KEY, 1), Outcome[Any] | None)
    found = replay.lookup(KEY, 1, operation="refund", returns=Refund)
    assert_type(found, Outcome[Refund] | None)
    if found is not None:
        assert_type(found.response.reason, str)


# Decorated functions keep their own signature.


def decorated(replay: Replay) -> None:
    def invoice_key(node: str, session: str = "first", *, msat: int = 0) -> tuple[str, str]:
        return node, session

    @replay.idempotent(key=invoice_key)
    def request_invoice(node: str, session: str = "first", *, msat: int = 0) -> Invoice:
        return Invoice(f"{node}{session}{msat}")

    assert_type(request_invoice("node"), Invoice)
    assert_type(request_invoice("node", "session"), Invoice)
    assert_type(request_invoice(session="session", node="node", msat=5), Invoice)

    @replay.idempotent(key=invoice_key, operation="told", outcome=True)
    def told(node: str, session: str = "first", *, msat: int = 0) -> Receipt:
        return Receipt(msat)

    assert_type(told("node", msat=5), Outcome[Receipt])
    assert_type(told("node").response.msat, int)

    def its_amount(node: str, session: str = "first", *, msat: int = 0) -> dict[str, int]:
        return {"msat": msat}

    @replay.idempotent(
        key=invoice_key,
        params=its_amount,
        operation="compared",
        ttl=timedelta(hours=1),
        wait_timeout="500ms",
        returns=Refund,
    )
    def compared(node: str, session: str = "first", *, msat: int = 0) -> Refund:
        return Refund(reason=node)

    assert_type(compared("node", msat=5), Refund)

    def read(stored: str) -> Invoice:
        return Invoice(stored)

    def written(invoice: Invoice) -> str:
        return invoice.bolt11

    @replay.idempotent(key=lambda node: (node, "x"), operation="own", encode=written, decode=read)
    def encoded(node: str) -> Invoice:
        return Invoice(node)

    assert_type(encoded("node"), Invoice)

    @replay.idempotent(key=lambda node: (node, "x"), operation="maybe")
    def asked(node: str) -> Invoice | NotStored[Invoice]:
        return NotStored(Invoice(node))

    assert_type(asked("node"), Invoice)

    @replay.idempotent(key=lambda node: ReplayKey(node, "x"), operation="found")
    def find(node: str) -> Invoice | None:
        return None

    assert_type(find("node"), Invoice | None)


REPLAY = Replay(MemoryStore(), "wallet", ttl="1h")


class Wallet:
    def key_of(self, session: str, msat: int = 0) -> tuple[str, str]:
        return "wallet", session

    @REPLAY.idempotent(key=key_of)
    def pay(self, session: str, msat: int = 0) -> Receipt:
        return Receipt(msat)

    @classmethod
    @REPLAY.idempotent(key=lambda cls, session: ("all", session), operation="open")
    def open(cls, session: str) -> Receipt:
        return Receipt(0)


def methods(wallet: Wallet) -> None:
    assert_type(wallet.pay("session", msat=5), Receipt)
    assert_type(Wallet.pay(wallet, "session"), Receipt)
    assert_type(Wallet.open("session"), Receipt)
    assert_type(wallet.open(session="session"), Receipt)


# The same, awaited.


async def make_invoice_later() -> Invoice:
    return make_invoice()


async def ask_for_an_invoice_later() -> Invoice | NotStored[Invoice]:
    return ask_for_an_invoice()


async def pay_in(transaction: AsyncKVTransaction) -> Invoice:
    await transaction.write("ledger", "", "a", b"paid")
    return make_invoice()


async def on_an_asynchronous_store(store: AsyncAtomicKVStore) -> None:
    replay = AsyncReplay(store, "ns", ttl=60, renew=None)
    paid = await replay.execute_in_transaction(KEY, 1, pay_in, returns=Invoice)
    assert_type(paid, Outcome[Invoice])
    assert_type(Blocking(lambda: store).read("p", "s", "k"), bytes)


class AsyncConnection: ...


async def make_invoice_on_later(connection: AsyncConnection) -> Invoice:
    return make_invoice()


async def awaited(replay: AsyncReplay, connection: AsyncConnection) -> None:
    outcome = await replay.execute(KEY, 1, make_invoice_later, ttl=5, returns=Invoice)
    assert_type(outcome, Outcome[Invoice])
    assert_type((await replay.execute(KEY, 1, make_invoice, returns=Invoice)).response, Invoice)
    asked = await replay.execute(KEY, 1, ask_for_an_invoice_later, returns=Invoice)
    assert_type(asked, Outcome[Invoice])
    assert_type(await replay.execute(KEY, 1, make_invoice_later), Outcome[Any])
    both = await replay.execute_in_transaction(KEY, 1, make_invoice_in, returns=Invoice)
    assert_type(both.response.bolt11, str)
    joined = await replay.execute_in_transaction(
        KEY, 1, make_invoice_on_later, connection=connection, returns=Invoice
    )
    assert_type(joined, Outcome[Invoice])
    assert_type(await replay.lookup(KEY, 1, returns=Refund), Outcome[Refund] | None)
    assert_type(await replay.lookup(KEY, 1), Outcome[Any] | None)

    @replay.idempotent(key=lambda node, *, msat=0: (node, "x"))
    async def request_invoice(node: str, *, msat: int = 0) -> Invoice:
        return Invoice(f"{node}{msat}")

    assert_type(await request_invoice(node="node", msat=5), Invoice)

    @replay.idempotent(key=lambda node: (node, "x"), operation="told", outcome=True)
    async def told(node: str) -> Invoice | NotStored[Invoice]:
        return NotStored(Invoice(node))

    assert_type(await told("node"), Outcome[Invoice])


async def settled_later(replay: AsyncReplay, seen: ReplayRecord) -> None:
    assert_type(await replay.resolve(KEY, response=Invoice(""), returns=Invoice), bool)
    assert_type(await replay.release(KEY, seen=seen), bool)
    assert_type(await replay.forget(KEY, operation="refund"), bool)
    assert_type(await replay.record(KEY), ReplayRecord | None)
    assert_type(replay.records(in_doubt=True), AsyncIterator[ReplayRecord])
    async for record in replay.records(state=State.FAILED):
        assert_type(record.load_failure(), tuple[str, list[Any] | None] | None)
    async with replay.sweeping(every="1min"):
        assert_type(await replay.sweep(limit=10), SweepResult)
    assert_type(await replay.close("10s"), int)


# Settings.


def reconcile(record: ReplayRecord) -> Applied | NotApplied | Unknown:
    if record.key.operation is None:
        return Unknown(retry_after=5)
    return Applied({"bolt11": "lnbcrt1"}) if record.key.scope else NOT_APPLIED


async def reconcile_later(record: ReplayRecord) -> Applied:
    return Applied(record.load_params())


def audit(event: ReplayEvent) -> None:
    assert_type(event.kind, EventKind)
    assert_type(event.duration, float)
    assert_type(event.key, str | None)
    assert_type(event.swept, SweepResult | None)
    assert event.kind in EVENT_KINDS


def configured(store: AtomicKVStore, secrets: Sequence[bytes]) -> None:
    heard: list[ReplayEvent] = []
    Replay(
        store,
        "ns",
        ttl="1h",
        lease=timedelta(seconds=30),
        tombstone_ttl=5.5,
        wait_timeout=None,
        on_in_doubt=reconcile,
        on_expired="rerun",
        max_record_bytes=1024,
        renew=True,
        doubt_on=(TimeoutError, OSError),
        store_errors=(CardDeclined, NoRoute),
        params_key=secrets[0],
        encode=str,
        decode=int,
        clock=ManualClock(),
        on_event=audit,
    )
    Replay(store, "ns", ttl=60, lease=None, params_key=secrets, on_event=[audit, heard.append])
    Replay(
        store, "ns", ttl=60, on_in_doubt="rerun", store_errors=(CardDeclined,), on_event=(audit,)
    )
    AsyncReplay(store, "ns", ttl=0.5, on_in_doubt=reconcile_later, store_errors=(CardDeclined,))
    AsyncReplay(store, "ns", ttl=0.5, on_in_doubt=reconcile, params_key=secrets, on_event=audit)


# In front of web applications.


def payer(scope: MutableMapping[str, Any]) -> str | None:
    return str(scope["state"]["payer"])


async def payer_later(scope: Scope) -> str | None:
    return payer(scope)


def payer_of_dict(scope: dict[str, Any]) -> str:
    return str(scope["client"])


def payer_of_litestar(scope: LitestarScope) -> str | None:
    return scope["path"]


def payer_of_environ(environ: WSGIEnvironment) -> str | None:
    return str(environ["REMOTE_USER"])


def in_front_of_asgi(replay: AsyncReplay, wrapped: ASGIApp) -> None:
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, replay=replay, scope=payer)
    app.add_middleware(IdempotencyMiddleware, replay=replay, scope=payer_later)
    app.add_middleware(IdempotencyMiddleware, replay=replay, scope=payer_of_dict)
    app.add_middleware(IdempotencyMiddleware, replay=replay, scope=lambda scope: scope["payer"])
    Starlette(middleware=[Middleware(IdempotencyMiddleware, replay=replay, scope=payer)])
    of_litestar = DefineMiddleware(IdempotencyMiddleware, replay=replay, scope=payer_of_litestar)
    Litestar(middleware=[of_litestar, DefineMiddleware(IdempotencyMiddleware, replay, scope=payer)])
    around: ASGIApp = IdempotencyMiddleware(app, replay, scope=payer)
    around = IdempotencyMiddleware(around, replay, scope=payer_later)
    around = IdempotencyMiddleware(Litestar(), replay, scope=payer_of_litestar)
    around = IdempotencyMiddleware(
        wrapped,
        replay,
        scope=payer,
        profile="stripe",
        methods=("POST", "PUT"),
        covers=lambda scope: scope["path"] != "/health",
        required=lambda scope: scope["path"] == "/payments",
        bare_keys=True,
        statuses={404: "freed", "5xx": "in doubt"},
        stored_headers=("x-request-id",),
        replay_header=None,
        wait_timeout="2s",
        retry_after=timedelta(seconds=2),
        max_body_bytes=1024,
        max_answer_bytes=1024,
        policy_path=None,
        policy_url="https://example.com/keys",
        challenge="Basic",
    )
    assert callable(around)


def in_front_of_wsgi(replay: Replay, statuses: dict[int | str, Ending]) -> None:
    app = Flask("payments")
    # mypy refuses whatever is put in a method's place; Flask's manual puts middleware there.
    app.wsgi_app = WSGIIdempotencyMiddleware(  # type: ignore[method-assign]
        app.wsgi_app, replay, scope=payer_of_environ
    )
    around: WSGIApplication = WSGIIdempotencyMiddleware(
        app.wsgi_app, replay, scope=payer_of_environ, required=False, statuses=statuses
    )
    around = WSGIIdempotencyMiddleware(app, replay, scope=lambda environ: environ["payer"])
    around = WSGIIdempotencyMiddleware(around, replay, scope=payer_of_environ, profile="acp")
    assert callable(around)


async def an_application(scope: Scope, receive: Receive, send: Send) -> None:
    told: IdempotentRequest = scope["kvreplay.request"]
    assert_type(told.key, ReplayKey)
    assert_type(told.ending, Ending | None)
    told.ending = "freed"
    told.ending = None
    assert_type(downstream_key(told.key), str)
    assert_type(downstream_key(told.key, "capture"), str)


def settled_over_http(replay: Replay, record: ReplayRecord) -> Applied | Unknown:
    replay.resolve(record.key, response=answer(201, b"{}", {"content-type": "application/json"}))
    replay.resolve(record.key, response=answer(204), seen=record)
    request = request_of(record)
    assert_type(request, HTTPRequest | None)
    if request is None:
        return Unknown()
    assert_type(request.method, str)
    assert_type(request.path, bytes)
    assert_type(request.body_sha256, bytes)
    kept = answer_of(record)
    assert_type(kept, Answer | None)
    if kept is not None:
        assert_type(kept.status, int)
        assert_type(kept.headers, tuple[tuple[bytes, bytes], ...])
        assert_type(kept.body, bytes | None)
    assert_type(replay.is_in_doubt(record), bool)
    return Applied(answer(201, '{"id": 7}', [("link", "</a>"), (b"link", b"</b>")]))


async def settled_over_http_later(record: ReplayRecord) -> Applied | Unknown:
    return Applied(answer(402, "declined"))


def reconciled_over_http(store: AtomicKVStore, ask: Callable[[str], Awaitable[bytes]]) -> None:
    async def reconcile(record: ReplayRecord) -> Applied:
        return Applied(answer(201, await ask(downstream_key(record.key))))

    AsyncReplay(store, "http", ttl="24h", on_in_doubt=reconcile)
    AsyncReplay(store, "http", ttl="24h", on_in_doubt=settled_over_http_later)


# What stands there, and what an operator does.


def looked_at(replay: Replay) -> None:
    record = replay.record(KEY, operation="refund")
    assert_type(record, ReplayRecord | None)
    assert_type(replay.records(), Iterator[ReplayRecord])
    for each in replay.records(state=State.IN_PROGRESS, in_doubt=True):
        assert_type(each.state, State)
        assert_type(replay.release(each.key, seen=each), bool)
    assert_type(replay.resolve(KEY, response={"bolt11": ""}, ttl="1h", seen=record), bool)
    assert_type(replay.forget(KEY, seen=record), bool)
    with replay.sweeping(every=60):
        assert_type(replay.sweep(), SweepResult)
    assert_type(replay.close(timeout="10s"), int)
    assert_type(replay.close(), int)


def answered_with_an_error(replay: Replay) -> None:
    try:
        replay.execute(KEY, 1, make_invoice)
    except CardDeclined:
        pass
    except StoredFailureError as error:
        assert_type(error.name, str)
        assert_type(error.arguments, tuple[Any, ...] | None)
    except InFlightError as error:
        assert_type(error.retry_after, float)
    except InDoubtError as error:
        assert_type(error.retry_after, float | None)
        replay.resolve(KEY, response=error.response)
    except RecordError as error:
        for primary, secondary, name in error.addresses:
            open_store("memory:").remove(primary, secondary, name)


# Stores.


def every_engine_is_what_it_says(path: Path) -> None:
    lmdb: TransactionalKVStore = LMDBStore(path)
    memory: TransactionalKVStore = MemoryStore()
    files: ExpiringKVStore = FilesystemStore(path)
    plain: KVStoreSync = files
    wrapped: AtomicKVStore = InProcessAtomicStore(plain)
    turns: TransactionalKVStore = TurnStore(lmdb)
    plain = TurnStore(open_store("memory:"))
    stores: tuple[AtomicKVStore, ...] = (lmdb, memory, files, wrapped, turns)
    for store in stores:
        Replay(store, "ns", ttl=1.0, on_in_doubt=reconcile)


def takes_turns(store: TurnStore, send: Callable[[], None]) -> None:
    with store.turn() as turn, store.transaction() as part:
        turn.list("", "")
        part.write("", "", "manager", b"")
        store.after_commit(send)


async def opened_by_a_configuration(path: Path) -> None:
    config = load_config(path)
    with config.open_store() as store:
        AsyncReplay(store, **config.replay("request_invoice"))
        Replay(store, **config.replay("request_invoice", on_in_doubt=reconcile))


def transacts(path: Path) -> None:
    with open_store("lmdb:data", transactional=True) as store, store.transaction() as transaction:
        transaction.write("p", "s", "k", b"v")
    config = load_config(path)
    with config.open_store(transactional=True) as store:
        ledger: TransactionalKVStore = store
        with ledger.transaction() as transaction:
            transaction.remove("p", "s", "k")
        Replay(store, "ns", ttl="1h").execute_in_transaction(KEY, 1, make_invoice_in)


# Tests of an application.


def tests_its_handlers(path: Path) -> None:
    clock = ManualClock()
    clock.advance("1h")
    store = FaultyStore(LMDBStore(path, lock_timeout="5s"))
    store.fail(on=("read", "commit"))
    store.lose_outcome(applied=True, after=1)
    assert_type(store.faults_left, int)
    store.heal()
    transactional: TransactionalKVStore = store
    replay = Replay(transactional, "ns", ttl=60, clock=clock)
    kill_in_handler(store, lambda: replay.execute(KEY, 1, die))
    later = AsyncReplay(store, "ns", ttl=60, clock=clock)
    kill_in_handler(store, lambda: later.execute(KEY, 1, die))


class TestTheClass(StoreContract):
    open = LMDBStore


class TestTheMethod(StoreContract):
    durable = False

    def open(self, path: Path) -> MemoryStore:
        return MemoryStore()
