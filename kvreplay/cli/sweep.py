"""``kvreplay sweep STORE``: remove what nobody needs any more, once or again and again."""

from __future__ import annotations

import threading

import click

from kvreplay import Replay
from kvreplay._inspection import Inspection, existing
from kvreplay.cli import arguments
from kvreplay.cli.output import age, many, tell_if_empty

__all__ = ["sweep"]


@click.command(short_help="Remove the expired records, once or again and again.")
@arguments.store
@arguments.needed_namespace
@click.option("--every", type=arguments.TIME, help="Sweep again and again, with this pause: 5min.")
def sweep(store: str, namespace: str, every: float | None) -> int:
    """Remove the records of STORE that have expired, and whose tombstone is over.

    A claim is never removed. Nothing outside of the namespace is. With --every it goes on until it
    is interrupted; a sweep that fails is told, and tried again the next time.
    """
    with existing(store) as opened:
        tell_if_empty(opened, namespace)
        replay = Inspection(opened).replay(namespace)
        if every is not None:
            print(f"sweeping {namespace} every {age(int(every * 1000))}", flush=True)
            with replay.sweeping(every):
                threading.Event().wait()
        print(f"removed {many(_sweep_all(replay), 'record')}")
    return 0


def _sweep_all(replay: Replay) -> int:
    removed, more = 0, True
    while more:
        swept = replay.sweep()
        removed, more = removed + swept.removed, swept.more
    return removed
