"""``kvreplay init STORE``: make the store that a program opens with ``create=false``."""

from __future__ import annotations

import attrs
import click

from kvreplay._inspection import become_owner, shown
from kvreplay.config.registry import StoreSettings, engine_of, settings_of
from kvreplay.errors import ConfigError, StoreNotFoundError

__all__ = ["init"]


@click.command(short_help="Make a store, so that your program can open it with create=false.")
@click.argument("store")
def init(store: str) -> int:
    """Make the store that the URL STORE names.

    It is written as in your configuration: lmdb:///var/lib/node/replay?map_size=4GiB. If the store
    is there already, nothing is changed. A program that opens it with create=false then never
    begins an empty store because of a mistyped path or a disk that is not mounted.
    """
    settings = settings_of(store)
    _check_that_it_can_be_made(settings)
    become_owner(store)
    place = shown(store)
    try:
        within = _opened_and_closed(settings, create=False)
    except StoreNotFoundError:
        within = _opened_and_closed(settings, create=True)
        print(f"made the store {place}{within}")
    else:
        print(f"the store {place}{within} is there already; nothing was changed")
    return 0


def _check_that_it_can_be_made(settings: StoreSettings) -> None:
    engine, name = engine_of(settings.backend, "the store URL"), settings.backend
    if engine.location == "none":
        raise ConfigError(
            f"a {name} store begins empty whenever it is opened: there is nothing to make"
        )
    if engine.options.get("create") != "boolean":
        raise ConfigError(
            f'the backend "{name}" has no option "create", so it may make its store whenever it is'
            " opened; nothing was opened: see its own documentation"
        )


def _opened_and_closed(settings: StoreSettings, *, create: bool) -> str:
    """Return where in the place it is, if the store says so: a URL need not name the schema."""
    options = {**settings.options, "create": create}
    store = attrs.evolve(settings, options=options).open()
    store.close()
    schema = getattr(store, "schema", None)
    return f' in the schema "{schema}"' if isinstance(schema, str) else ""
