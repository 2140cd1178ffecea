"""Open the store that an operator names. It is never made, and its files stay its owner's.

A command that is run as root beside a service could leave files that the service cannot open. So
root becomes the user who owns the store, for the rest of the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
from collections.abc import Iterator
from typing import Any

import attrs

from kvreplay.config.location import ask_url, locate, without_credentials
from kvreplay.config.registry import engine_of, settings_of
from kvreplay.errors import ConfigError, StoreNotFoundError
from kvreplay.events import logger

__all__ = ["become_owner", "existing", "shown"]


def existing(where: str) -> Any:
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
        raise StoreNotFoundError("there is no store at that path; nothing was opened")
    become_owner(where)
    with _quietly():
        return attrs.evolve(settings, options=options).open()


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


def shown(where: str) -> str:
    """Return a store's URL without its credentials and its options."""
    settings = settings_of(where)
    place = settings.location or ""
    return f"{settings.backend}:{place}" if os.path.isabs(place) else without_credentials(place)


def become_owner(*stores: str) -> None:
    """If this is root, become the user who owns the stores, or the folders where they are to be.

    Raises:
        ConfigError: they belong to several users besides root.
    """
    if os.geteuid() != 0:
        return
    owners = {_owner_of(path) for path in map(_path_of, stores) if path is not None}
    others = sorted(each for each in owners if each[0] != 0)
    if len({uid for uid, _ in others}) > 1:
        names = " and ".join(_name(uid) for uid, _ in others)
        raise ConfigError(
            f"the stores belong to {names}; nothing was done, since files of root's would be left"
            " behind: run the command as a user who may use both"
        )
    if others:
        _become(*others[0])


def _become(uid: int, gid: int) -> None:
    name = _name(uid)
    if not _can_read_code(uid, gid):
        raise ConfigError(
            f"the store belongs to {name}, who may not read this Python; nothing was done, since"
            f" files of root's would be left behind: run the command as {name}, by a Python that"
            " others may read"
        )
    try:
        os.initgroups(name, gid)
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:
        raise ConfigError(
            f"the store belongs to {name}, whom this process cannot become ({error.strerror});"
            f" nothing was done, since files of root's would be left behind: run it as {name}"
        ) from error


def _can_read_code(uid: int, gid: int) -> bool:
    """Say whether a user may read the modules that are not imported yet."""
    os.setegid(gid)
    os.seteuid(uid)
    try:
        return all(os.access(each, os.R_OK, effective_ids=True) for each in (os.__file__, __file__))
    finally:
        os.seteuid(0)
        os.setegid(0)


def _path_of(where: str) -> str | None:
    """Return where a store's files are, or are to be; ``None``: it has none."""
    asked = ask_url(where, "the store URL", None)
    if engine_of(asked.backend, asked.source).location != "path":
        return None
    return locate(asked, "path")


def _owner_of(path: str) -> tuple[int, int]:
    """Return the user and the group of a path, or of the nearest folder above it that exists."""
    while True:
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            path = os.path.dirname(path)
            continue
        return found.st_uid, found.st_gid


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
