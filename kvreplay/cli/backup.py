"""``kvreplay backup``, ``restore`` and ``compact``: copies of a store, and its size on the disk."""

from __future__ import annotations

import os

import click

from kvreplay._inspection import become_owner, copy_to_sqlite, existing, shown
from kvreplay._migration import migrate
from kvreplay.cli import arguments
from kvreplay.cli.output import size
from kvreplay.cli.progress import showing
from kvreplay.config.registry import settings_of
from kvreplay.errors import ConfigError
from kvreplay.store import BackupKVStore, CompactableKVStore, missing_methods

__all__ = ["backup", "compact", "restore"]


@click.command(short_help="Copy a store while others write to it.")
@arguments.store
@click.argument("path", type=click.Path())
def backup(store: str, path: str) -> int:
    """Copy STORE to PATH, where nothing is yet, while others go on writing.

    The copy is a store of the same engine; of one in PostgreSQL it is an SQLite store. It is on the
    disk when this returns. If this fails or is killed, nothing is at PATH. In LMDB and SQLite all
    entries are as they were at one moment, elsewhere each as it was at some moment meanwhile.
    """
    path = os.path.abspath(path)
    with existing(store) as opened:
        engine = settings_of(store).backend
        if missing_methods(opened, BackupKVStore):
            engine = "sqlite"
            copy_to_sqlite(opened, path)
        else:
            opened.backup(path)
    copy = f"{engine}:{path}"
    existing(copy).close()
    print(f"copied {shown(store)}")
    print(f"look at the copy: kvreplay check {copy}")
    return 0


@click.command(short_help="Make a store from a backup, and compare them.")
@click.argument("backup")
@click.argument("store")
def restore(backup: str, store: str) -> int:
    """Make STORE, where none is yet, from the store BACKUP: both are URLs, of any engines.

    What was answered since the backup is forgotten, so a retry of it runs its handler again: before
    your programs start, find out what they did since then. Requests that were in progress at the
    backup are in doubt. If it is interrupted, run the same command again.
    """
    become_owner(backup, store)
    with showing() as show:
        done = migrate(backup, store, with_claims=True, on_progress=show)
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
                f"a {settings_of(store).backend} store cannot be compacted; nothing was done: files"
                " take no more than they hold, and a server sees to it itself"
            )
        done = opened.compact()
    print(f"{size(done.before)} before, {size(done.after)} now")
    return 0
