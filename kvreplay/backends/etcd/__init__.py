"""Keys of an etcd cluster as a store, by its JSON gateway and h11: the extra ``etcd``."""

from kvreplay.backends.etcd.store import EtcdStore

__all__ = ["EtcdStore"]
