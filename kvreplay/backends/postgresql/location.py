"""Where the server is: a URL of libpq's, and the parameters that are libpq's own."""

from __future__ import annotations

import math
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kvreplay.errors import ConfigError

__all__ = ["PARAMETERS", "connection_string"]

PARAMETERS: Final = frozenset(
    {option.keyword.decode() for option in pq.Conninfo.get_defaults()} - {"replication"} | {"ssl"}
)
"""The names of libpq's parameters, as the libpq that is installed knows them, and ``ssl=true``."""


def connection_string(url: object, connect_timeout: float) -> str:
    """Return what libpq is given: the URL, and a bound for the time to connect if it has none.

    Raises:
        ConfigError: libpq cannot read it. What libpq says may show a part of the password.
    """
    if not isinstance(url, str) or not url.startswith(("postgresql:", "postgres:")):
        raise ConfigError(
            "the URL of a PostgreSQL store is one of libpq's, such as"
            " postgresql://user@host/database; nothing was opened"
        )
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        raise ConfigError(
            "libpq cannot read the URL of this PostgreSQL store; nothing was opened: a special"
            " character in a name or a password is percent-encoded, such as %40 for @"
        ) from None
    # Without an encoding, in a database of SQL_ASCII, texts would come as bytes.
    defaults = {"connect_timeout": math.ceil(connect_timeout), "application_name": "kvreplay"}
    missing: dict[str, Any] = {name: of for name, of in defaults.items() if not given.get(name)}
    return make_conninfo(url, **missing, client_encoding="UTF8")
