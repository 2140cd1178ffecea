"""``kvreplay migrate SOURCE DESTINATION``: all entries of one store into another."""

from __future__ import annotations

import click

from kvreplay._inspection import become_owner
from kvreplay._migration import migrate as migrate_all
from kvreplay.cli.arguments import check_that_it_lasts
from kvreplay.cli.progress import showing

__all__ = ["migrate"]


@click.command(short_help="Copy all entries of one store into another, and compare them.")
@click.argument("source")
@click.argument("destination")
@click.option(
    "--into-used", is_flag=True, help="Copy into a store that has entries; none of them changes."
)
@click.option("--with-claims", is_flag=True, help="Copy requests that are in progress too.")
def migrate(source: str, destination: str, into_used: bool, with_claims: bool) -> int:
    """Copy every entry of SOURCE with its expiry into DESTINATION, and compare all.

    The order of creation is kept where both stores know one. The source is not changed, and the
    destination is made if it is missing. Stop the programs that use the two stores first. If it is
    interrupted, run the same command again, and it goes on.

    Both are URLs, as in your configuration: lmdb:///var/lib/node/replay. LDK's own files are
    sources too: filesystem:PATH?layout=ldk-v1, filesystem:PATH, sqlite:ldk_node_data.sqlite. And
    ldk-node's table in PostgreSQL is either of the two: postgresql://node@host/ldk_db?table=ldk_data.
    """
    check_that_it_lasts(destination)
    become_owner(source, destination)
    with showing() as show:
        done = migrate_all(
            source,
            destination,
            into_used=into_used,
            with_claims=with_claims,
            on_progress=show,
        )
    order = "in the order of creation" if done.ordered else "one of the stores knows no order"
    print(f"{done.entries:,} entries are equal in both; {done.copied:,} were copied now ({order})")
    if done.claims:
        print(f"{done.claims:,} requests in progress were copied: they will be in doubt")
    return 0
