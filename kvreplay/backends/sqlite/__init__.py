"""The SQLite engine: entries in ldk-node's own table, of one file."""

from kvreplay.backends.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
