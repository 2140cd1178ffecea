"""The file-system engine; see :class:`~kvreplay.backends.filesystem.store.FilesystemStore`."""

from kvreplay.backends.filesystem.store import FilesystemStore

__all__ = ["FilesystemStore"]
