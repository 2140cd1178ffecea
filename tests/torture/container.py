"""A node in a container of its own, as far as processes can see: the JSON in argv says what it asks.

It says ``ready`` with its process id once its store is open, or why that was refused, and serves
when it is told to on stdin. A held key's run says ``running``, and goes on when told to.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from kvreplay import Replay, StoreUnavailableError, open_store
from torture.ledger import PARAMS, SCOPE, Ledger
from torture.node import MODES, Node


def main(told: dict[str, Any]) -> None:
    signal.alarm(100)  # whatever hangs
    try:
        store = open_store(told["url"])
    except StoreUnavailableError as error:
        print(error)
        return
    with store:
        print("ready", os.getpid(), flush=True)
        sys.stdin.readline()
        if "held" in told:
            Replay(store, "ns", ttl=60).execute((SCOPE, told["held"]), PARAMS, hold)
        node = Node(store, Ledger(Path(told["ledger"])), MODES[told["mode"]], **told["settings"])
        node.serve(told["keys"], told["threads"])
        print("done", flush=True)


def hold() -> str:
    print("running", flush=True)
    sys.stdin.readline()
    return "held"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
