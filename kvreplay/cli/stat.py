"""``kvreplay stat STORE``: how large it is, what it holds, and what is due."""

from __future__ import annotations

from typing import Any

import click

from kvreplay._inspection import (
    Condition,
    Counts,
    Inspection,
    Namespace,
    count,
    existing,
    iso,
    shown,
)
from kvreplay.cli import arguments
from kvreplay.cli.output import age, many, moment, print_columns, print_json, print_line, size, text

__all__ = ["stat"]

_SCOPES = 5  # the largest, that are shown


@click.command(short_help="Count what a store has: by namespace, state and scope.")
@arguments.store
@arguments.namespace
@arguments.as_json
def stat(store: str, namespace: str | None, as_json: bool) -> int:
    """Count the entries of STORE: by namespace, state and scope.

    It tells their size, the run that is in doubt for the longest time, and how many entries a sweep
    would remove. Nothing is told of what other namespaces hold. It walks the whole store, and
    blocks nobody.
    """
    with existing(store) as opened:
        inspection = Inspection(opened)
        counts = count(inspection, namespace)
        if as_json:
            print_json(_as_json(counts, inspection), indent=2)
        else:
            _print(counts, inspection, shown(store))
    return 0


def _as_json(counts: Counts, inspection: Inspection) -> dict[str, Any]:
    return {
        "at": iso(inspection.now),
        "namespaces": {name: _namespace(each) for name, each in counts.replay.items()},
        "other_namespaces": {
            name: {"entries": each.entries, "bytes": each.bytes}
            for name, each in counts.others.items()
        },
        "entries_of_further_namespaces": counts.more,
    }


def _namespace(each: Namespace) -> dict[str, Any]:
    doubt = each.oldest_in_doubt
    return {
        "records": each.entries,
        "bytes": each.bytes,
        "states": {condition.value: each.conditions[condition] for condition in Condition},
        "due": each.due,
        "oldest": iso(each.oldest),
        "oldest_in_doubt": None
        if doubt is None
        else {"digest": doubt.key.digest(), "since": iso(doubt.created_at)},
        "scopes": dict(each.scopes.most_common()),
        "more_scopes": each.more_scopes,
    }


def _print(counts: Counts, inspection: Inspection, place: str) -> None:
    print_line(f"{place}  {moment(inspection.now)}")
    for name, each in counts.replay.items():
        print_line(f"\n{name}: {many(each.entries, 'record')}, {size(each.bytes)}")
        rows = [
            (f"  {condition.value}", f"{each.conditions[condition]:,}")
            for condition in Condition
            if each.conditions[condition]
        ]
        rows.append(("  due to be swept", f"{each.due:,}"))
        print_columns(rows, right=(1,))
        if each.oldest is not None:
            old = age(inspection.now - each.oldest)
            print_line(f"  the oldest record: {moment(each.oldest)}, {old} ago")
        if (doubt := each.oldest_in_doubt) is not None:
            since = age(inspection.now - doubt.created_at)
            print_line(f"  the oldest in doubt: {doubt.key.digest()}, since {since}")
        _print_scopes(each)
    if not counts.replay:
        print("no namespace has a replay record")
    if counts.others:
        print("\nother namespaces, which are not looked into")
        print_columns(
            [
                (f"  {name or '(empty)'}", many(each.entries, "entry", "entries"), size(each.bytes))
                for name, each in counts.others.items()
            ],
            right=(1, 2),
        )

    if counts.more:
        print(f"and {many(counts.more, 'entry', 'entries')} of further namespaces")


def _print_scopes(each: Namespace) -> None:
    if not each.scopes:
        return
    more = " or more" if each.more_scopes else ""
    print_line(f"  scopes: {len(each.scopes):,}{more}; the largest:")
    rows = [(f"    {n:,}", text(scope)) for scope, n in each.scopes.most_common(_SCOPES)]
    print_columns(rows, right=(0,))
