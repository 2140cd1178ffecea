"""``kvreplay show`` and ``find``: one record, and the key that a log line's digest stands for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import click

from kvreplay import ReplayKey, ReplayRecord
from kvreplay._inspection import (
    Inspection,
    Seen,
    existing,
    find_digest,
    find_key,
    request_of_http,
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
from kvreplay.cli.streams import complain
from kvreplay.http import downstream_key

__all__ = ["find", "found_by", "none_has", "print_record", "show"]


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
                print_json(told(seen, inspection, payload=payload))
            else:
                if shown:
                    print()
                print_record(seen, inspection, payload=payload)
            shown += 1
    return _end(shown, asked)


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
                rows = [(name, text(each)) for name, each in own.items() if each is not None]
                print_columns(rows, whole=True)
            found += 1
    return _end(found, asked)


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
        if (request := request_of_http(record)) is not None:
            rows += [
                ("request", f"{request.method} {text(os.fsdecode(request.path))}"),
                ("downstream", downstream_key(key)),
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
    print_columns(rows, whole=True)
    if payload and isinstance(record, ReplayRecord):
        for name, value in told_payload(record).items():
            print(f"{name}: {json.dumps(value, ensure_ascii=False, indent=2)}")


def _end(found: int, asked: ReplayKey | str) -> int:
    if not found:
        complain(f"kvreplay: {none_has(asked)}")
        return 1
    return 0


def none_has(asked: ReplayKey | str) -> str:
    """Say that no record has a key, and what is often the reason."""
    if isinstance(asked, str):
        return "no record has that key"
    if asked.id.startswith('"') and asked.id.endswith('"'):
        return "no record has that key; an id of the HTTP layers has no quotes"
    if asked.operation is None:
        return "no record has that key; if its function has an operation, give --operation"
    return "no record has that key"
