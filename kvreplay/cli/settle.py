"""``kvreplay resolve``, ``release`` and ``forget``: what a person decides about one key."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kvreplay import ParamsDigest, ReplayRecord
from kvreplay._inspection import Condition, Inspection, existing, request_of_http
from kvreplay.cli import arguments
from kvreplay.cli.audit import audit
from kvreplay.cli.output import age, print_columns, text
from kvreplay.cli.show import found_by, none_has, print_record
from kvreplay.cli.streams import complain
from kvreplay.errors import InDoubtError, InFlightError
from kvreplay.http import answer

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
    help="The answer, as JSON. For a key of the HTTP layers: its body, of any type.",
)
@click.option(
    "--ttl",
    type=arguments.TIME,
    required=True,
    help="How long it is kept, such as 24h: as your Replay says.",
)
@click.option(
    "--tombstone-ttl",
    type=arguments.TIME,
    help="How long after that a retry is refused, and does not run. [default: as long as --ttl]",
)
@click.option(
    "--status", type=click.IntRange(200, 599), help="For a key of the HTTP layers: the status."
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="Likewise; may be repeated. [default: Content-Type: application/json]",
)
@arguments.yes
def resolve(
    store: str,
    key: tuple[str, ...],
    operation: str | None,
    namespace: str,
    response: str,
    ttl: float,
    tombstone_ttl: float | None,
    status: int | None,
    headers: tuple[str, ...],
    yes: bool,
) -> int:
    """Settle KEY in STORE, whose effect happened: every retry gets the answer that you give.

    It shows the record and the answer first, and asks. Only the run that it showed is settled, and
    none that began since. A run whose process lives is left alone.
    """
    given = _given(response)
    if headers and status is None:
        raise arguments.misused("--header is for a key of the HTTP layers: give its --status too.")
    value = _json(given) if status is None else _http(status, given, headers)

    def check(record: ReplayRecord) -> None:
        is_http = request_of_http(record) is not None
        if is_http and status is None:
            raise arguments.misused("The key is one of the HTTP layers: give --status too.")
        if status is not None and not is_http and not isinstance(record.params, ParamsDigest):
            raise arguments.misused(
                "The key is not one of the HTTP layers: leave out --status and --header."
            )
        if not yes:
            _show(value, ttl)

    def settle(record: ReplayRecord, inspection: Inspection) -> bool:
        tombstone = ttl if tombstone_ttl is None else tombstone_ttl
        return inspection.resolve(namespace, record, value, ttl, tombstone)

    return _change(
        store,
        (key, operation, namespace),
        settle,
        ("Has its effect happened, and is that its answer?", "resolved"),
        yes=yes,
        check=check,
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

    def settle(record: ReplayRecord, inspection: Inspection) -> bool:
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

    def settle(record: ReplayRecord, inspection: Inspection) -> bool:
        return inspection.replay(namespace).forget(record.key, seen=record)

    return _change(
        store,
        (key, operation, namespace),
        settle,
        ("May the next request do it again?", "forgot"),
        yes=yes,
    )


_Settle = Callable[[ReplayRecord, Inspection], bool]


def _no_more(record: ReplayRecord) -> None:
    """Nothing more is checked of a record, or shown."""


def _change(
    store: str,
    which: tuple[tuple[str, ...], str | None, str],
    settle: _Settle,
    words: tuple[str, str],
    *,
    yes: bool,
    check: Callable[[ReplayRecord], None] = _no_more,
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
            return _nothing(none_has(asked))
        record = seen.found
        if not isinstance(record, ReplayRecord):
            raise record
        if (why := _not_for(done, inspection.condition(seen))) is not None:
            return _nothing(why)
        if not yes:
            print_record(seen, inspection)
        check(record)
        if not yes and not click.confirm(question, err=True):
            return _nothing("you did not agree")
        try:
            changed = settle(record, inspection)
        except (InFlightError, InDoubtError) as error:
            return _nothing(str(error).partition(":")[0])
        if not changed:
            return _nothing("the key has another record than the one that was looked at")
        audit(f"{done} key {record.key.digest()} of {namespace}")
    return 0


def _not_for(done: str, condition: Condition) -> str | None:
    """Say why nothing is to be done with a key in this condition; ``None``: something is."""
    if condition is Condition.RUNNING:
        return "the key is running, or may be: its owner lives, or its lease is not over"
    if done == "forgot":
        if condition is Condition.IN_DOUBT:
            return "the key is in doubt, and has no answer to forget: resolve it, or release it"
        return None
    if condition is Condition.IN_DOUBT:
        return None
    return f"the key is not in doubt: it is {condition.value}"


def _nothing(why: str) -> int:
    said = "" if "nothing was changed" in why else "; nothing was changed"
    complain(f"kvreplay: {why}{said}")
    return 1


def _given(response: str) -> bytes:
    if not response.startswith("@"):
        return os.fsencode(response)
    try:
        return sys.stdin.buffer.read() if response == "@-" else Path(response[1:]).read_bytes()
    except (OSError, AttributeError) as error:  # there is no standard input
        why = getattr(error, "strerror", None) or "there is no standard input"
        raise arguments.misused(f"--response: {response[1:]} cannot be read: {why}.") from None


def _json(given: bytes) -> Any:
    try:
        return json.loads(given, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, json.JSONDecodeError) else "it is out of range"
        raise arguments.misused(
            f"--response is not JSON ({why}): a text stands in quotes, as in '\"paid\"'."
        ) from None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)  # NaN and Infinity are no JSON


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _http(status: int, body: bytes, headers: tuple[str, ...]) -> dict[str, Any]:
    pairs = [_header(each) for each in headers]
    types = [value for name, value in pairs if name.lower() == "content-type"]
    if status == 204 and body:
        raise arguments.misused("A 204 has no body: give --response ''.")
    if body and (not types or "json" in types[0].lower()):
        _json(body)
    if body and not types:
        pairs.append(("Content-Type", "application/json"))
    return answer(status, body, pairs)


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise arguments.misused("--header is NAME: VALUE.")
    return name.strip(), value.strip()


def _show(value: Any, ttl: float) -> None:
    """Show the answer that is to be stored."""
    if isinstance(value, dict) and isinstance(value.get("body"), bytes):
        rows = [("status", str(value["status"]))]
        rows += [
            (name.decode("latin-1"), each.decode("latin-1")) for name, each in value["headers"]
        ]
        rows.append(("body", text(value["body"].decode(errors="backslashreplace"))))
    else:
        rows = [("answer", text(json.dumps(value, ensure_ascii=False)))]
    print_columns([*rows, ("kept for", age(int(ttl * 1000)))], whole=True)
