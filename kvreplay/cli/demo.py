"""``kvreplay demo``: the story of a retried request, on a real node process."""

from __future__ import annotations

import os
import tempfile

import attrs
import click

from kvreplay.config.registry import StoreSettings, engine_of, settings_of
from kvreplay.errors import ConfigError, CorruptStoreError, StoreNotFoundError

__all__ = ["demo"]

_OWN_CLUSTER = "etcd:"  # as in the story, which is not imported yet


@click.command(short_help="Show, on a real node process, that a retry makes no second invoice.")
@click.option(
    "--store",
    metavar="URL",
    help="The store to use, of any engine: sqlite:store?durability=process. A relative path lies in"
    " the directory of --dir. In PostgreSQL the story has a new schema of its own, unless the URL"
    " names one; in etcd a new prefix below the URL's. With etcd: alone it starts three members of"
    " its own, and kills two of them. [default: LMDB, SQLite, files and memory, one after the"
    " other]",
)
@click.option(
    "--dir",
    "directory",
    metavar="PATH",
    help="A new or empty directory for the stores, configs and logs, which are kept, and so is what"
    " a server has. [default: a temporary one, removed at the end]",
)
@click.option(
    "--ldk",
    is_flag=True,
    help="Tell it on two real LDK nodes too. This needs Node.js 20 or later; npm downloads LDK, 24"
    " MB.",
)
def demo(store: str | None, directory: str | None, ldk: bool) -> int:
    """Start a real node process, race, kill and restart it, and check each step.

    Its async_order.request_invoice makes each invoice once. This needs the extra: pip install
    'kvreplay[demo]'. The exit code is 1 if a step is untrue.
    """
    if store == _OWN_CLUSTER:
        engine_of("etcd", "--store")  # or its extra is missing
    elif store is not None:
        _check_that_it_is_new(store, directory)
    from kvreplay.demo import story  # imported late: it needs an extra, and is slow

    return story.tell(story.STORES if store is None else (store,), directory, ldk=ldk)


def _check_that_it_is_new(store: str, directory: str | None) -> None:
    """Refuse a store that somebody may need: the story writes into it."""
    new = os.path.join(tempfile.gettempdir(), "kvreplay-demo-new")
    settings = settings_of(store, base=os.path.join(directory or new, "engine"))
    place = settings.location
    if engine_of(settings.backend, "--store").location == "url":
        _check_that_a_server_has_none(settings)
        return
    if place is None or not os.path.lexists(place):
        return
    if not os.path.isdir(place) or os.listdir(place):
        raise ConfigError(
            f"--store: there is something at {place}; nothing was started, since the story writes"
            " into its store: name a path where nothing is"
        )


def _check_that_a_server_has_none(settings: StoreSettings) -> None:
    options = engine_of(settings.backend, "--store").options
    if "create" not in options:
        return
    try:
        attrs.evolve(settings, options={**settings.options, "create": False}).open().close()
    except StoreNotFoundError:
        return
    except CorruptStoreError:  # something else is there
        if _has_its_own(settings):
            return
        raise
    if not _has_its_own(settings):
        raise ConfigError(
            "--store: there is a store already; nothing was started, since the story writes into"
            " its store: name a place where none is"
        )


def _has_its_own(settings: StoreSettings) -> bool:
    """Whether the story makes a place of its own on this server."""
    if settings.backend == "postgresql":
        return "schema" not in settings.options
    return settings.backend == "etcd"
