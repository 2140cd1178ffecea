"""Which store, and with which settings: URLs, mappings, TOML files and the environment."""

from kvreplay.config.registry import OpenStore, StoreSettings, open_store

__all__ = ["OpenStore", "StoreSettings", "open_store"]
