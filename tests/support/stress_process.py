"""A process whose threads and tasks ask for the same keys, as the JSON in argv says.

An effect is a line in the ledger, a file that all processes append to, or an entry of the store where it
is one with its answer. What each caller is answered is a line in a file of its own, written without a
buffer. All callers start when standard input ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import random
import secrets
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import msgpack

from kvreplay import AsyncReplay, InFlightError, KVReplayError, Outcome, Replay, open_store
from kvreplay._runtime.singleflight import flights

START = 1_700_000_000_000
SETTINGS: dict[str, dict[str, Any]] = {
    "kept": {"ttl": 86_400},
    "brief": {"ttl": 2, "tombstone_ttl": 1},
}


class LedgerClock:
    """Time that goes on with what happens, for all processes: a byte of the ledger is a millisecond."""

    def __init__(self, ledger: str) -> None:
        self._ledger = ledger

    def now_ms(self) -> int:
        return START + os.stat(self._ledger).st_size


@attrs.frozen
class Request:
    """What is asked for the n-th key of a namespace: how is fixed for each key, save for a look-up."""

    namespace: str
    n: int
    how: str
    mistaken: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return f"lsp {self.n % 3}", f"session-{self.n}"

    @property
    def params(self) -> dict[str, Any]:
        preimage = b"%d" % self.n
        return {"amount": self.n + self.mistaken, "hash": hashlib.sha256(preimage).digest()}


def how(n: int) -> str:
    return ("claimed", "claimed", "in transaction", "claimless")[n % 4]


class Caller:
    """One thread or task: what it asks for, and what it is answered."""

    def __init__(self, name: str, told: dict[str, Any], ledger: int) -> None:
        self._told = told
        self._rng = random.Random(name)
        self._ledger = ledger
        self._file = open(Path(told["folder"], name), "wb", buffering=0)

    def requests(self, count: int | None) -> Iterator[Request]:
        """Yield requests for keys near to those that all others ask for at about this time."""
        keys, window, usual = self._told["keys"], 30, self._told["requests"]
        for step in itertools.count() if count is None else range(count):
            chance = self._rng.random()
            if chance < 0.15:
                yield Request("brief", self._rng.randrange(8), "claimed")
                continue
            n = (step % usual) * (keys - window) // usual + self._rng.randrange(window)
            if how(n) == "claimless":  # two processes may both run it: this one keeps to its own
                n += 4 * ((self._told["number"] - n // 4) % self._told["processes"])
            yield Request("kept", n, "looked up" if chance < 0.2 else how(n))
            if chance > 0.95 and how(n) == "claimed":
                yield Request("kept", n, "claimed", mistaken=True)

    def take_effect(self, request: Request) -> dict[str, Any]:
        """Do what must happen once, and return the answer to the request."""
        answer = self._answer(request)
        line = f"{request.namespace} {request.n} {answer['nonce']} {os.getpid()}\n"
        os.write(self._ledger, line.encode())
        return answer

    def take_effect_in(self, transaction: Any, request: Request) -> dict[str, Any]:
        answer = self._answer(request)
        count = int(transaction.read("effects", "count", "all"))
        transaction.write("effects", "", str(request.n), answer["nonce"].encode())
        transaction.write("effects", "count", "all", b"%d" % (count + 1))
        return answer

    def _answer(self, request: Request) -> dict[str, Any]:
        return {"n": request.n, "nonce": secrets.token_hex(8), "invoice": b"i" * (request.n % 500)}

    @contextmanager
    def noting(self, request: Request) -> Iterator[Callable[[Outcome | None], None]]:
        """Write down how the request ends."""

        def note(outcome: Outcome | None) -> None:
            if outcome is not None:
                end = "replayed" if outcome.replayed else "ran"
                self.say(end, request, msgpack.packb(outcome.response).hex())

        try:
            yield note
        except KVReplayError as error:
            if not (request.how == "looked up" and isinstance(error, InFlightError)):
                self.say(type(error).__name__, request)

    def say(self, end: str, request: Request, *more: object) -> None:
        line = [end, request.namespace, request.n, request.mistaken, *more]
        self._file.write(json.dumps(line).encode() + b"\n")


class Node:
    """The store, the ledger, and both kinds of replay on them."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        self.store = open_store(told["url"])
        self.ledger = os.open(told["ledger"], os.O_WRONLY | os.O_APPEND)
        # Without effects the ledger's time stands still, and so would those who wait for a lease.
        clock = None if told["by_lease"] else LedgerClock(told["ledger"])
        self.replays: dict[type, dict[str, Any]] = {
            kind: {
                name: kind(
                    self.store, namespace, clock=clock, wait_timeout=200, lease=lease, **more
                )
                for name, namespace, lease in (
                    ("kept", "kept", told["lease"]),
                    ("claimless", "kept", None),
                    ("brief", "brief", told["lease"]),
                )
                for more in (SETTINGS[namespace],)
            }
            for kind in (Replay, AsyncReplay)
        }
        self.stopped = threading.Event()

    def caller(self, name: str) -> Caller:
        return Caller(f"{self.told['number']}-{name}", self.told, self.ledger)

    def call(self, kind: type, request: Request, caller: Caller, handler: Any) -> Any:
        """Make the request; what is returned is the outcome, or an awaitable of it."""
        place = "claimless" if request.how == "claimless" else request.namespace
        replay = self.replays[kind][place]
        if request.how == "looked up":
            return replay.lookup(request.key, request.params)
        if request.how == "in transaction" and self.told["transactional"]:
            return replay.execute_in_transaction(
                request.key, request.params, lambda txn: caller.take_effect_in(txn, request)
            )
        return replay.execute(request.key, request.params, handler)

    def thread(self, number: int) -> None:
        caller = self.caller(f"thread-{number}")
        for step, request in enumerate(caller.requests(self.count)):
            if number == 0 and step == self.told["kill_at"]:
                self.be_killed(caller)
            with caller.noting(request) as note:
                note(self.call(Replay, request, caller, lambda r=request: caller.take_effect(r)))

    def be_killed(self, caller: Caller) -> None:
        """Wait for it in a handler, before its effect or after it; all other callers go on."""
        number = self.told["number"]
        request = Request("kept", 10**6 + 4 * number, "claimed")

        def handler() -> None:
            if number % 2:
                caller.take_effect(request)
            print("kill me", flush=True)
            threading.Event().wait()

        self.call(Replay, request, caller, handler)

    async def task(self, number: int) -> None:
        caller = self.caller(f"task-{number}")
        for request in caller.requests(self.count):

            async def handler(request: Request = request) -> dict[str, Any]:
                await asyncio.sleep(0)
                answer = caller.take_effect(request)
                await asyncio.sleep(0)
                return answer

            with caller.noting(request) as note:
                note(await self.call(AsyncReplay, request, caller, handler))

    async def tasks(self) -> None:
        async with self.replays[AsyncReplay]["brief"].sweeping(every=0.01, limit=3):
            await asyncio.gather(*(self.task(n) for n in range(self.told["tasks"])))

    def journal(self) -> None:
        """Change entries directly, with expiry and without, beside all replays until they are done."""
        rng = random.Random(self.told["number"])
        held: dict[str, bytes] = {}
        with open(Path(self.told["folder"], f"{self.told['number']}-journal"), "wb", 0) as file:
            for count in itertools.count():
                key, value = f"k{rng.randrange(30)}", b"%d" % count
                address = ("journal", f"p{self.told['number']}", key)
                file.write(json.dumps(["begun", key, count]).encode() + b"\n")
                if rng.random() < 0.5:
                    self.store.write(*address, value)
                else:
                    expected, expires_at = held.get(key), START + 10**12 + count
                    found = self.store.check_and_put(
                        *address, expected=expected, value=value, expires_at=expires_at
                    )
                    assert found == expected, "an entry changed that only this thread changes"
                held[key] = value
                file.write(json.dumps(["done", key, count]).encode() + b"\n")
                if self.stopped.is_set():
                    return

    @property
    def count(self) -> int | None:
        """How many requests each caller makes; ``None``: until it is killed."""
        return None if self.told["kill_at"] is not None else int(self.told["requests"])


def main(told: dict[str, Any]) -> None:
    node = Node(told)
    ready = threading.Barrier(told["threads"] + 3)

    def started(work: Callable[..., object], *args: object) -> threading.Thread:
        def run() -> None:
            ready.wait()
            os.read(0, 1)
            try:
                work(*args)
            except BaseException:
                traceback.print_exc()
                os._exit(1)  # at once, even where the others go on until they are killed

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    callers = [started(node.thread, n) for n in range(told["threads"])]
    callers.append(started(lambda: asyncio.run(node.tasks())))
    journal = started(node.journal)
    ready.wait()
    print("ready", flush=True)
    with node.replays[Replay]["brief"].sweeping(every=0.01, limit=3):
        with node.replays[Replay]["kept"].sweeping(every=0.01):
            for caller in callers:
                caller.join()
    node.stopped.set()
    journal.join()
    assert not len(flights), "a flight has not left the table"
    node.store.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
