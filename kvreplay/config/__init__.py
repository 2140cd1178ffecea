"""Which store, and with which settings: URLs, mappings, TOML files and the environment."""

from kvreplay.config.registry import (
    OpenStore,
    OpenTransactionalStore,
    StoreSettings,
    open_store,
)

__all__ = ["OpenStore", "OpenTransactionalStore", "StoreSettings", "open_store"]
