"""One HTTP request, as a server hands it to an application, and applications that answer it.

There is no server: its sockets and its parser would hide what a layer adds.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, Final

__all__ = [
    "ANSWER",
    "BODY",
    "CALLER",
    "KEY",
    "Answer",
    "application",
    "asgi_scope",
    "asked",
    "caller_of_environ",
    "caller_of_scope",
    "started",
    "wsgi_application",
    "wsgi_environ",
]

PATH: Final = "/v1/payments"
CALLER: Final = "acct_1MqLzX2eZvKYlo2C"
KEY: Final = "8e03978e-40d5-43e8-bc93-6894a57f9324"

BODY: Final = (
    b'{"amount": 250000, "currency": "eur", "customer": "cus_9s6XKzkNRiz8i3", "method": "card",'
    b' "description": "Order 3104, two nights, breakfast included", "metadata": {"order": "3104",'
    b' "channel": "web"}, "capture": true}'
)
"""A request of 0.2 KB."""

ANSWER: Final = (
    b'{"id": "pay_3MtwBwLkdIwHu7ix28a3tqPa", "object": "payment", "amount": 250000, "currency":'
    b' "eur", "customer": "cus_9s6XKzkNRiz8i3", "status": "succeeded", "created": 1766839200,'
    b' "description": "Order 3104, two nights, breakfast included", "receipt":'
    b' "https://pay.example/receipts/CAcaFwoVYWNjdF8xTXFMelgyZVp2S1", "refunded": false}'
)
"""An answer of 0.3 KB."""

HEADERS: Final = (
    ("content-type", "application/json"),
    ("content-length", str(len(ANSWER))),
    ("location", f"{PATH}/pay_3MtwBwLkdIwHu7ix28a3tqPa"),
    ("cache-control", "no-store"),
)
_HEADERS: Final = [(name.encode(), value.encode()) for name, value in HEADERS]

_SENT: Final = (
    ("host", "pay.example"),
    ("user-agent", "shop/4.2 (python-httpx/0.28.1)"),
    ("accept", "application/json"),
    ("accept-encoding", "gzip, deflate"),
    ("connection", "keep-alive"),
    ("authorization", "Bearer rk_live_51MqLzX2eZvKYlo2C"),
    ("content-type", "application/json"),
    ("content-length", str(len(BODY))),
)
_NAMES: Final = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body."""


# ASGI.


def asgi_scope(key: str = KEY, method: str = "POST") -> dict[str, Any]:
    """Return a request's scope, with a key and an authenticated caller in it."""
    headers = [(name.encode(), value.encode()) for name, value in _SENT]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": PATH,
        "raw_path": PATH.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [*headers, (b"idempotency-key", f'"{key}"'.encode())],
        "client": ("192.0.2.7", 52_014),
        "server": ("192.0.2.1", 443),
        "state": {"caller": CALLER},
    }


def caller_of_scope(scope: Any) -> str | None:
    caller: str | None = scope["state"]["caller"]
    return caller


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Read the body and answer."""
    assert (await receive())["body"] == BODY
    await send({"type": "http.response.start", "status": 201, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


async def asked(app: Any, scope: dict[str, Any], body: bytes = BODY) -> Answer:
    """Hand one request to an ASGI application, as a server does; return the whole answer."""
    given: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        given.append(message)

    await app({**scope}, receive, send)
    start, *parts = given
    whole = parts[0]["body"] if len(parts) == 1 else b"".join(each["body"] for each in parts)
    return start["status"], start["headers"], whole


# WSGI.


def wsgi_environ(key: str = KEY, method: str = "POST") -> dict[str, Any]:
    """Return the same request's environ."""
    headers = {_NAMES.get(name, f"HTTP_{name.upper()}".replace("-", "_")): v for name, v in _SENT}
    return {
        **headers,
        "HTTP_IDEMPOTENCY_KEY": f'"{key}"',
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": PATH,
        "QUERY_STRING": "",
        "SERVER_NAME": "pay.example",
        "SERVER_PORT": "443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "caller": CALLER,
    }


def caller_of_environ(environ: dict[str, Any]) -> str | None:
    caller: str | None = environ["caller"]
    return caller


def wsgi_application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Read the body and answer."""
    assert environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])) == BODY
    start_response("201 Created", list(HEADERS))
    return [ANSWER]


def started(app: Any, environ: dict[str, Any], body: bytes = BODY) -> Answer:
    """Hand one request to a WSGI application, as a server does; return the whole answer."""
    given: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        given[:] = status, headers

    returned = app({**environ, "wsgi.input": io.BytesIO(body)}, start_response)
    try:
        whole = b"".join(returned)
    finally:
        if hasattr(returned, "close"):
            returned.close()
    status, headers = given
    return int(status[:3]), headers, whole
