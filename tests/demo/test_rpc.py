"""JSON-RPC, at a real node."""

from __future__ import annotations

import json
import logging
import socket
import struct
from collections.abc import Mapping
from typing import Any

import pytest

from kvreplay.demo import rpc
from kvreplay.demo.client import Client, Node, ask_at_once
from kvreplay.demo.stage import REQUEST
from support.demo_node import GOOD, HASH


def call(**changed: object) -> dict[str, object]:
    request = {"jsonrpc": "2.0", "id": 7, "method": "node.status", "params": {}, **changed}
    return {name: value for name, value in request.items() if value is not ...}


# body, the id of the answer, its error code (None: a result), a part of its message
BODIES: list[tuple[object, object, int | None, str]] = [
    (call(), 7, None, ""),
    (call(id="text"), "text", None, ""),
    (call(id=None), None, None, ""),
    (call(id=1.5), 1.5, None, ""),
    (call(params=...), 7, None, ""),
    (b"", None, -32700, "parse error"),
    (b"{", None, -32700, "parse error"),
    (b'{"jsonrpc": "2.0", "id": 7, "method": "node.status"}'[:-1], None, -32700, "parse error"),
    (b"\xff\xfe", None, -32700, "UTF-8"),
    (b'{"jsonrpc": "2.0", "id": NaN, "method": "node.status"}', None, -32700, "parse error"),
    (b'{"jsonrpc": "2.0", "id": 1, "id": 2, "method": "node.status"}', None, -32700, "parse"),
    (b"[" * 60_000, None, -32700, "parse error"),
    (b'{"id": ' + b"9" * 5000 + b"}", None, -32700, "parse error"),
    (7, None, -32600, "not an object"),
    ("node.status", None, -32600, "not an object"),
    (call(jsonrpc=...), 7, -32600, "jsonrpc"),
    (call(jsonrpc="1.0"), 7, -32600, "jsonrpc"),
    (call(jsonrpc=2.0), 7, -32600, "jsonrpc"),
    (call(method=...), 7, -32600, "method"),
    (call(method=1), 7, -32600, "method"),
    (call(params="x"), 7, -32600, "params"),
    (call(params=None), 7, -32600, "params"),
    (call(id=True), None, -32600, "id"),
    (call(id={}), None, -32600, "id"),
    (call(id=..., method=1), None, -32600, "method"),
    (call(method="node.Status"), 7, -32601, "method not found"),
    (call(params=[]), 7, -32602, "by name"),
    (call(params={"x": 1}), 7, -32602, "x: there is no such field"),
    (call(method=REQUEST, params=...), 7, -32602, "lsp_node_id: it is missing"),
    (call(method=REQUEST, params={**GOOD, "payment_hash": "zz"}), 7, -32602, "payment_hash: "),
    (call(method=REQUEST, params={**GOOD, "amount_msat": True}), 7, -32602, "amount_msat: "),
    (call(method="node.invoice", params={"payment_hash": "0"}), 7, -32602, "payment_hash: "),
    (call(method="node.invoice", params={"payment_hash": HASH}), 7, None, ""),
    ([], None, -32600, "batch"),
    ([1] * 101, None, -32600, "batch"),
]


@pytest.mark.parametrize(("body", "id_", "code", "part"), BODIES)
def test_each_body_has_the_answer_that_json_rpc_says(
    node: Node, body: object, id_: object, code: int | None, part: str
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with Client(node.port) as client:
        http, content = client.post(data)
        again, _ = client.post(json.dumps(call()).encode())  # the connection is still good
    assert (http, again) == (200, 200)
    answer = json.loads(content)
    assert answer["jsonrpc"] == "2.0"
    assert answer["id"] == id_
    assert ("result" in answer) == (code is None)
    if code is not None:
        assert answer["error"]["code"] == code
        assert part in answer["error"]["message"]
        if code == -32602 and ": " in part:
            assert answer["error"]["data"] == {"field": part.partition(":")[0]}


def test_a_notification_runs_and_has_no_answer(node: Node) -> None:
    params = {**GOOD, "claim_session_id": "notified", "payment_hash": "11" * 32}
    with Client(node.port) as client:
        body = call(id=..., method=REQUEST, params=params)
        assert client.post(json.dumps(body).encode()) == (204, b"")
        assert client.post(json.dumps(call(id=..., method="nobody")).encode()) == (204, b"")
        answer = client.call(REQUEST, params)
        assert client.call("node.invoice", {"payment_hash": "11" * 32}) == answer


def test_a_batch_is_answered_one_by_one_without_its_notifications(node: Node) -> None:
    params = {**GOOD, "claim_session_id": "batched", "payment_hash": "22" * 32}
    request = call(method=REQUEST, params=params)
    batch = [request, call(id=...), 1, {**request, "id": 8}, call(id=9, method="nobody")]
    with Client(node.port) as client:
        _, content = client.post(json.dumps(batch).encode())
        only_notifications = json.dumps([call(id=...), call(id=...)]).encode()
        assert client.post(only_notifications) == (204, b"")
    first, wrong, second, nobody = json.loads(content)
    assert (first["id"], second["id"]) == (7, 8)
    assert first["result"] == second["result"]
    assert (wrong["id"], wrong["error"]["code"]) == (None, -32600)
    assert (nobody["id"], nobody["error"]["code"]) == (9, -32601)


OK_BODY = json.dumps(call()).encode()


@pytest.mark.parametrize(
    ("head", "body", "status_line"),
    [
        (f"POST / HTTP/1.1\r\nContent-Length: {len(OK_BODY)}\r\n", OK_BODY, "200"),
        (f"POST /x HTTP/1.1\r\nContent-Length: {len(OK_BODY)}\r\n", OK_BODY, "404"),
        ("POST / HTTP/1.1\r\n", b"", "411"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n", "411"),
        ("POST / HTTP/1.1\r\nContent-Length: -1\r\n", b"", "411"),
        ("POST / HTTP/1.1\r\nContent-Length: 65537\r\n", b"x" * 65537, "413"),
        ("POST / HTTP/1.1\r\nContent-Length: 9999999999\r\n", b"x" * 100, "413"),
        ("GET / HTTP/1.1\r\n", b"", "501"),
    ],
)
def test_http_that_is_no_call_is_refused(
    node: Node, head: str, body: bytes, status_line: str
) -> None:
    with socket.create_connection(("127.0.0.1", node.port), timeout=30) as connection:
        connection.sendall(f"{head}Host: 127.0.0.1:{node.port}\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert answer.startswith(f"HTTP/1.1 {status_line} ".encode())
    assert node.call("node.status", {})


@pytest.mark.parametrize("rudely", [False, True])
def test_a_client_that_leaves_in_the_middle_is_no_news(node: Node, rudely: bool) -> None:
    with socket.create_connection(("127.0.0.1", node.port), timeout=30) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        if rudely:  # a reset instead of an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert node.call("node.status", {})  # and at the end its log is empty


def test_asking_at_once_does_not_wait_for_who_cannot_connect(node: Node) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            ask_at_once([node.port, unused.getsockname()[1]], "node.status", {}, 4)
    assert len(ask_at_once([node.port], "node.status", {}, 4)) == 4


def test_a_bug_in_a_method_is_an_internal_error_that_shows_no_payload(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def boom(params: Mapping[str, Any]) -> object:
        raise KeyError(params["secret"])

    body = json.dumps(call(method="boom", params={"secret": "swordfish"})).encode()
    with caplog.at_level(logging.ERROR, logger="kvreplay.demo"):
        answer = rpc.answer(body, {"boom": boom})
    assert answer is not None
    assert json.loads(answer)["error"] == {"code": -32603, "message": "internal error"}
    assert "KeyError" in caplog.text
    assert "in boom" in caplog.text
    assert "swordfish" not in caplog.text
