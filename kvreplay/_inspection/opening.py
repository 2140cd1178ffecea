"""Open the store that an operator names. It is never made, and its files stay its owner's."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import attrs

from kvreplay._inspection import ownership
from kvreplay.config.location import ask_url, locate, without_credentials
from kvreplay.config.registry import Engine, engine_of, settings_of
from kvreplay.errors import ConfigError, StoreNotFoundError
from kvreplay.events import logger

__all__ = ["become_owner", "existing", "outlives", "path_of", "shown", "url_of"]


def existing(where: str | Mapping[str, object]) -> Any:
    """Open the store at a URL, which must be there.

    Raises:
        ConfigError: the URL is wrong, or the store lives only in a process, as one in memory.
        StoreNotFoundError: there is none.
    """
    settings = settings_of(where)
    engine = engine_of(settings.backend, "the store URL")
    if engine.location == "none":
        raise ConfigError(
            f"a {settings.backend} store lives in its own process, so nobody else can look at it;"
            " nothing was opened"
        )
    options = dict(settings.options)
    if engine.options.get("create") == "boolean":
        options["create"] = False
    elif engine.location == "path" and not os.path.lexists(settings.location or ""):
        raise _none_at(where, engine)
    if engine.location == "path":
        ownership.become_owner(settings.location or "")
    with _quietly():
        try:
            return attrs.evolve(settings, options=options).open()
        except StoreNotFoundError as error:
            raise _none_at(where, engine) from error


def _none_at(where: str | Mapping[str, object], engine: Engine) -> StoreNotFoundError:
    look = "check the path, and whether its disk is mounted"
    if engine.location == "url":
        look = "check the URL, and whether it leads to the right server"
    return StoreNotFoundError(
        f"there is no store at {shown(where)}; nothing was made: {look}. kvreplay init makes a new"
        " one"
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep out of an operator's screen what a service logs once when it opens its store."""
    log = logger()
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def shown(where: str | Mapping[str, object]) -> str:
    """Return a store's URL without its credentials and its options."""
    settings = settings_of(where)
    place = settings.location or ""
    return f"{settings.backend}:{place}" if os.path.isabs(place) else without_credentials(place)


def url_of(engine: str, path: str) -> str:
    """Return the URL of a store's path, as one types it in a shell."""
    return shlex.quote(f"{engine}:{quote(os.fsencode(path))}")


def path_of(where: str) -> str | None:
    """Return where a store's files are, or are to be; ``None``: it has none."""
    asked = ask_url(where, "the store URL", None)
    if engine_of(asked.backend, asked.source).location != "path":
        return None
    return locate(asked, "path")


def become_owner(*stores: str) -> None:
    """If this is root, become the user who owns the stores, or the folders where they are to be.

    Raises:
        ConfigError: they belong to several users besides root.
    """
    ownership.become_owner(*(path for path in map(path_of, stores) if path is not None))


def outlives(where: str) -> bool:
    """Say whether a store outlives this process: one in memory does not."""
    asked = ask_url(where, "the store URL", None)
    return engine_of(asked.backend, asked.source).location != "none"
