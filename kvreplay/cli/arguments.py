"""The arguments and options that several commands have."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from kvreplay import ReplayKey
from kvreplay._inspection import outlives
from kvreplay.clock import to_ms
from kvreplay.errors import ConfigError, KVReplayError
from kvreplay.store.durations import UNITS, measured
from kvreplay.store.names import check_namespace

__all__ = [
    "KEY",
    "TIME",
    "as_json",
    "check_that_it_lasts",
    "key_arguments",
    "key_or_digest",
    "misused",
    "namespace",
    "need_a_terminal",
    "needed_namespace",
    "store",
    "yes",
]

F = TypeVar("F", bound=Callable[..., Any])

KEY = "DIGEST is the 16 hex digits of a log line; or give the scope and the id."


def _checked(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        check_namespace(value, "")
        if not value:
            raise misused("A replay namespace has a name.")
    return value


store = click.argument("store")
namespace = click.option(
    "-n",
    "--namespace",
    metavar="NAME",
    callback=_checked,
    help="Only this replay namespace. [default: all that have a record]",
)
needed_namespace = click.option(
    "-n",
    "--namespace",
    metavar="NAME",
    callback=_checked,
    required=True,
    help="The replay namespace.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes = click.option("--yes", is_flag=True, help="Do not ask first.")

_is_digest = re.compile(r"[0-9a-f]{16}").fullmatch


class _Time(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.4
    """A duration, as in the configuration."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = measured(str(value))
        if found is None or found[1] not in UNITS:
            if found is not None and not found[1] and not found[0]:
                return 0.0
            self.fail(f"{value!r} is no duration: write 90s, 5min, 24h or 7d", param, ctx)
        try:
            return to_ms(str(value), "the duration") / 1000
        except KVReplayError as error:
            self.fail(str(error).partition(";")[0], param, ctx)


TIME = _Time()


def key_arguments(function: F) -> F:
    """Add ``KEY`` and ``--operation``."""
    function = click.option(
        "--operation", metavar="NAME", help="The function's operation=, if it has one."
    )(function)
    return click.argument("key", nargs=-1, required=True, metavar="(DIGEST | SCOPE ID)")(function)


def key_or_digest(key: tuple[str, ...], operation: str | None) -> ReplayKey | str:
    """Return the key that two words are, or the digest that one word is."""
    match key:
        case [digest] if operation is None:
            if _is_digest(digest.lower()) is None:
                raise misused(
                    "One word is a key's digest, which has 16 hex digits. A key has two: SCOPE ID."
                )
            return digest.lower()
        case [scope, id_]:
            try:
                return ReplayKey(scope, id_, operation)
            except KVReplayError as error:
                raise misused(str(error).partition(";")[0].capitalize()) from error
    raise misused(
        "A key is SCOPE ID, with --operation if its function has one, or the digest alone."
    )


def need_a_terminal() -> None:
    """Raise a ``UsageError`` if there is nobody to ask."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise misused("There is no terminal to ask: give --yes.")


def misused(message: str) -> click.UsageError:
    """Make the error for a command that is called wrongly; it names the command's help."""
    return click.UsageError(message, click.get_current_context(silent=True))


def check_that_it_lasts(store: str) -> None:
    """Refuse a destination that goes with this process.

    Raises:
        ConfigError: nothing was copied.
    """
    if not outlives(store):
        raise ConfigError(
            "what is copied into memory goes with this command; nothing was copied: name a store on"
            " a disk or a server"
        )
