"""A schema of the story's own, in a PostgreSQL database that others may use too."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from kvreplay.errors import StoreError

__all__ = ["new_schema"]


@contextmanager
def new_schema(url: str, *, kept: bool) -> Iterator[str]:
    """Make a schema, yield its name, and drop it at the end unless it is kept.

    It was not there before, so that nothing is dropped but what the story has made.

    Args:
        url: libpq's.

    Raises:
        StoreError: it cannot be made, and nothing was; or it cannot be dropped.
    """
    name = f"kvreplay_demo_{secrets.token_hex(4)}"
    try:
        _run(url, "CREATE SCHEMA {}", name)
    except psycopg.Error as error:
        raise StoreError(
            f"no schema could be made for the story ({_said(error)}); nothing was started: let the"
            " role make one, or name one that is its own by ?schema=NAME"
        ) from error
    try:
        yield name
    finally:
        if not kept:
            try:
                _run(url, "DROP SCHEMA {} CASCADE", name)
            except psycopg.Error as error:
                raise StoreError(
                    f'the schema "{name}" could not be dropped ({_said(error)}); it is left there,'
                    f" with what the story wrote: DROP SCHEMA {name} CASCADE removes it"
                ) from error


def _run(url: str, statement: str, schema: str) -> None:
    with psycopg.connect(url, prepare_threshold=None) as connection:
        connection.execute("SET LOCAL lock_timeout = '10s'")  # of a node that was killed just now
        connection.execute(sql.SQL(statement).format(sql.Identifier(schema)))


def _said(error: psycopg.Error) -> str:
    return error.diag.message_primary or " ".join(str(error).split())
