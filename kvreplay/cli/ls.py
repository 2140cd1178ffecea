"""``kvreplay ls STORE``: its records, a page at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import click

from kvreplay import ReplayRecord
from kvreplay._inspection import (
    Condition,
    Filter,
    Inspection,
    Seen,
    existing,
    matching,
    page_of,
    replay_namespaces,
    told,
)
from kvreplay.cli import arguments
from kvreplay.cli.output import age, key_line, print_json, print_line, tell_if_empty
from kvreplay.cli.streams import complain

__all__ = ["ls"]


@click.command(short_help="List records: by state, scope and age, the newest first.")
@arguments.store
@arguments.namespace
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([each.value for each in Condition]),
    help="Only those in this state; may be given more than once.",
)
@click.option("--scope", help="Only those of this scope.")
@click.option("--id", "id_", help="Only those with this id, such as a client's key.")
@click.option("--older", type=arguments.TIME, help="Only those whose run began longer ago: 1h.")
@click.option("--newer", type=arguments.TIME, help="Only those whose run began since: 10min.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--after", metavar="TOKEN", help="Go on after a page: what it says at its end.")
@click.option("--all", "all_of_them", is_flag=True, help="All, in no order: for a pipe.")
@arguments.as_json
def ls(
    store: str,
    namespace: str | None,
    states: tuple[str, ...],
    scope: str | None,
    id_: str | None,
    older: float | None,
    newer: float | None,
    limit: int,
    after: str | None,
    all_of_them: bool,
    as_json: bool,
) -> int:
    """List the records of STORE, those whose run began last first.

    Each line has the key's digest, the state, how long ago its run began, the namespace unless it
    is named, the scope and the id. No params and no answers are shown. With --json each line is a
    JSON object. The token of the next page goes to the standard error. It walks the whole store,
    and blocks nobody.
    """
    if all_of_them and after is not None:
        raise arguments.misused("--all and --after exclude each other.")
    with existing(store) as opened:
        tell_if_empty(opened, namespace)
        inspection = Inspection(opened)
        asked = Filter(
            frozenset(map(Condition, states)) or None,
            scope,
            id_,
            None if newer is None else inspection.now - int(newer * 1000),
            None if older is None else inspection.now - int(older * 1000),
        )
        found = _found(inspection, namespace, asked)
        if all_of_them:
            _print_each(found, inspection, namespace, as_json)
            return 0
        page = page_of(found, limit, after)
        _print_each(iter(page.entries), inspection, namespace, as_json)
        if page.next is not None:
            complain(f"there are more: --after {page.next}")
    return 0


def _found(inspection: Inspection, namespace: str | None, asked: Filter) -> Iterator[Seen]:
    unreadable = asked.conditions is None or Condition.CORRUPT in asked.conditions
    # Only what is no record must be known to be in a replay namespace.
    known = replay_namespaces(inspection.store, namespace)[0] if unreadable else ()
    return matching(inspection, namespace, asked, is_replay=known.__contains__)


def _print_each(
    found: Iterator[Seen], inspection: Inspection, namespace: str | None, as_json: bool
) -> None:
    first = next(found, None)
    if first is None:
        complain("kvreplay: no record matches")
        return
    if not as_json:
        where = "" if namespace else "namespace  "
        print_line(f"{'digest':16}  {'state':8}  {'age':>10}  {where}scope  id")
    for seen in itertools.chain([first], found):
        if as_json:
            print_json(told(seen, inspection))
        else:
            print_line(_line(seen, inspection, namespace))


def _line(seen: Seen, inspection: Inspection, named: str | None) -> str:
    record, state = seen.found, inspection.condition(seen).value
    namespace, *names = seen.address
    where = "" if named else f"{namespace}  "
    if not isinstance(record, ReplayRecord):
        return f"{'':16}  {state:8}  {'':10}  {where}{'  '.join(names)}"
    key, old = record.key, age(inspection.now - record.created_at)
    before = f"{key.digest()}  {state:8}  {old:>10}  {where}"
    return key_line(before, key.scope, key.id, key.operation)
