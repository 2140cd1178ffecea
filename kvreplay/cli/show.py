"""``kvreplay show`` and ``find``: one record, and the key that a log line's digest stands for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from kvreplay import ReplayKey, ReplayRecord
from kvreplay._inspection import (
    Inspection,
    Seen,
    existing,
    find_digest,
    find_key,
    told,
    told_payload,
)
from kvreplay.cli import arguments
from kvreplay.cli.output import (
    age,
    moment,
    print_columns,
    print_json,
    size,
    text,
)
from kvreplay.cli.runs import run_in_words

__all__ = ["find", "found_by", "print_record", "show"]


@click.command(short_help="Show one record.", epilog=arguments.KEY)
@arguments.store
@arguments.key_arguments
@arguments.namespace
@click.option("--payload", is_flag=True, help="Show the params and the answer too.")
@arguments.as_json
def show(
    store: str,
    key: tuple[str, ...],
    operation: str | None,
    namespace: str | None,
    payload: bool,
    as_json: bool,
) -> int:
    """Show the record of KEY in STORE: its state, its times, and whose run it is.

    The params and the answer are shown only with --payload: they may be secret. A digest is looked
    for in the whole store, or in the namespace; a scope and an id are found at once.
    """
    asked = arguments.key_or_digest(key, operation)
    with existing(store) as opened:
        inspection = Inspection(opened)
        shown = 0
        for seen in found_by(inspection, asked, namespace):
            if as_json:
                print_json(told(seen, inspection, payload=payload), indent=2)
            else:
                if shown:
                    print()
                print_record(seen, inspection, payload=payload)
            shown += 1
    return _end(shown)


@click.command(short_help="Find the key that a log line's digest stands for.")
@arguments.store
@click.argument("digest")
@arguments.namespace
@arguments.as_json
def find(store: str, digest: str, namespace: str | None, as_json: bool) -> int:
    """Print the key in STORE whose digest is DIGEST: 16 hex digits, as log lines and events show.

    It walks the whole store, or the namespace, and blocks nobody.
    """
    asked = arguments.key_or_digest((digest,), None)
    with existing(store) as opened:
        inspection = Inspection(opened)
        found = 0
        for seen in found_by(inspection, asked, namespace):
            record = seen.found
            assert isinstance(record, ReplayRecord)  # so it was found
            own = {
                "namespace": seen.address[0],
                "scope": record.key.scope,
                "id": record.key.id,
                "operation": record.key.operation,
            }
            if as_json:
                print_json(own)
            else:
                print_columns(
                    [(name, text(each)) for name, each in own.items() if each is not None]
                )
            found += 1
    return _end(found)


def found_by(
    inspection: Inspection, asked: ReplayKey | str, namespace: str | None
) -> Iterator[Seen]:
    """Yield what is stored for a key or a digest."""
    if isinstance(asked, str):
        return find_digest(inspection, asked, namespace)
    return find_key(inspection, asked, namespace)


def print_record(seen: Seen, inspection: Inspection, *, payload: bool = False) -> None:
    """Print what is known of a record, a line each."""
    record, now = seen.found, inspection.now
    rows = [("namespace", seen.address[0]), ("state", inspection.condition(seen).value)]
    if isinstance(record, ReplayRecord):
        key = record.key
        rows = [
            ("digest", key.digest()),
            rows[0],
            ("scope", text(key.scope)),
            ("id", text(key.id)),
            *([] if key.operation is None else [("operation", text(key.operation))]),
            rows[1],
            ("began", f"{moment(record.created_at)}, {age(now - record.created_at)} ago"),
        ]
        if record.claim is not None:
            rows.append(("run", run_in_words(record, inspection)))
        if record.expires_at is not None:
            rows.append(("expires", moment(record.expires_at)))
    else:
        rows.append(("problem", str(record).partition(":")[0]))
    rows += [
        ("swept from", moment(seen.entry.expires_at)),
        ("bytes", size(len(seen.entry.value))),
        ("address", " ".join(map(text, seen.address))),
    ]
    print_columns(rows)
    if payload and isinstance(record, ReplayRecord):
        for name, value in told_payload(record).items():
            print(f"{name}: {json.dumps(value, ensure_ascii=False, indent=2)}")


def _end(found: int) -> int:
    if not found:
        click.echo("kvreplay: no record has that key", err=True)
        return 1
    return 0
