"""Print how much memory executions leave in use: ``python -m benchmarks.footprint DIR N``."""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

from benchmarks.workload import NAMESPACE, PARAMS, SCOPE, request_id, respond
from kvreplay import Replay, open_store
from kvreplay._runtime.singleflight import flights


def anonymous_bytes(*, collect: bool = True) -> int:
    """Return this process's resident memory, without mapped files such as LMDB's."""
    if collect:
        gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "RssAnon":
            return int(value.removesuffix("kB")) * 1024
    raise RuntimeError("this kernel does not report RssAnon")


def main(folder: str, executions: int) -> None:
    """Execute once to load everything, then so many times, and compare the memory."""
    with open_store(f"lmdb:{folder}/store") as store:
        replay = Replay(store, NAMESPACE, ttl=3600)
        replay.execute((SCOPE, request_id(0)), PARAMS, respond)
        before = anonymous_bytes()
        start = time.perf_counter()
        for number in range(1, executions + 1):
            replay.execute((SCOPE, request_id(number)), PARAMS, respond)
        seconds = time.perf_counter() - start
        growth = anonymous_bytes() - before
    print(
        json.dumps(
            {
                "executions": executions,
                "growth MiB": growth / 2**20,
                "flights left": len(flights),
                "µs an execution, no disk": seconds / executions * 1e6,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
