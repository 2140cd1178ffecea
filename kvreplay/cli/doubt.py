"""``kvreplay doubt STORE``: what is in doubt, since when, and whose it is."""

from __future__ import annotations

import click

from kvreplay import ReplayRecord
from kvreplay._inspection import Condition, Inspection, existing, seen_in, told
from kvreplay.cli import arguments
from kvreplay.cli.output import age, key_line, many, moment, print_json, print_line, tell_if_empty
from kvreplay.cli.runs import run_in_words

__all__ = ["doubt"]


@click.command(short_help="List what is in doubt: since when, whose, alive or dead.")
@arguments.store
@arguments.namespace
@click.option("--running", is_flag=True, help="List the runs that go on too.")
@arguments.as_json
def doubt(store: str, namespace: str | None, running: bool, as_json: bool) -> int:
    """List the keys of STORE that are in doubt: a run began, and nobody knows how it ended.

    Find out what became of it, in the system that it acts on. Then resolve the key, if it happened,
    or release it. It walks the whole store, or the namespace, and blocks nobody.
    """
    found = going_on = 0
    with existing(store) as opened:
        inspection = Inspection(opened)
        for seen in seen_in(opened, namespace):
            record = seen.found
            if not isinstance(record, ReplayRecord) or record.claim is None:
                continue
            state = inspection.condition(seen)
            going_on += state is Condition.RUNNING
            if state is not Condition.IN_DOUBT and not (running and state is Condition.RUNNING):
                continue
            found += 1
            if as_json:
                print_json(told(seen, inspection))
                continue
            since, key = age(inspection.now - record.created_at), record.key
            print(f"{key.digest()}  {state.value} since {moment(record.created_at)}, {since}")
            print_line(key_line(f"    {seen.address[0]}  ", key.scope, key.id, key.operation))
            print_line(f"    {run_in_words(record, inspection)}")
        tell_if_empty(opened, namespace)
    if not as_json:
        if not found:
            print("nothing is in doubt")
        if going_on and not running:
            print(f"{many(going_on, 'run goes on', 'runs go on')}: --running lists them")
    return 0
