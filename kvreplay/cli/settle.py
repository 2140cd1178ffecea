"""``kvreplay resolve``, ``release`` and ``forget``: what a person decides about one key."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kvreplay import ReplayRecord
from kvreplay._inspection import Inspection, Seen, existing
from kvreplay.cli import arguments
from kvreplay.cli.audit import audit
from kvreplay.cli.show import found_by, print_record
from kvreplay.errors import InDoubtError, InFlightError
from kvreplay.http import answer, request_of

__all__ = ["forget", "release", "resolve"]


@click.command(
    short_help="Settle a key in doubt: it happened, and this is its answer.",
    epilog=arguments.KEY,
)
@arguments.store
@arguments.key_arguments
@arguments.needed_namespace
@click.option(
    "--response",
    metavar="JSON|@FILE",
    required=True,
    help="The answer, as JSON. For a key of the HTTP layers: its body.",
)
@click.option("--ttl", type=arguments.TIME, required=True, help="How long it is kept: 1h.")
@click.option(
    "--status", type=click.IntRange(200, 599), help="For a key of the HTTP layers: the status."
)
@click.option(
    "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Likewise; may be repeated."
)
@arguments.yes
def resolve(
    store: str,
    key: tuple[str, ...],
    operation: str | None,
    namespace: str,
    response: str,
    ttl: float,
    status: int | None,
    headers: tuple[str, ...],
    yes: bool,
) -> int:
    """Settle KEY in STORE, whose effect happened: every retry gets the answer that you give.

    It shows the record first, and asks. Only the run that it showed is settled, and none that began
    since. A run whose process lives is left alone.
    """
    given = _given(response)
    if headers and status is None:
        raise arguments.misused("--header is for a key of the HTTP layers: give its --status too.")

    def settle(seen: Seen, record: ReplayRecord, inspection: Inspection) -> bool:
        if status is None:
            if request_of(record) is not None:
                raise arguments.misused(
                    "The key is one of the HTTP layers: give the answer's --status too."
                )
            value = _json(given)
        else:
            value = answer(status, given, [_header(each) for each in headers])
        replay = inspection.replay(namespace)
        return replay.resolve(record.key, response=value, ttl=ttl, seen=record)

    return _change(
        store,
        (key, operation, namespace),
        settle,
        ("Has its effect happened, and is that its answer?", "resolved"),
        yes=yes,
    )


@click.command(
    short_help="Settle a key in doubt: it did not happen, and cannot any more.",
    epilog=arguments.KEY,
)
@arguments.store
@arguments.key_arguments
@arguments.needed_namespace
@arguments.yes
def release(
    store: str, key: tuple[str, ...], operation: str | None, namespace: str, yes: bool
) -> int:
    """Settle KEY in STORE, whose effect did not happen, and cannot any more: the next request runs.

    A process that was killed a moment ago may have sent a request that is still on its way. If you
    are wrong, the effect happens twice. It shows the record first, and asks.
    """

    def settle(seen: Seen, record: ReplayRecord, inspection: Inspection) -> bool:
        return inspection.replay(namespace).release(record.key, seen=record)

    return _change(
        store,
        (key, operation, namespace),
        settle,
        ("Are you sure that its effect did not happen, and cannot any more?", "released"),
        yes=yes,
    )


@click.command(
    short_help="Remove an answer before its time: the next request runs.", epilog=arguments.KEY
)
@arguments.store
@arguments.key_arguments
@arguments.needed_namespace
@arguments.yes
def forget(
    store: str, key: tuple[str, ...], operation: str | None, namespace: str, yes: bool
) -> int:
    """Remove the answer of KEY in STORE, or its stored failure: the next request runs the handler.

    A key that is running or in doubt has no answer, and is left alone. It shows the record first,
    and asks.
    """

    def settle(seen: Seen, record: ReplayRecord, inspection: Inspection) -> bool:
        return inspection.replay(namespace).forget(record.key, seen=record)

    return _change(
        store,
        (key, operation, namespace),
        settle,
        ("May the next request do it again?", "forgot"),
        yes=yes,
    )


_Settle = Callable[[Seen, ReplayRecord, Inspection], bool]


def _change(
    store: str,
    which: tuple[tuple[str, ...], str | None, str],
    settle: _Settle,
    words: tuple[str, str],
    *,
    yes: bool,
) -> int:
    """Show the record, ask, and settle what was seen. Exit status 1: nothing was changed."""
    key, operation, namespace = which
    question, done = words
    asked = arguments.key_or_digest(key, operation)
    if not yes:
        arguments.need_a_terminal()
    with existing(store) as opened:
        inspection = Inspection(opened)
        seen = next(found_by(inspection, asked, namespace), None)
        if seen is None:
            return _nothing("no record has that key")
        record = seen.found
        if not isinstance(record, ReplayRecord):
            raise record
        if not yes:
            print_record(seen, inspection)
            if not click.confirm(question, err=True):
                return _nothing("you did not agree")
        try:
            changed = settle(seen, record, inspection)
        except (InFlightError, InDoubtError) as error:
            return _nothing(str(error))
        if not changed:
            return _nothing(
                "the key has no run in doubt, or another record than the one that was looked at"
            )
        audit(f"{done} key {record.key.digest()} of {namespace}")
    return 0


def _nothing(why: str) -> int:
    said = "" if "nothing was changed" in why else "; nothing was changed"
    click.echo(f"kvreplay: {why}{said}", err=True)
    return 1


def _given(response: str) -> bytes:
    if not response.startswith("@"):
        return response.encode()
    return sys.stdin.buffer.read() if response == "@-" else Path(response[1:]).read_bytes()


def _json(given: bytes) -> Any:
    try:
        return json.loads(given)
    except ValueError as error:
        raise arguments.misused(
            f"--response is not JSON ({error}): a text stands in quotes, as in '\"paid\"'."
        ) from None


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise arguments.misused("--header is NAME: VALUE.")
    return name.strip(), value.strip()
