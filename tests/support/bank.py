"""A bank over HTTP, in a process of its own: it is slow, forgets nothing, and pays whatever it is asked to pay.

``POST /transfers`` with ``{"amount": int, "to": str}`` notes the payment in the ledger, which is the effect, and
answers later. It notes the ``Idempotency-Key``, and never looks whether it has seen it: a bank that did would
hide a payment that was made twice. ``GET /transfers?key=…`` answers the payments with that key.

The word before the colon in ``to`` says what happens: ``"drops:carol"``. The bank that

* ``declines`` answers 402, and does not pay;
* ``is-away`` answers 503 the first time that it is asked to pay this name, and does not pay; later it pays;
* ``drops`` pays, and closes the connection without an answer;
* ``holds`` pays, and answers when it is told to, by ``POST /released`` with the same ``to``;

and with any other word, or none, it pays.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs

from support.programs import Program, unmeasured
from support.waiting import PATIENCE, until

__all__ = ["Bank", "Transfer"]


@attrs.frozen
class Transfer:
    """A payment that was made. ``at``: on the clock of ``time.monotonic()``, which all processes share."""

    id: str
    key: str | None
    to: str
    amount: int
    at: float


class Bank(Program):
    """The process, as the tests see it."""

    def __init__(self, folder: Path, delay: tuple[float, float] = (0.0, 0.0)) -> None:
        """Start it. Each answer comes so many seconds after its payment, at least and at most."""
        self._file = folder / "ledger"
        self._file.touch()
        tests = str(Path(__file__).parents[1])
        path = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
        super().__init__(
            [sys.executable, __file__, str(self._file), *map(str, delay)],
            {**unmeasured(), "PYTHONPATH": path},
        )
        self.url = f"http://127.0.0.1:{self.says()}"

    def transfers(self, to: str | None = None) -> Sequence[Transfer]:
        """All payments in their order, or those to one name."""
        lines = self._file.read_bytes().split(b"\n")[
            :-1
        ]  # what follows the last one is not whole yet
        every = [Transfer(**json.loads(line)) for line in lines]
        return [each for each in every if to is None or each.to == to]

    def paid(self, to: str) -> Transfer:
        """Wait until it has paid somebody, and return the payment."""
        until(lambda: self.transfers(to))
        return self.transfers(to)[0]

    def release(self, to: str) -> None:
        """Let the answers come that it holds back."""
        body = json.dumps({"to": to}).encode()
        with urllib.request.urlopen(f"{self.url}/released", body, PATIENCE) as answer:
            assert answer.status == 200


class _Books:
    """What the bank has paid, and whom it has refused or kept waiting."""

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_APPEND)
        self._lock = threading.Lock()
        self._transfers: list[Transfer] = []
        self._refused: set[str] = set()
        self._released: dict[str, threading.Event] = {}

    def pay(self, key: str | None, to: str, amount: int) -> Transfer:
        transfer = Transfer(f"t-{os.urandom(6).hex()}", key, to, amount, time.monotonic())
        with self._lock:
            os.write(self._fd, json.dumps(attrs.asdict(transfer)).encode() + b"\n")
            os.fsync(self._fd)
            self._transfers.append(transfer)
        return transfer

    def with_key(self, key: str) -> Sequence[Transfer]:
        with self._lock:
            return [each for each in self._transfers if each.key == key]

    def refuses_once(self, to: str) -> bool:
        with self._lock:
            is_first = to not in self._refused
            self._refused.add(to)
        return is_first

    def released(self, to: str) -> threading.Event:
        with self._lock:
            return self._released.setdefault(to, threading.Event())


class _Counter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    books: _Books
    delay: tuple[float, float]

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        found = self.books.with_key(query["key"][0])
        self._answer(200, {"transfers": [attrs.asdict(each) for each in found]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        to = asked["to"]
        if self.path == "/released":
            self.books.released(to).set()
            return self._answer(200, {})
        behaviour = to.partition(":")[0]
        if behaviour == "declines":
            self._take_time()
            return self._answer(402, {"declined": to})
        if behaviour == "is-away" and self.books.refuses_once(to):
            return self._answer(503, {})
        transfer = self.books.pay(self.headers["Idempotency-Key"], to, asked["amount"])
        if behaviour == "drops":
            self.close_connection = True
            return None
        if behaviour == "holds":
            self.books.released(to).wait()
        self._take_time()
        return self._answer(201, {"id": transfer.id})

    def _take_time(self) -> None:
        time.sleep(random.uniform(*self.delay))

    def _answer(self, status: int, body: Mapping[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class _Building(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *args: object) -> None:
        """Who asked was killed meanwhile."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger", type=Path)
    parser.add_argument("delay", type=float, nargs=2, help="seconds, at least and at most")
    told = parser.parse_args()
    served = {"books": _Books(told.ledger), "delay": tuple(told.delay)}
    with _Building(("127.0.0.1", 0), type("Counter", (_Counter,), served)) as building:
        print(building.server_address[1], flush=True)
        building.serve_forever()


if __name__ == "__main__":
    main()
