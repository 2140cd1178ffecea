"""A process whose threads call one store and write down what they saw, as the JSON in argv says.

Each thread has a file of its own, with one JSON line before each call and one after it, written without
a buffer: a killed process leaves what it had begun. Times are those of CLOCK_MONOTONIC, which on Linux
is one clock for all processes of a machine. All threads start when standard input ends.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kvreplay import KeyNotFoundError, OutcomeUnknownError, StoreError, open_store

NAMESPACE = ("histories", "")


class Broken:
    """The real store, without transactions, and with one thing wrong."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        if name == "transaction":
            raise AttributeError(name)
        return getattr(self._store, name)


class ReadThenPut(Broken):
    """Its check-and-put is not one step."""

    def check_and_put(self, *address: str, expected: bytes | None, value: bytes | None) -> Any:
        found = read(self._store, *address)
        if found == expected:
            if value is None:
                self._store.remove(*address)
            else:
                self._store.write(*address, value)
        return found


class ReadsItsCache(Broken):
    """It reads what this process has last seen."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self._seen: dict[tuple[str, ...], bytes] = {}

    def read(self, *address: str) -> bytes:
        found = self._seen.get(address)
        if found is None:
            found = self._seen[address] = self._store.read(*address)
        return found

    def check_and_put(self, *address: str, expected: bytes | None, value: bytes | None) -> Any:
        found = self._store.check_and_put(*address, expected=expected, value=value)
        self._seen.pop(address, None)
        return found


class Forgets(Broken):
    """Every tenth write is acknowledged, and not done."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self._writes = itertools.count(1)

    def write(self, *args: Any) -> None:
        if next(self._writes) % 10:
            self._store.write(*args)


BROKEN = {each.__name__: each for each in (ReadThenPut, ReadsItsCache, Forgets)}


def read(store: Any, *address: str) -> bytes | None:
    try:
        found: bytes = store.read(*address)
    except KeyNotFoundError:
        return None
    return found


def named(value: bytes | None) -> str | None:
    """A short name for a value; of a long one its digest, so that a torn one has another."""
    if value is None or len(value) < 40:
        return None if value is None else value.decode()
    return hashlib.sha256(value).hexdigest()


class Caller:
    """One thread's calls, and what it saw of them."""

    def __init__(self, store: Any, name: str, told: dict[str, Any]) -> None:
        self._store = store
        self._name = name
        self._keys = told["keys"]
        self._faulty = told["faulty"]
        self._lazy = told["lazy"]
        self._weights = (0, 1, 0, 0) if told.get("only_reads") else (6, 4, 1, 1)
        self._rng = random.Random(name)
        self._known: dict[str, bytes | None] = dict.fromkeys(self._keys)
        self._values = itertools.count()
        self._file = open(Path(told["folder"], name), "wb", buffering=0)

    def call(self) -> None:
        """Make a call at random, on one of the first keys rather than on a later one."""
        key = self._rng.choices(self._keys, range(len(self._keys), 0, -1))[0]
        (kind,) = self._rng.choices(["check_and_put", "read", "write", "remove"], self._weights)
        expected = value = None
        if kind == "write" or (kind == "check_and_put" and self._rng.random() < 0.9):
            value = f"{self._name}-{next(self._values)}".encode()
            value *= self._rng.choice([1, 1, 1, 1, 1, 1, 1, 1000])
        if kind == "check_and_put":
            expected = self._known[key]
        self._record(kind, key, expected, value)

    def read_all(self) -> None:
        for key in self._keys:
            self._record("read", key, None, None)

    def _record(self, kind: str, key: str, expected: bytes | None, value: bytes | None) -> None:
        self._say(kind, key, named(expected), named(value))
        invoked = time.monotonic_ns()
        try:
            found = self._do(kind, key, expected, value)
        except OutcomeUnknownError:
            self._say("unknown", invoked)
        except StoreError:  # which says that nothing was changed
            if not self._faulty:
                raise
            self._say("refused", invoked)
        else:
            self._say("returned", invoked, time.monotonic_ns(), named(found))

    def _do(self, kind: str, key: str, expected: bytes | None, value: bytes | None) -> bytes | None:
        in_transaction = hasattr(self._store, "transaction") and self._rng.random() < 0.1
        address = (*NAMESPACE, key)
        found = None
        with self._store.transaction() if in_transaction else nullcontext(self._store) as place:
            if kind == "read":
                found = self._known[key] = read(place, *address)
            elif kind == "write":
                place.write(*address, value)
                self._known[key] = value
            elif kind == "remove":
                place.remove(*address, lazy=self._rng.random() < 0.5 and self._lazy)
                self._known[key] = None
            else:
                found = place.check_and_put(*address, expected=expected, value=value)
                self._known[key] = value if found == expected else found
        return found

    def _say(self, *what: object) -> None:
        self._file.write(json.dumps(what).encode() + b"\n")


def main(told: dict[str, Any], opens: Callable[[str], Any] = open_store) -> None:
    sys.setswitchinterval(1e-5)  # so that threads change over inside of calls too
    store = opens(told["url"])
    face = BROKEN[told["broken"]](store) if told["broken"] else store

    def work(number: int) -> None:
        own = Caller(face, f"{told['name']}-{number}", told)
        ready.wait()
        os.read(0, 1)
        try:
            for n in itertools.count() if told["operations"] is None else range(told["operations"]):
                own.call()
                if number == 0 and n == told["kill_at"]:
                    print("kill me", flush=True)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # at once, even where the other threads go on until they are killed

    ready = threading.Barrier(told["threads"] + 1)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(told["threads"])]
    for thread in threads:
        thread.start()
    ready.wait()
    print("ready", flush=True)
    for thread in threads:
        thread.join()
    Caller(face, f"{told['name']}-end", told).read_all()
    store.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
