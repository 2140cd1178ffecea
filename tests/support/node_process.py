"""A process of a node, for tests that kill it: one request, as the JSON in argv says.

It prints ``running`` when its handler runs, waits there for a line on stdin if told to, appends a
line to the file of effects, and prints the outcome as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

import attrs

from kvreplay import AsyncReplay, IndeterminateError, KVReplayError, Replay, open_store


class KillingStore:
    """The real store; dies by SIGKILL before or after its n-th check-and-put."""

    awaited = None  # the calls of an event loop come here too

    def __init__(self, inner: Any, when: str, number: int) -> None:
        self._inner, self._when, self._left = inner, when, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def check_and_put(self, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if not self._left and self._when == "before":
            die()
        found = self._inner.check_and_put(*args, **kwargs)
        if not self._left:
            die()
        return found

    def check_and_put_each(self, changes: Any) -> list[Any]:
        """One request's changes come one at a time, even where a store takes many."""
        (change,) = changes
        return [self.check_and_put(**attrs.asdict(change))]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


def main(told: dict[str, Any]) -> None:
    # In the background a shell starts its processes with this signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def handler(*transaction: Any) -> Any:
        if told.get("effects"):
            with open(told["effects"], "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()}\n")
        if transaction:
            transaction[0].write("ledger", "", "hash", b"paid")
        say("running")
        if told.get("hold"):
            sys.stdin.readline()
        if told.get("die_in_handler"):
            die()
        if told.get("ends") == "unsure":
            raise IndeterminateError("the peer hung up")
        if told.get("ends") == "interrupted":
            if told["face"] == "async":  # there the first one only cancels the main task
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return {"by": os.getpid()}

    async def awaited_handler() -> Any:
        if told.get("ends"):  # in the main thread, which signals interrupt
            return handler()
        return await asyncio.to_thread(handler)

    store = open_store(told["url"])
    if "kill" in told:
        store = KillingStore(store, *told["kill"])  # type: ignore[assignment]
    key, params = tuple(told["key"]), told["params"]
    method = "execute_in_transaction" if told.get("transaction") else "execute"
    if told.get("ready"):
        say("ready")
        sys.stdin.readline()
    try:
        if told["face"] == "sync":
            replay = Replay(store, "ns", **told.get("settings", {"ttl": 60}))
            outcome = getattr(replay, method)(key, params, handler)
        else:
            areplay = AsyncReplay(store, "ns", **told.get("settings", {"ttl": 60}))
            call = getattr(areplay, method)
            run = handler if told.get("transaction") else awaited_handler

            async def go() -> Any:
                return await call(key, params, run)

            outcome = asyncio.run(go())
        say({"response": outcome.response, "replayed": outcome.replayed})
    except (KVReplayError, KeyboardInterrupt) as error:
        say({"error": type(error).__name__})
    if told.get("lives_on"):
        sys.stdin.readline()
    if told.get("die_after"):
        die()
    store.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
