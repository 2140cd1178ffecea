"""The requests of which each stored version holds the records, and how each has ended.

``ask_all`` makes them, on an injected clock, so two stores that it fills hold the same bytes. Only what is random in
a claim, its token and its owner, is replaced afterwards by what stands here.

A later version adds requests of its own here. It changes none: the files of the versions before it hold them.
"""

from __future__ import annotations

import datetime
import enum
import io
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

import attrs
import pytest

from kvreplay import (
    ExpiredError,
    IndeterminateError,
    Replay,
    ReplayKey,
    State,
    wsgi,
)
from kvreplay._protocol.keys import name
from kvreplay._protocol.record import decode, encode
from kvreplay.testing import ManualClock
from support.final_failures import Declined

__all__ = [
    "ANSWERED",
    "BESIDE",
    "CLAIMED",
    "DIGESTED",
    "DUE",
    "EXPIRED",
    "FAILED",
    "HTTP",
    "HTTP_KEYS",
    "LSP",
    "NAMESPACE",
    "OWNER",
    "PARAMS",
    "PRIVATE",
    "SECRET",
    "TOKEN",
    "TOMBSTONE",
    "TYPED",
    "TYPED_KEY",
    "Address",
    "Invoice",
    "address_of",
    "ask_all",
    "replay_on",
    "sealed",
    "web_on",
]

Address = tuple[str, str, str]

NAMESPACE: Final = "request_invoice"
PRIVATE: Final = "private"  # with params_key
HTTP: Final = "http"
SECRET: Final = b"a secret of at least 32 bytes, which no store holds"
LSP: Final = "02lsp-node-id"
PARAMS: Final = {"amount_msat": 250_000, "payment_hash": bytes(range(32))}

TOKEN: Final = bytes(range(16))
OWNER: Final = "5d1c1a2e-0000-4000-8000-6b7672706c61:2049:131:4611:4026531836:4711:987654"
"""An owner that no process has: its boot is over, so its lease decides."""

# Entries of others, beside the records: LDK's and a payment ledger's.
BESIDE: Final[Mapping[Address, bytes]] = {
    ("", "", "manager"): b"a channel manager",
    ("monitors", "", f"{'ab' * 32}_0"): b"a channel monitor",
    ("monitor_updates", f"{'ab' * 32}_0", "7"): b"an update of it",
    ("ledger", "payments", "payment-1"): b"42000 msat",
}


class Network(enum.Enum):
    REGTEST = "regtest"


@attrs.frozen
class Invoice:
    bolt11: str
    expires_at: datetime.datetime
    fee: Decimal
    network: Network
    hops: tuple[int, ...]


TYPED: Final = Invoice(
    "lnbcrt1...",
    datetime.datetime(2030, 1, 1, 12, tzinfo=datetime.UTC),
    Decimal("0.10"),
    Network.REGTEST,
    (1, 2),
)

# What the answered requests are for, and their keys, params and responses.
ANSWERED: Final[Mapping[str, tuple[ReplayKey, Any, Any]]] = {
    "answered": (ReplayKey(LSP, "session-1"), PARAMS, {"bolt11": "lnbcrt1..."}),
    "answered, all that msgpack holds": (
        ReplayKey(LSP, "session-2"),
        {"z": [None, True, 1.0, 2**63, -1], "a": {"é": b"\xff", "b": "text"}, "t": (1, "2")},
        [None, False, 1.5, -(2**63), b"\x00", "ключ", {"nested": [{"deep": []}]}],
    ),
    "answered with nothing": (ReplayKey(LSP, "session-3"), None, None),
    "answered, of an operation": (ReplayKey(LSP, "7", "refund"), {"msat": 7}, "refunded"),
    "answered, names that are hashed": (ReplayKey("Zürich / 1", "id 1"), [1], "hashed"),
    "answered, a name that is too long": (ReplayKey(LSP, "x" * 121), [2], "long"),
    "answered, a name like a hash": (ReplayKey("sha256-own", "sha256-own"), [3], "own"),
    "answered, without a scope": (ReplayKey("", "session-1"), [4], "anybody's"),
}
FAILED: Final[Mapping[str, tuple[ReplayKey, Declined]]] = {
    "failed": (ReplayKey(LSP, "failed-1"), Declined("limit", 1_000_000)),
    "failed, arguments that msgpack cannot hold": (ReplayKey(LSP, "failed-2"), Declined({1, 2})),
}
# Whether each is in doubt when all requests have been made.
CLAIMED: Final[Mapping[str, tuple[ReplayKey, bool]]] = {
    "in progress, its run has ended": (ReplayKey(LSP, "ended"), True),
    "in progress, its lease is over": (ReplayKey(LSP, "abandoned"), True),
    "in progress": (ReplayKey(LSP, "running"), False),
}
TOMBSTONE: Final = ReplayKey(LSP, "tombstone")
EXPIRED: Final = ReplayKey(LSP, "expired")
DUE: Final[Mapping[str, ReplayKey]] = {
    "answered, and due": ReplayKey(LSP, "due-1"),
    "tombstone, and due": ReplayKey(LSP, "due-2"),
}
DIGESTED: Final = ReplayKey(LSP, "private-1")
TYPED_KEY: Final = ReplayKey(LSP, "typed-1")
HTTP_KEYS: Final[Mapping[str, tuple[str, ReplayKey]]] = {
    "answered over HTTP": ("ietf", ReplayKey("alice", "k-1")),
    "answered over HTTP, profile acp": ("acp", ReplayKey("alice", "k-2", "/pay")),
}


def address_of(key: ReplayKey, namespace: str = NAMESPACE) -> Address:
    return namespace, name(key.scope), name(key.id, key.operation)


def replay_on(store: Any, clock: ManualClock, **settings: Any) -> Replay:
    """A replay with the settings of nearly all of the requests."""
    return Replay(
        store,
        **{
            "namespace": NAMESPACE,
            "ttl": "1d",
            "tombstone_ttl": "7d",
            "wait_timeout": 0,
            "clock": clock,
            "store_errors": (Declined,),
            **settings,
        },
    )


def ask_all(store: Any, clock: ManualClock) -> dict[Address, str]:
    """Make all requests, and write what is beside them; return which entry is what.

    The entries are in the order of their creation. When it ends, a claim still has a lease, and two entries are due.
    """
    made = dict[Address, str]()
    for number, (address, value) in enumerate(BESIDE.items()):
        store.write(*address, value)
        made[address] = "LDK's" if number < 3 else "a ledger's"
    for address, what in _records(store, clock):
        made[address] = what
        clock.advance(1)
    return made


def _records(store: Any, clock: ManualClock) -> Iterator[tuple[Address, str]]:
    replay = replay_on(store, clock)
    for what, (key, params, response) in ANSWERED.items():
        replay.execute(key, params, lambda response=response: response)
        yield address_of(key), what
    replay.execute(TYPED_KEY, PARAMS, lambda: TYPED, returns=Invoice)
    yield address_of(TYPED_KEY), "answered with a type"
    private = replay_on(store, clock, namespace=PRIVATE, params_key=SECRET)
    private.execute(DIGESTED, PARAMS, lambda: "digested")
    yield address_of(DIGESTED, PRIVATE), "answered, params digested"
    for what, (key, failure) in FAILED.items():
        with pytest.raises(Declined):
            replay.execute(key, PARAMS, _raising(failure))
        yield address_of(key), what
    for what, (profile, key) in HTTP_KEYS.items():
        status, _ = web_on(store, clock, profile, key, _pays)
        assert status == "201 Created"
        yield address_of(key, HTTP), what
    yield from _expired(store, clock)
    yield from _claims(store, clock)


def _expired(store: Any, clock: ManualClock) -> Iterator[tuple[Address, str]]:
    brief = {"ttl": 1}
    replay_on(store, clock, **brief).execute(EXPIRED, PARAMS, lambda: "expired")
    yield address_of(EXPIRED), "answered, and expired"
    one, other = DUE.values()
    replay_on(store, clock, **brief, tombstone_ttl=0).execute(one, PARAMS, lambda: "due")
    yield address_of(one), "answered, and due"
    for key, what, tombstone_ttl in (
        (TOMBSTONE, "tombstone", "7d"),
        (other, "tombstone, and due", "2s"),
    ):
        replay = replay_on(store, clock, **brief, tombstone_ttl=tombstone_ttl)
        replay.execute(key, PARAMS, lambda: "expired")
        clock.advance(1)
        with pytest.raises(ExpiredError):
            replay.lookup(key, PARAMS)
        yield address_of(key), what


def _claims(store: Any, clock: ManualClock) -> Iterator[tuple[Address, str]]:
    ended, abandoned, running = CLAIMED
    for what, lease in ((ended, "1h"), (abandoned, "1s"), (running, "1h")):
        key, _ = CLAIMED[what]
        address, seen = address_of(key), list[bytes]()
        replay = replay_on(store, clock, lease=lease, renew=False)

        def look(address: Address = address, seen: list[bytes] = seen) -> None:
            seen.append(store.read(*address))
            raise IndeterminateError("nobody knows")

        with pytest.raises(IndeterminateError):
            replay.execute(key, PARAMS, look)
        now = store.read(*address)
        # The claim as it was while its handler ran, as a kill of the process leaves it.
        left = now if what == ended else seen[0]
        assert store.check_and_put(*address, expected=now, value=sealed(left)) == now
        yield address, what


def sealed(data: bytes) -> bytes:
    """Return a claim with the token and the owner that stand here; any other record as it is."""
    record = decode(data)
    if record.state is not State.IN_PROGRESS:
        return data
    assert record.claim is not None
    return encode(attrs.evolve(record, claim=attrs.evolve(record.claim, token=TOKEN, owner=OWNER)))


def _raising(error: Exception) -> Callable[[], Any]:
    def handler() -> Any:
        raise error

    return handler


def _pays(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("201 Created", [("Content-Type", "application/json"), ("X-Own", "1")])
    return [b'{"id": 7}']


def web_on(
    store: Any, clock: ManualClock, profile: str, key: ReplayKey, application: Any
) -> tuple[str, bytes]:
    """POST to an application behind the WSGI layer; return the status and the body."""
    body = b'{"amount": 5}'
    layer = wsgi.IdempotencyMiddleware(
        application,
        Replay(store, HTTP, ttl="1d", clock=clock),
        scope=lambda environ: key.scope,
        profile=profile,
    )
    environ = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/pay",
        "QUERY_STRING": "",
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_IDEMPOTENCY_KEY": f'"{key.id}"' if profile == "ietf" else key.id,
        "wsgi.input": io.BytesIO(body),
    }
    started = list[str]()

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        started.append(status)
        return lambda written: None

    answer = layer(environ, start_response)
    said = b"".join(answer)
    if hasattr(answer, "close"):
        answer.close()
    return started[-1], said
