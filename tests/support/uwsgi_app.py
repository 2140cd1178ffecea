"""A WSGI application as uWSGI's master loads it before it forks: it opens the store, and uses it.

``/KEY`` runs that key. Its handler notes its process in the file of effects, and never returns while
the file ``hold`` is there. The answer says how the request ended, in which process, and whether
the fork of that process ran Python's hooks.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kvreplay import KVReplayError, Replay, open_store

FOLDER = Path(os.environ["FOLDER"])
SETTINGS: dict[str, Any] = json.loads(os.environ["SETTINGS"])
hooks_that_ran: list[int] = []

os.register_at_fork(after_in_child=lambda: hooks_that_ran.append(os.getpid()))
replay = Replay(open_store(os.environ["STORE"]), "ns", ttl=60, wait_timeout=0, **SETTINGS)
master = replay.execute(("lsp", "of-the-master"), 1, os.getpid).response


def handler() -> int:
    with open(FOLDER / "effects", "a", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    while (FOLDER / "hold").exists():
        time.sleep(0.01)
    return os.getpid()


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    try:
        outcome = replay.execute(("lsp", environ["PATH_INFO"]), 1, handler)
        end = "replayed" if outcome.replayed else "answered"
    except KVReplayError as error:
        end = type(error).__name__
    start_response("200 OK", [("Content-Type", "application/json")])
    told = {"end": end, "pid": os.getpid(), "master": master, "hooks": hooks_that_ran}
    return [json.dumps(told).encode()]
