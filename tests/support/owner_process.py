"""A process that runs one key, for tests of who owns it: the JSON in argv says how its handler acts.

It says ``running`` in the handler, and acts when it is told to on stdin. At last it says how the
request ended, and lives on until it is told again.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from kvreplay import AsyncReplay, IndeterminateError, Outcome, Replay, open_store
from kvreplay.clock import SystemClock

FORKS: dict[str, Callable[[], int]] = {
    "os": os.fork,
    "bare": lambda: int(ctypes.PyDLL(None).fork()),  # as a C library does it: no hook runs
}


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


def hear() -> None:
    sys.stdin.readline()


def act(told: dict[str, Any]) -> str:
    say("running")
    hear()
    how = told.get("act", "return")
    if how == "exec":
        program = "print('\"another program\"', flush=True); input()"
        os.execv(sys.executable, ["python", "-c", program])
    if how == "loses contact":
        raise IndeterminateError("no word from the ledger")
    if how == "is interrupted":
        raise KeyboardInterrupt
    if "fork" in told:
        child = FORKS[told["fork"]]()
        if child:
            os.waitpid(child, 0)
            say("child ended")
            hear()
        elif how == "child waits":
            say(os.getpid())
            hear()
            os._exit(0)
        elif how == "child raises":
            raise FileNotFoundError("no such payment tool")
        elif how == "child exits":
            sys.exit(3)
        else:
            return "of the child"
    return "r"


def daemonise() -> None:
    """Leave the parent, its session, and every descriptor but the standard ones."""
    if os.fork():
        hear()  # the test holds on to this process, which it has started
        os._exit(0)
    os.setsid()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def ended(me: int, call: Callable[[], Outcome]) -> Any:
    """Return how a request ended; a child says it at once, and ends too."""
    try:
        end = call().response
    except BaseException as error:  # an exit of a child too
        end = type(error).__name__
    if os.getpid() != me:
        say(f"child: {end}")
        os._exit(0)
    return end


async def awaited_end(me: int, replay: AsyncReplay, told: dict[str, Any]) -> Any:
    """The same on an event loop, whose end a child cannot wait for: it has none of its threads."""

    async def handler() -> str:
        if told.get("awaits"):  # else it stops the loop
            return await asyncio.to_thread(act, told)
        return act(told)

    task = asyncio.ensure_future(replay.execute(tuple(told["key"]), told["params"], handler))
    try:
        await asyncio.wait([task])
    finally:
        end = ended(me, task.result)
    return end


def main(told: dict[str, Any]) -> None:
    store = open_store(told["url"])
    settings = {"ttl": 60, "wait_timeout": 0, "lease": 0.001, **told.get("settings", {})}
    if told.get("own_clock"):
        settings["clock"] = SystemClock()
    if told.get("daemon"):
        Replay(store, "ns", **settings).execute(("lsp", "before"), 1, lambda: "before")
        daemonise()
        say(os.getpid())
    me, key, params = os.getpid(), tuple(told["key"]), told["params"]
    if told["face"] == "sync":
        replay = Replay(store, "ns", **settings)
        end = ended(me, lambda: replay.execute(key, params, lambda: act(told)))
    else:
        try:
            end = asyncio.run(awaited_end(me, AsyncReplay(store, "ns", **settings), told))
        except KeyboardInterrupt:  # it ends the loop, not only the task
            end = "KeyboardInterrupt"
    say(end)
    hear()
    store.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
