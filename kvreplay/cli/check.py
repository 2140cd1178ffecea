"""``kvreplay check STORE``: every record, and the index of expiry."""

from __future__ import annotations

from typing import Any

import click

from kvreplay._inspection import (
    QUARANTINE,
    Bad,
    Inspection,
    existing,
    quarantine,
    replay_namespaces,
)
from kvreplay._inspection import (
    check as checked,
)
from kvreplay.cli import arguments
from kvreplay.cli.audit import audit
from kvreplay.cli.output import many, print_json, print_line, tell_if_empty, text
from kvreplay.cli.streams import complain

__all__ = ["check"]


@click.command(short_help="Check every record, and the index of expiry.")
@arguments.store
@arguments.namespace
@click.option(
    "--quarantine",
    "aside",
    is_flag=True,
    help="Move what is corrupt aside. It needs --namespace, and asks first.",
)
@arguments.yes
@arguments.as_json
def check(store: str, namespace: str | None, aside: bool, yes: bool, as_json: bool) -> int:
    """Check the records of STORE: checksum, key, shape, and the index of expiry against them.

    It prints where the bad ones are, and ends with the exit status 1 if there are some. With
    --quarantine a corrupt one is moved into the namespace kvreplay-quarantine. A request for its
    key runs the handler then, even if it ran before. It walks the whole store, and blocks nobody.
    """
    if aside and namespace is None:
        raise arguments.misused("--quarantine needs --namespace: nothing else is ever moved.")
    if aside and not yes:
        arguments.need_a_terminal()
        if not click.confirm("A request for a key that is moved aside runs its handler. Go on?"):
            complain("kvreplay: you did not agree; nothing was changed")
            return 1
    looked = bad = moved = 0

    def passed() -> None:
        nonlocal looked
        looked += 1

    with existing(store) as opened:
        namespaces, others = replay_namespaces(opened, namespace)
        for each in checked(Inspection(opened), namespaces, passed):
            bad += 1
            own = quarantine(opened, each.seen) if aside and each.seen is not None else None
            if own is not None:
                moved += 1
                audit(f"moved an entry of {namespace} into {QUARANTINE}, as {own}")
            _print(each, as_json, own is not None)
        tell_if_empty(opened, namespace)
    if as_json:
        print_json({"records": looked, "bad": bad, "moved": moved, "not_looked_at": others})
    else:
        aside_too = f", {moved:,} moved aside" if aside else ""
        where = ", ".join(namespaces) or "no namespace has a record"
        print(f"{many(looked, 'record')}, {many(bad, 'fault')}{aside_too} ({where})")
        if others:
            names = ", ".join(each or "(empty)" for each in others)
            print_line(f"not looked at, since no entry there is a record: {names}")
    return 1 if bad else 0


def _print(bad: Bad, as_json: bool, gone: bool) -> None:
    if as_json:
        told: dict[str, Any] = {"address": bad.address, "problem": bad.what, "moved": gone}
        print_json(told)
    else:
        where = "the store" if bad.address is None else "  ".join(map(text, bad.address))
        print_line(f"{where}: {bad.what}{' (moved aside)' if gone else ''}")
