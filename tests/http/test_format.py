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
    "dafca280c0ce7c802c0e"
)


async def asgi_application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 201, "headers": HEADERS})
    await send({"type": "http.response.body", "body": b'{"id": 7}'})


def wsgi_application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("201 Created", [(name.decode(), value.decode()) for name, value in HEADERS])
    return [b'{"id": 7}']


def ask_asgi(store: AtomicKVStore, **settings: Any) -> None:
    async def ask() -> None:
        replay = AsyncReplay(store, "http", ttl="1h", clock=ManualClock())
        layer = asgi.IdempotencyMiddleware(
            asgi_application, replay, scope=lambda scope: KEY.scope, **settings
        )

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": BODY}

        async def send(message: object) -> None: ...

        headers = [(b"idempotency-key", b'"k-1"')]
        where = {"root_path": "/v1", "path": "/v1/pay/\u00e9", "query_string": b"a=%C3%A9"}
        await layer({"type": "http", "method": "POST", "headers": headers, **where}, receive, send)

    asyncio.run(ask())


def ask_wsgi(store: AtomicKVStore, **settings: Any) -> None:
    replay = Replay(store, "http", ttl="1h", clock=ManualClock())
    layer = wsgi.IdempotencyMiddleware(
        wsgi_application, replay, scope=lambda environ: KEY.scope, **settings
    )
    environ = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/v1",
        "PATH_INFO": "/pay/\u00e9".encode().decode("latin-1"),
        "QUERY_STRING": "a=%C3%A9",
        "CONTENT_LENGTH": str(len(BODY)),
        "HTTP_IDEMPOTENCY_KEY": '"k-1"',
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
        record = Replay(store, "http", ttl="1h").record(KEY)
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
def test_an_answer_that_is_too_large_has_no_body(ask: Any) -> None:
    with open_store("memory:") as store:
        ask(store, max_answer_bytes=8)
        record = Replay(store, "http", ttl="1h").record(KEY)
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
