"""The two stores of a migration: how they are opened, and what they must be able to do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import attrs

from kvreplay._migration.ldk_database import LdkDatabase
from kvreplay._migration.ldk_files import LAYOUTS, Layout, LdkFiles
from kvreplay.config.location import Asked, ask_table, ask_url, locate
from kvreplay.config.registry import check_settings, engine_of
from kvreplay.config.units import parse, wrong
from kvreplay.errors import ConfigError
from kvreplay.store import (
    Entry,
    ExpiringKVStore,
    InspectableKVStore,
    MigratableKVStore,
    missing_methods,
)

if TYPE_CHECKING:
    Where = str | Mapping[str, object] | MigratableKVStore

__all__ = ["Side", "check_two", "destination_of", "exactly", "is_ordered", "source_of"]


class _Closable(Protocol):
    def close(self) -> None: ...


@attrs.define(eq=False)
class Side:
    """One store of a migration. At its end it is closed, unless the caller had opened it.

    Attributes:
        name: what stands for the store in the mark; it shows no credentials.
    """

    store: Any
    name: str
    _owned: _Closable | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._owned is not None:
            self._owned.close()


def source_of(where: Where) -> Side:
    """Open the source, and never make one. LDK's own files are only read, and not adopted.

    Raises:
        ConfigError: what was asked for is wrong, or the store cannot be walked.
        StoreNotFoundError: there is none.
    """
    if not isinstance(where, str | Mapping):
        side = Side(where, repr(getattr(where, "identity", id(where))))
    else:
        asked = _asked(where, "the source")
        side = _table_of(asked, writable=False) or _ldk_of(asked) or _opened(asked, create=False)
    # It is not written to, so it may lack what a store is written with.
    _need(side, ["read", "list_all_keys"], "the source cannot be walked")
    if not missing_methods(side.store, ExpiringKVStore) and not hasattr(side.store, "read_entry"):
        side.__exit__(None, None, None)
        raise ConfigError(
            "the source has expiry but no read_entry, so that its expiry would be lost; nothing was"
            " copied: let that store have the method read_entry"
        )
    return side


def destination_of(where: Where) -> Side:
    """Open the destination, which is made if it is missing.

    Raises:
        ConfigError: what was asked for is wrong, or the store cannot keep what entries are.
    """
    if not isinstance(where, str | Mapping):
        side = Side(where, repr(getattr(where, "identity", id(where))))
    else:
        asked = _asked(where, "the destination")
        if "layout" in asked.options:
            raise wrong(
                asked.options["layout"].source,
                "only a source has a layout",
                "Leave it out: a filesystem store is written in LDK's layout v2.",
            )
        side = _table_of(asked, writable=True) or _opened(asked, create=None)
    missing = missing_methods(side.store, InspectableKVStore)
    _need(side, missing, "the destination cannot tell an entry's expiry")
    return side


def exactly(store: Any) -> Callable[[str, str, str], Entry]:
    """Return what reads an entry with its expiry; a store without expiry has none."""
    if hasattr(store, "read_entry"):
        read_entry: Callable[[str, str, str], Entry] = store.read_entry
        return read_entry
    return lambda primary, secondary, key: Entry(store.read(primary, secondary, key), None)


def is_ordered(store: object) -> bool:
    """Say whether a store knows the order in which its entries were created."""
    return callable(getattr(store, "list_paginated", None))


def check_two(source: Side, destination: Side) -> None:
    """Refuse a store that is to be copied into itself."""
    here, there = (getattr(each.store, "identity", each.store) for each in (source, destination))
    if here == there:
        raise ConfigError(
            "the source and the destination are one store; nothing was copied: name two"
        )


def _asked(where: str | Mapping[str, object], what: str) -> Asked:
    if isinstance(where, str):
        return ask_url(where, f"{what}'s URL", None)
    return ask_table(where, what, None)


def _opened(asked: Asked, *, create: bool | None) -> Side:
    engine = engine_of(asked.backend, asked.source)
    settings = check_settings(asked, engine)
    if create is not None and engine.options.get("create") == "boolean":
        settings = attrs.evolve(settings, options={**settings.options, "create": create})
    store = settings.open()
    location = settings.location
    if engine.location == "url":  # it says less than the store itself: where in the database it is
        location = repr(getattr(store, "identity", location))
    return Side(store, _name(settings.backend, location), store)


def _table_of(asked: Asked, *, writable: bool) -> Side | None:
    """Open ldk-node's table in PostgreSQL, if it is named."""
    table = asked.options.get("table")
    if asked.backend != "postgresql" or table is None:
        return None
    others = {name: each for name, each in asked.options.items() if name != "table"}
    engine = engine_of(asked.backend, asked.source)
    settings = check_settings(attrs.evolve(asked, options=others), engine)
    for name in settings.options:
        raise wrong(
            others[name].source,
            f'"{name}" is for our own tables, and a table of ldk-node\'s is asked for',
            "Leave it out; a table in another schema is table=SCHEMA.NAME.",
        )
    from kvreplay._migration.ldk_table import LdkTable  # imported late: it needs an extra

    name = str(parse("text", table.value, table.source))
    store = LdkTable(settings.location or "", name, writable=writable)
    return Side(store, _name("ldk-node", repr(store.identity)), store)


def _ldk_of(asked: Asked) -> Side | None:
    """Open LDK's own files for reading, if these are some that no store of ours has adopted."""
    layout = asked.options.get("layout")
    if asked.backend == "filesystem":
        if layout is not None:
            # One of LAYOUTS, which are the versions.
            version: Layout = parse(LAYOUTS, layout.value, layout.source)  # type: ignore[assignment]  # one of them
            others = {name: each for name, each in asked.options.items() if name != "layout"}
            asked = attrs.evolve(asked, options=others)
        else:
            version = "ldk-v2"
        path = _path(asked)
        if layout is not None or (os.path.isdir(path) and not os.path.isdir(f"{path}.kvreplay")):
            files = LdkFiles(path, version)
            return Side(files, _name("filesystem", path), files)
    if asked.backend == "sqlite" and layout is None:
        path = _path(asked)
        if os.path.isfile(path) and not os.path.lexists(f"{path}-kvreplay-lock"):
            database = LdkDatabase(path)
            return Side(database, _name("sqlite", path), database)
    return None


def _path(asked: Asked) -> str:
    """Check all that is asked for, as the engine would, and return the real path."""
    settings = check_settings(asked, engine_of(asked.backend, asked.source))
    return os.path.realpath(locate(asked, "path") or settings.location or "")


def _name(backend: str, location: str | None) -> str:
    # Hashed: the URL of a server may have a password.
    return hashlib.sha256(f"{backend}:{location}".encode(errors="surrogateescape")).hexdigest()


def _need(side: Side, methods: Sequence[str], otherwise: str) -> None:
    missing = [each for each in methods if not callable(getattr(side.store, each, None))]
    if missing:
        side.__exit__(None, None, None)
        raise ConfigError(f"{otherwise}: it has no {', '.join(missing)}; nothing was copied")
