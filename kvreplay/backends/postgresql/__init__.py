"""A table of PostgreSQL as a store, by psycopg 3: the extra ``postgresql``."""

from kvreplay.backends.postgresql.store import PostgreSQLStore

__all__ = ["PostgreSQLStore"]
