"""The LMDB engine; see :class:`~kvreplay.backends.lmdb.store.LMDBStore`."""

from kvreplay.backends.lmdb.store import LMDBStore

__all__ = ["LMDBStore"]
