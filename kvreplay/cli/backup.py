"""``kvreplay backup``, ``restore`` and ``compact``: copies of a store, and its size on the disk."""

from __future__ import annotations

import os

import click

from kvreplay._inspection import (
    become_owner,
    copy_to_sqlite,
    existing,
    path_of,
    shown,
    url_of,
)
from kvreplay._migration import migrate
from kvreplay.cli import arguments
from kvreplay.cli.arguments import check_that_it_lasts
from kvreplay.cli.output import size
from kvreplay.cli.progress import showing
from kvreplay.config.registry import BACKENDS, settings_of
from kvreplay.errors import ConfigError, DestinationNotEmptyError
from kvreplay.store import BackupKVStore, CompactableKVStore, missing_methods

__all__ = ["backup", "compact", "restore"]

_OWN = ("", ".kvreplay", "-journal", "-wal", "-shm", "-kvreplay-lock")
"""How the names of a store's files go on after its path."""


@click.command(short_help="Copy a store while others write to it.")
@arguments.store
@click.argument("path", type=click.Path())
def backup(store: str, path: str) -> int:
    """Copy STORE to PATH, where nothing is yet, while others go on writing.

    The copy is a store of the same engine; of one on a server it is an SQLite store. It is on the
    disk when this returns. If this fails or is killed, nothing is at PATH. In LMDB and SQLite all
    entries are as they were at one moment, elsewhere each as it was at some moment meanwhile.
    """
    _check_place(path, path_of(store))
    path = os.path.abspath(path)
    with existing(store) as opened:
        engine = settings_of(store).backend
        if missing_methods(opened, BackupKVStore):
            engine = "sqlite"
            copy_to_sqlite(opened, path)
        else:
            opened.backup(path)
    existing({"backend": engine, "path": path}).close()
    print(f"copied {shown(store)}")
    print(f"look at the copy: kvreplay check {url_of(engine, path)}")
    return 0


def _check_place(path: str, source: str | None) -> None:
    """Refuse a place where the copy would be lost, or is not meant to be.

    Raises:
        ConfigError: nothing was copied.
    """
    engine, colon, rest = path.partition(":")
    if colon and engine in BACKENDS:
        raise ConfigError(f"PATH is a path, and no URL; nothing was copied: say {rest}")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ConfigError(
            f"there is no folder {folder}; nothing was copied: make it, or mount its disk"
        )
    if source is None:
        return
    own, place = os.path.realpath(source), os.path.join(os.path.realpath(folder), "")
    beside = os.path.join(place, os.path.basename(os.path.abspath(path)))
    if place.startswith((f"{own}/", f"{own}.kvreplay/")) or beside in {own + end for end in _OWN}:
        raise ConfigError(
            f"{path} would be one of the store's own files; nothing was copied: choose a place"
            " outside of it"
        )


@click.command(short_help="Make a store from a backup, and compare them.")
@click.argument("backup")
@click.argument("store")
def restore(backup: str, store: str) -> int:
    """Make STORE, where none is yet, from the store BACKUP: both are URLs, of any engines.

    What was answered since the backup is forgotten, so a retry of it runs its handler again: before
    your programs start, find out what they did since then. Requests that were in progress at the
    backup are in doubt. If it is interrupted, run the same command again.
    """
    check_that_it_lasts(store)
    become_owner(backup, store)
    try:
        with showing() as show:
            done = migrate(backup, store, with_claims=True, on_progress=show)
    except DestinationNotEmptyError as error:
        raise ConfigError(
            f"{shown(store)} is not empty; nothing was copied: name a place where no store is"
        ) from error
    print(f"{done.entries:,} entries are equal in both; {done.copied:,} were copied now")
    if done.claims:
        run, its = ("request was", "its") if done.claims == 1 else ("requests were", "their")
        then = "it is" if done.claims == 1 else "they are"
        print(f"{done.claims:,} {run} in progress; once {its} lease is over {then} in doubt")
    return 0


@click.command(short_help="Give the free space of a store's file back to the disk.")
@arguments.store
def compact(store: str) -> int:
    """Give the free space of STORE's file back to the disk: for LMDB and SQLite.

    Expired records leave free space in the file, which new ones take; so this is of use only once
    after many have gone. Stop the programs that use an LMDB store first. If it is interrupted, the
    old file is there, or the new one.
    """
    with existing(store) as opened:
        if missing_methods(opened, CompactableKVStore):
            raise ConfigError(
                f"{settings_of(store).backend}: such a store cannot be compacted; nothing was done:"
                " files take no more than they hold, and a server has its own means (PostgreSQL"
                " VACUUM, etcd compact and defrag)"
            )
        done = opened.compact()
    print(f"{size(done.before)} before, {size(done.after)} now")
    return 0
