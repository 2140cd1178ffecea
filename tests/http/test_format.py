"""What the HTTP layers store: docs/format.md says it, and these bytes are in users' stores."""

from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path
from typing import Any

import msgpack
import pytest

from kvreplay import AsyncReplay, AtomicKVStore, Replay, ReplayKey, asgi, open_store, wsgi
from kvreplay._http.answers import ANSWERS, answer_in
from kvreplay._http.canonical import canonical
from kvreplay.http import Answer, HTTPRequest, answer, answer_of, request_of
from kvreplay.testing import ManualClock

KEY = ReplayKey("alice", "k-1")
BODY = b'{"amount": 5}'
HEADERS = [
    (b"Content-Type", b"application/json"),
    (b"link", b"</a>"),
    (b"date", b"Fri, 27 Nov 2026 20:00:00 GMT"),
    (b"set-cookie", b"id=7"),
    (b"x-own", b"1"),
    (b"link", b"</b>"),
]
KEPT = [HEADERS[0], HEADERS[1], HEADERS[5]]

# The record of that request, pinned.
GOLDEN = (
    "9a0102a5616c696365a36b2d31c45584a4626f6479c420ba0045583c6e765a5ba6d529a963e2fda41f89"
    "4a79277f5f94b51f8184a3936aa470617468c40a2f76312f7061792fc3a9a57175657279c408613d2543"
    "33254139a66d6574686f64a4504f5354c45e83a6737461747573ccc9a7686561646572739392c40c436f"
    "6e74656e742d54797065c4106170706c69636174696f6e2f6a736f6e92c4046c696e6bc4043c2f613e92"
    "c4046c696e6bc4043c2f623ea4626f6479c4097b226964223a20377dcf000001b8dac5b400cf000001b8"
    "dfec1000c0ce192046d4"
)

ACP_GOLDEN = (
    "9a0102a5616c69636592ae2f76312f7061792f254333254139a36b2d31c43482a4626f6479c42091124e"
    "2004badfc9a40fad0a99867f254cd5f3ca9ed75b694aeb0be6664afe81a66d6574686f64a4504f5354c4"
    "5e83a6737461747573ccc9a7686561646572739392c40c436f6e74656e742d54797065c4106170706c69"
    "636174696f6e2f6a736f6e92c4046c696e6bc4043c2f613e92c4046c696e6bc4043c2f623ea4626f6479"
    "c4097b226964223a20377dcf000001b8dac5b400cf000001b8dfec1000c0ce7750b156"
)


async def asgi_application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 201, "headers": HEADERS})
    await send({"type": "http.response.body", "body": b'{"id": 7}'})


def wsgi_application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("201 Created", [(name.decode(), value.decode()) for name, value in HEADERS])
    return [b'{"id": 7}']


def ask_asgi(store: AtomicKVStore, **settings: Any) -> None:
    async def ask() -> None:
        replay = AsyncReplay(store, "http", ttl="24h", clock=ManualClock())
        layer = asgi.IdempotencyMiddleware(
            asgi_application, replay, scope=lambda scope: KEY.scope, **settings
        )

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": BODY}

        async def send(message: object) -> None: ...

        key = KEY.id if "profile" in settings else f'"{KEY.id}"'
        headers = [(b"idempotency-key", key.encode())]
        where = {"root_path": "/v1", "path": "/v1/pay/\u00e9", "query_string": b"a=%C3%A9"}
        await layer({"type": "http", "method": "POST", "headers": headers, **where}, receive, send)

    asyncio.run(ask())


def ask_wsgi(store: AtomicKVStore, **settings: Any) -> None:
    replay = Replay(store, "http", ttl="24h", clock=ManualClock())
    layer = wsgi.IdempotencyMiddleware(
        wsgi_application, replay, scope=lambda environ: KEY.scope, **settings
    )
    environ = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/v1",
        "PATH_INFO": "/pay/\u00e9".encode().decode("latin-1"),
        "QUERY_STRING": "a=%C3%A9",
        "CONTENT_LENGTH": str(len(BODY)),
        "HTTP_IDEMPOTENCY_KEY": KEY.id if "profile" in settings else f'"{KEY.id}"',
        "wsgi.input": io.BytesIO(BODY),
    }
    written: list[bytes] = []
    list(layer(environ, lambda status, headers: written.append))


each_layer = pytest.mark.parametrize("ask", [ask_asgi, ask_wsgi], ids=["asgi", "wsgi"])


@each_layer
def test_golden_bytes(ask: Any) -> None:
    with open_store("memory:") as store:
        ask(store)
        assert store.read("http", "alice", "k-1").hex() == GOLDEN


@each_layer
def test_what_the_bytes_say(ask: Any) -> None:
    with open_store("memory:") as store:
        ask(store)
        record = Replay(store, "http", ttl="24h").record(KEY)
    assert record is not None
    digest = hashlib.sha256(BODY).digest()
    path = "/v1/pay/\u00e9".encode()
    assert record.load_params() == {
        "body": digest,
        "method": "POST",
        "path": path,
        "query": b"a=%C3%A9",
    }
    assert record.load_response() == {
        "status": 201,
        "headers": [list(pair) for pair in KEPT],
        "body": b'{"id": 7}',
    }
    assert request_of(record) == HTTPRequest("POST", path, b"a=%C3%A9", digest)
    assert answer_of(record) == Answer(201, tuple(KEPT), b'{"id": 7}')


@each_layer
def test_golden_bytes_under_stripe(ask: Any) -> None:
    with open_store("memory:") as store:
        ask(store, profile="stripe")
        assert store.read("http", "alice", "k-1").hex() == GOLDEN


@each_layer
def test_golden_bytes_under_acp(ask: Any) -> None:
    key = ReplayKey("alice", "k-1", "/v1/pay/%C3%A9")
    digest = hashlib.sha256(b'{"amount":5e0}').digest()
    with open_store("memory:") as store:
        ask(store, profile="acp")
        (name,) = store.list("http", "alice")
        assert name == "sha256--vp1ktI6Tioa_k_NDH5hYJ1pEmaf1MXvicvjmEalQGs"
        assert store.read("http", "alice", name).hex() == ACP_GOLDEN
        record = Replay(store, "http", ttl="24h").record(key)
    assert record is not None
    assert record.load_params() == {"body": digest, "method": "POST"}
    path = "/v1/pay/\u00e9".encode()
    assert request_of(record) == HTTPRequest("POST", path, b"", digest)
    assert answer_of(record) == Answer(201, tuple(KEPT), b'{"id": 7}')


def test_the_form_of_json_under_acp() -> None:
    """Digests of it are in users' stores: it stays as it is."""
    text = """
        {"zone": null, "a": [1, -10, 0.5, 1.50E+3, 120000, 0, -0.0, 1e-7, true, false],
         "\u00e9": "\u00e9 \\u00E9 \\/ \\" \\n \\ud83d\\ude00", "\ufb33": {}, "\U0001f600": [], "d": "\x7f"}
    """
    assert canonical(text.encode()) == (
        b'{"a":[1e0,-1e1,5e-1,15e2,12e4,0,0,1e-7,true,false],"d":"\\u007f","zone":null,'
        b'"\\u00e9":"\\u00e9 \\u00e9 / \\" \\n \\ud83d\\ude00","\\ufb33":{},"\\ud83d\\ude00":[]}'
    )


@each_layer
def test_an_answer_that_is_too_large_has_no_body(ask: Any) -> None:
    with open_store("memory:") as store:
        ask(store, max_answer_bytes=8)
        record = Replay(store, "http", ttl="24h").record(KEY)
    assert record is not None
    assert record.load_response()["body"] is None
    assert answer_of(record) == Answer(201, tuple(KEPT), None)


def test_an_answer_that_settles_a_key_is_stored_as_the_layer_stores_one() -> None:
    made = answer(201, b'{"id": 7}', KEPT)
    assert made == {"status": 201, "headers": [list(pair) for pair in KEPT], "body": b'{"id": 7}'}
    assert list(made) == ["status", "headers", "body"]


def test_the_page_has_these_bytes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    _, _, below = page.partition("\n    9a0102")
    shown, _, _ = below.partition("\n\n")
    assert "9a0102" + "".join(shown.split()) == GOLDEN


# What is no answer.

RIGHT = {"status": 201, "headers": [[b"link", b"</a>"]], "body": b""}


def test_an_answer_is_read_whatever_the_order_of_its_map() -> None:
    turned = dict(reversed(RIGHT.items()))
    for each in (RIGHT, turned, RIGHT | {"since": "a later version"}):
        again = msgpack.unpackb(msgpack.packb(each))
        assert answer_in(again) == Answer(201, ((b"link", b"</a>"),), b"")


@pytest.mark.parametrize(
    "wrong",
    [
        *(None, 5, "text", b"bytes", [], [1, 2, 3], {}),
        *({name: RIGHT[name] for name in RIGHT if name != left_out} for left_out in RIGHT),
        *(RIGHT | {"status": each} for each in (None, True, "201", 201.0)),
        *(RIGHT | {"body": each} for each in (5, "text", [b""])),
        *(
            RIGHT | {"headers": each}
            for each in (None, 5, {}, "", [5], [None], ["ab"], [[b"link"]])
        ),
        *(RIGHT | {"headers": [each]} for each in ([b"link", "</a>"], ["link", b"</a>"])),
        RIGHT | {"headers": [[b"link", b"</a>"], [b"link", b"</b>", b"</c>"]]},
        RIGHT | {"headers": {b"link": b"</a>"}},
    ],
    ids=repr,
)
def test_everything_else_is_no_answer(wrong: Any) -> None:
    assert answer_in(wrong) is None
    with pytest.raises(TypeError):
        ANSWERS.decode(wrong)
