"""A process whose clients swap values of a PostgreSQL store, as the JSON in argv says, and write down what they saw.

It begins when it is told to on standard input, and ends after so many calls, or when it is told again. Each client has a file of its own, with one line of JSON before each check-and-put and one after it, written without a
buffer: a killed process leaves what it had begun. No two puts have the same value. ``support.swaps`` reads the files.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvreplay import OutcomeUnknownError, StoreError, open_store
from kvreplay.backends.postgresql.statements import Statement

ADDRESS = ("swaps", "")

NAIVE_SWAP = """
    WITH w AS (
        UPDATE {entries} SET value = %(value)s, expires_at = %(expires_at)s::bigint
        WHERE (primary_namespace, secondary_namespace, key) = (%(p)s, %(s)s, %(k)s) AND value = %(expected)s RETURNING 1)
    SELECT t.value, true, {now} FROM (SELECT) AS one LEFT JOIN {entries} AS t
    ON (t.primary_namespace, t.secondary_namespace, t.key) = (%(p)s, %(s)s, %(k)s)"""
"""It reads beside its write, and believes what it read."""

MERGE = """
    MERGE INTO {entries} AS t USING (SELECT %(p)s::text AS p, %(s)s::text AS s, %(k)s::text AS k) AS new
    ON (t.primary_namespace, t.secondary_namespace, t.key) = (new.p, new.s, new.k)
    WHEN MATCHED THEN UPDATE SET key = t.key
    WHEN NOT MATCHED THEN INSERT (primary_namespace, secondary_namespace, key, value, expires_at)
    VALUES (p, s, k, %(value)s, %(expires_at)s::bigint)
    RETURNING t.value, merge_action() = 'INSERT', {now}"""
"""It inserts what was absent when it began. PostgreSQL 18 can return what it did."""

ending = threading.Event()

PLANTED = {"naive": ("swap", NAIVE_SWAP), "merge": ("put_new", MERGE)}


def plant(store: Any, what: str, schema: str) -> None:
    """Put another statement in the place of the engine's own."""
    name, text = PLANTED[what]
    now = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    planted = Statement(text.format(entries=f'"{schema}".kvreplay_entries', now=now), changes=True)
    assert hasattr(store._operations.statements, name)
    setattr(store._operations.statements, name, planted)


class Client:
    """One client's calls; whoever makes them tells it how they ended."""

    def __init__(self, name: str, told: dict[str, Any]) -> None:
        self._name = name
        self._told = told
        self._rng = random.Random(name)
        self._known: dict[str, bytes | None] = dict.fromkeys(told["keys"])
        self._file = open(Path(told["folder"], name), "wb", buffering=0)

    def calls(self) -> Iterator[tuple[str, bytes | None, bytes | None]]:
        """Yield key, expected and value: every third or so removes what is there."""
        for n in itertools.count():
            if n == self._told["calls"] or ending.is_set():
                return
            key = self._rng.choice(self._told["keys"])
            expected, value = self._known[key], f"{self._name}.{n}".encode()
            put = None if expected is not None and self._rng.random() < 0.3 else value
            self._say(key, named(expected), named(put))
            yield key, expected, put

    def found(self, key: str, expected: bytes | None, value: bytes | None, seen: Any) -> None:
        self._say("found", named(seen))
        self._known[key] = value if seen == expected else seen

    def failed(self, error: StoreError) -> None:
        """Note how a call failed; without leave it ends the client."""
        kind = "unknown" if isinstance(error, OutcomeUnknownError) else "refused"
        self._say(kind, f"{type(error).__name__}: {error}")
        if not self._told["faults"]:
            raise error

    def _say(self, *what: object) -> None:
        self._file.write(json.dumps(what).encode() + b"\n")


def named(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def swap(store: Any, client: Client) -> None:
    for key, expected, value in client.calls():
        try:
            seen = store.check_and_put(*ADDRESS, key, expected=expected, value=value)
        except StoreError as error:
            client.failed(error)
        else:
            client.found(key, expected, value, seen)


async def swap_awaited(store: Any, client: Client) -> None:
    for key, expected, value in client.calls():
        try:
            seen = await store.check_and_put(*ADDRESS, key, expected=expected, value=value)
        except StoreError as error:
            client.failed(error)
        else:
            client.found(key, expected, value, seen)


def end_when_told() -> None:
    os.read(0, 1)
    ending.set()


def main(told: dict[str, Any]) -> None:
    names = [f"{told['name']}-{n}" for n in range(told["clients"])]
    with open_store(told["url"]) as store:
        if told["planted"]:
            plant(store, told["planted"], told["schema"])
        clients = [Client(name, told) for name in names]
        print("ready", flush=True)
        os.read(0, 1)
        threading.Thread(target=end_when_told, daemon=True).start()
        failures: list[BaseException] = []
        if told["face"] == "async":

            async def all_of_them() -> None:
                calls = [swap_awaited(store.awaited, client) for client in clients]
                ended = await asyncio.gather(*calls, return_exceptions=True)
                failures.extend(each for each in ended if each is not None)
                await store.awaited.close()

            asyncio.run(all_of_them())
        else:

            def work(client: Client) -> None:
                try:
                    swap(store, client)
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=work, args=(client,)) for client in clients]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    print(json.dumps([f"{type(each).__name__}: {each}" for each in failures]), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
