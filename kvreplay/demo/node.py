"""The node: a process that answers JSON-RPC 2.0 over HTTP, on the loopback address.

::

    python -m kvreplay.demo.node --config node.toml

It prints ``listening 127.0.0.1:PORT`` when it is ready. The config file is kvreplay's, with one
more table for the node::

    [node]
    host = "127.0.0.1"
    port = 0                       # 0: any free one
    seed = "its key is derived from this"

    [store]
    url = "lmdb:store"

    [replay.request_invoice]
    ttl = "1h"
    lease = "30s"
"""

from __future__ import annotations

import argparse
import io
import ipaddress
import logging
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import attrs

from kvreplay import Config, ConfigError, KVReplayError, load_config
from kvreplay.demo import rpc
from kvreplay.demo.invoice import NodeKey
from kvreplay.demo.orders import Orders

__all__ = ["NodeSettings", "main"]

MAX_BODY: Final = 64 * 1024
MAX_CONNECTIONS: Final = 256

_BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@attrs.frozen
class NodeSettings:
    """The ``[node]`` table, checked."""

    host: str = "127.0.0.1"
    port: int = 0
    seed: str = attrs.field(default="kvreplay demo", repr=False)

    @classmethod
    def read(cls, config: Config) -> NodeSettings:
        """Check the table; what it does not set has its default.

        Raises:
            ConfigError: it names the setting.
        """
        table = config.tables.get("node", {})
        if not isinstance(table, Mapping):
            raise ConfigError("[node]: it is not a table; nothing was started")
        for name in table:
            if name not in ("host", "port", "seed"):
                raise ConfigError(
                    f'[node]: unknown setting "{name}"; nothing was started.'
                    ' Valid: "host", "port", "seed".'
                )
        settings = cls(**table)
        if not _is_loopback(settings.host):
            raise ConfigError(
                "[node] host: it is no IPv4 loopback address, and this node does not check who"
                ' asks; nothing was started. Write "127.0.0.1".'
            )
        if type(settings.port) is not int or not 0 <= settings.port <= 65_535:
            raise ConfigError("[node] port: it is not from 0 to 65535; nothing was started")
        if not isinstance(settings.seed, str) or not settings.seed:
            raise ConfigError("[node] seed: it is not a text; nothing was started")
        return settings


class Server(ThreadingHTTPServer):
    """One thread for each of a limited number of connections; a stop lets running requests end."""

    request_queue_size = 512
    daemon_threads = True  # idle connections do not delay the end

    def __init__(
        self,
        address: tuple[str, int],
        methods: Mapping[str, rpc.Method],
        *,
        max_connections: int = MAX_CONNECTIONS,
        patience: float = 10.0,
    ) -> None:
        """Listen.

        Args:
            max_connections: one more is told *503* and closed.
            patience: seconds from the first byte of a request to its last, and for its answer to
                be taken.
        """
        self.methods = methods
        self.patience = patience
        self._free = threading.Semaphore(max_connections)
        self._running = 0
        self._idle = threading.Condition()
        super().__init__(address, Connection)

    def server_bind(self) -> None:
        """Bind, without asking the name service for this host's name as HTTPServer does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]  # IPv4

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the connection, if there may be one more."""
        if not self._free.acquire(blocking=False):
            request.settimeout(0)
            request.send(_BUSY)  # a new connection has room for it
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the connection on its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def answer(self, body: bytes) -> bytes | None:
        """Answer one body; while this runs, it counts as a running request."""
        with self._idle:
            self._running += 1
        try:
            return rpc.answer(body, self.methods)
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def wait_until_idle(self, timeout: float) -> None:
        """Wait until no request runs, but at most this many seconds."""
        with self._idle:
            self._idle.wait_for(lambda: not self._running, timeout)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing when a client goes away in the middle of a request."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Arriving(io.RawIOBase):
    """What a client sends: it may be silent between two requests, but not slow inside one."""

    def __init__(self, connection: socket.socket, idle: float, patience: float) -> None:
        self._connection = connection
        self._idle = idle
        self._patience = patience
        self._deadline: float | None = None  # of the request that has begun to arrive

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def begin(self, patience: float | None) -> None:
        """Wait for a request; or, given seconds, only so long for whatever still comes."""
        self._deadline = None if patience is None else time.monotonic() + patience

    def readinto(self, buffer: Any) -> int:
        """Read what is there, or wait for it.

        Raises:
            TimeoutError: the request has not arrived in time.
        """
        if self._deadline is None:
            self._connection.settimeout(self._idle)
            size = self._connection.recv_into(buffer)
            self.begin(self._patience)
            return size
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client is too slow")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class Connection(BaseHTTPRequestHandler):
    """One client's connection: any number of POSTs, one after the other."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "kvreplay-demo"
    timeout = 60  # seconds of silence between two requests
    wbufsize = -1  # the head and the body of an answer are sent together

    def setup(self) -> None:
        """Read by a deadline."""
        super().setup()
        self.rfile.close()
        self._arriving = Arriving(self.connection, self.timeout, self.server.patience)
        self.rfile = io.BufferedReader(self._arriving)

    def handle_one_request(self) -> None:
        """Wait for a request, and answer it."""
        self._arriving.begin(None)
        super().handle_one_request()

    def do_POST(self) -> None:
        """Answer one JSON-RPC body."""
        if not _is_own_host(self.headers.get_all("Host", [])):
            return self._refuse(403, "the Host is not this one")
        size = self.headers.get("Content-Length", "")
        if not (size.isascii() and size.isdigit()) or "Transfer-Encoding" in self.headers:
            return self._refuse(411, "send a Content-Length")
        if len(size) > 9 or int(size) > MAX_BODY:
            return self._refuse(413, f"a body has {MAX_BODY} bytes at most")
        try:
            body = self.rfile.read(int(size))
        except TimeoutError:
            return self._refuse(408, "the body is too slow")
        if len(body) < int(size):  # the client went away in the middle
            self.close_connection = True
            return None
        if self.path != "/":
            return self._refuse(404, "there is only /")
        return self._send(self.server.answer(body))

    def _send(self, content: bytes | None) -> None:
        self.connection.settimeout(self.server.patience)
        self.send_response(204 if content is None else 200)
        if content is not None:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if content is not None:
            self.wfile.write(content)

    def _refuse(self, status: int, problem: str) -> None:
        """Refuse, and close: nobody may know where the next request begins."""
        self.close_connection = True
        self.connection.settimeout(self.server.patience)
        self.send_error(status, problem)
        self.wfile.flush()
        # The client may still be sending: if we closed now, it would lose this answer.
        self._arriving.begin(1.0)
        while self.rfile.read1(MAX_BODY):
            pass

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log the request line: a client wrote it."""


def main(arguments: Sequence[str] | None = None, orders: Callable[..., Orders] = Orders) -> int:
    """Run a node until SIGTERM, SIGINT, or, if asked, the end of stdin; return the exit code."""
    asked = _parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config = load_config(asked.config, also=("node",))
        settings = NodeSettings.read(config)
        with config.open_store() as store:
            written = _hold if asked.hold_after_ledger else _go_on
            service = orders(store, config, NodeKey.from_seed(settings.seed), written)
            with service.replay.sweeping():
                _serve(settings, service, until_eof=asked.until_eof)
    except (KVReplayError, OSError) as error:
        print(f"kvreplay.demo.node: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before it served anything
        return 130
    return 0


def _serve(settings: NodeSettings, service: Orders, *, until_eof: bool) -> None:
    with Server((settings.host, settings.port), service.methods) as server:
        if until_eof:
            threading.Thread(target=_stop_at_eof, args=(server,), daemon=True).start()
        try:
            print(f"listening {settings.host}:{server.server_port}", flush=True)
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            pass
        server.wait_until_idle(5.0)


def _stop_at_eof(server: Server) -> None:
    """Stop when the process that started this node is gone, even by a kill."""
    stdin = sys.stdin.fileno()
    while os.read(stdin, 4096):  # sys.stdin itself would keep Python from ending
        pass
    server.shutdown()


def _go_on() -> None: ...


def _hold() -> None:
    """Say that this node holds, and wait for the SIGKILL."""
    print("holding", flush=True)
    threading.Event().wait()


def _is_own_host(hosts: list[str]) -> bool:
    """Whether a request names this machine by itself.

    A web page may have its own name resolve to 127.0.0.1. A browser then lets it talk to the node,
    but names that page as the host.
    """
    name, _, port = (hosts[0] if len(hosts) == 1 else "").partition(":")
    if port and not (port.isascii() and port.isdigit()):
        return False
    return name.lower() == "localhost" or _is_loopback(name)


def _is_loopback(host: object) -> bool:
    try:
        return isinstance(host, str) and ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kvreplay.demo.node",
        description="A node that answers async_order.request_invoice; a demonstration.",
    )
    parser.add_argument("--config", metavar="FILE", required=True, help="a TOML file")
    parser.add_argument(
        "--until-eof",
        action="store_true",
        help="stop when stdin ends, as it does when the parent process is gone",
    )
    parser.add_argument(
        "--hold-after-ledger",
        action="store_true",
        help='print "holding" when an invoice is in the ledger, and never answer',
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
