"""A bank with a ledger, on a thread: what the services of the documents pay with."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from support.waiting import PATIENCE

__all__ = ["SmallBank"]


class SmallBank:
    """Pays what it is asked to pay, each time that it is asked: it compares no keys.

    How it behaves depends on who is to be paid:

    * ``declined``: answers 402, and ``closed``: 503; neither pays.
    * ``broken``: pays, and answers 500.
    * ``late``: pays, and answers only when :attr:`answers` is set.
    * ``queued``: does not pay before :attr:`takes_up` is set.
    * anybody else: is paid at once.
    """

    def __init__(self) -> None:
        self.ledger: list[dict[str, Any]] = []
        self.refused: set[str] = set()
        self.answers = threading.Event()
        self.takes_up = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Desk)
        self._server.daemon_threads = False  # so that all of them have ended when it is closed
        self._server.bank = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def paid(self, to: str) -> int:
        """Return how often somebody was paid."""
        return sum(each["to"] == to for each in self.ledger)

    def transfer(self, sent: dict[str, Any], key: str) -> tuple[int, dict[str, Any]]:
        """Return the answer to a request for a transfer."""
        to = sent["to"]
        if to in ("declined", "closed"):
            return {"declined": 402, "closed": 503}[to], {}
        if to == "queued":
            assert self.takes_up.wait(PATIENCE)
        with self._lock:
            if key in self.refused:
                return 409, {}
            made = {"id": f"t-{len(self.ledger) + 1}", "key": key, **sent}
            self.ledger.append(made)
        if to == "late":
            assert self.answers.wait(PATIENCE)
        return (500, {}) if to == "broken" else (201, {"id": made["id"]})

    def found(self, key: str) -> tuple[int, dict[str, Any]]:
        """Return what it knows of a key."""
        with self._lock:
            made = [each for each in self.ledger if each["key"] == key]
        return (200, {"id": made[0]["id"]}) if made else (404, {})

    def refuse(self, key: str) -> tuple[int, dict[str, Any]]:
        """Never make a transfer with this key, if none is made yet."""
        with self._lock:
            if any(each["key"] == key for each in self.ledger):
                return 409, {}
            self.refused.add(key)
            return 200, {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.answers.set()
        self.takes_up.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Desk(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        bank, body = self._bank, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/refusal"):
            self._tell(*bank.refuse(self.path.split("/")[2]))
        else:
            self._tell(*bank.transfer(json.loads(body), self.headers.get("Idempotency-Key", "")))

    def do_GET(self) -> None:
        self._tell(*self._bank.found(self.path.split("/")[2]))

    @property
    def _bank(self) -> SmallBank:
        bank: SmallBank = self.server.bank  # type: ignore[attr-defined]
        return bank

    def _tell(self, status: int, body: dict[str, Any]) -> None:
        encoded = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)
        except ConnectionError:
            pass  # the client has given up, which is what some of them are to do

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
