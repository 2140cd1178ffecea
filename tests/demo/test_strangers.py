"""Clients that the node did not ask for: a foreign page, a slow one, too many of them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest

from kvreplay.demo.client import Client
from kvreplay.demo.node import Server

BODY = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "echo", "params": {}}).encode()
HEAD = f"POST / HTTP/1.1\r\nContent-Length: {len(BODY)}\r\n"


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """``serve(**bounds)`` starts a server in this process, and returns its port."""
    servers: list[tuple[Server, threading.Thread]] = []

    def start(methods: Mapping[str, Any] | None = None, **bounds: Any) -> int:
        server = Server(("127.0.0.1", 0), methods or {"echo": lambda params: "echo"}, **bounds)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return server.server_port

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def answer_of(connection: socket.socket) -> str:
    """Return all that comes until the connection is closed."""
    answer = b""
    while part := connection.recv(4096):
        answer += part
    return answer.decode()


def wait_until_served(port: int) -> None:
    """Ask until the server has seen that another's connection is closed."""
    served = False
    while not served:
        with suppress(OSError), connect(port) as later:  # a refused connection may be reset
            later.sendall(f"{HEAD}Host: localhost\r\nConnection: close\r\n\r\n".encode() + BODY)
            served = answer_of(later).startswith("HTTP/1.1 200 ")


def status_of(port: int, *hosts: str) -> str:
    with connect(port) as connection:
        lines = "".join(f"Host: {host}\r\n" for host in hosts)
        connection.sendall(f"{HEAD}{lines}Connection: close\r\n\r\n".encode() + BODY)
        connection.shutdown(socket.SHUT_WR)
        return answer_of(connection).split(" ")[1]


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (["127.0.0.1"], "200"),
        (["127.0.0.1:8332"], "200"),
        (["127.9.9.9"], "200"),
        (["localhost"], "200"),
        (["LocalHost:1"], "200"),
        (["evil.example"], "403"),
        (["evil.example:8332"], "403"),
        (["localhost.evil.example"], "403"),
        (["127.0.0.1.evil.example"], "403"),
        (["10.0.0.1"], "403"),
        (["127.0.0.1@evil.example"], "403"),
        (["127.0.0.1:80@evil.example"], "403"),
        (["localhost:evil.example"], "403"),
        (["127.0.0.1:"], "200"),
        (["evil.example:127.0.0.1"], "403"),
        ([""], "403"),
        ([":80"], "403"),
        ([], "403"),
        (["localhost", "evil.example"], "403"),
    ],
)
def test_a_foreign_host_is_refused(
    serve: Callable[..., int], hosts: list[str], status: str
) -> None:
    ran: list[str] = []
    assert status_of(serve({"echo": lambda params: ran.append("ran")}), *hosts) == status
    assert ran == (["ran"] if status == "200" else [])


def test_one_connection_too_many_is_told_so(serve: Callable[..., int]) -> None:
    port = serve(max_connections=2)
    with Client(port) as one, Client(port) as two:
        assert one.call("echo", {}) == two.call("echo", {}) == "echo"
        with connect(port) as third:
            assert answer_of(third).startswith("HTTP/1.1 503 ")
        assert one.call("echo", {}) == "echo"
    wait_until_served(port)


@pytest.mark.parametrize("part", ["head", "body", "first line"])
def test_who_sends_too_slowly_is_cut_off(serve: Callable[..., int], part: str) -> None:
    port = serve(max_connections=1, patience=0.3)
    sent = {
        "first line": "POST / HT",
        "head": f"{HEAD}X-Slow: ",
        "body": f"{HEAD}Host: localhost\r\n\r\n",
    }[part]
    with connect(port) as slow:
        slow.sendall(sent.encode())
        over = threading.Event()

        def drip() -> None:  # never silent for as long as the patience
            while not over.wait(0.05):
                try:
                    slow.sendall(b"x" if part != "body" else b" ")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            slow.settimeout(10)
            answer = answer_of(slow)
        except ConnectionError:
            answer = "reset"
        finally:
            over.set()
            dripping.join()
    assert answer in ("", "reset") or answer.startswith("HTTP/1.1 408 ")
    if part == "body":
        assert answer
    wait_until_served(port)  # its place is free again


def test_who_is_silent_between_two_requests_is_not_slow(serve: Callable[..., int]) -> None:
    port = serve(patience=0.05)
    with Client(port) as client:
        assert client.call("echo", {}) == "echo"
        assert not threading.Event().wait(0.2)  # longer than the patience for one request
        assert client.call("echo", {}) == "echo"
