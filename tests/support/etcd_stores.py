"""etcd stores of one test: each has a prefix of its own on the session's server.

A store has a path, as those of other engines do, so that the same tests run on it. Nothing is at that path: its
name is a part of the prefix, and the folder around it has a file ``server``, for other processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from kvreplay import open_store
from kvreplay.backends.etcd import EtcdStore
from support.cutting_proxy import CuttingProxy
from support.etcd import coded
from support.shared_etcd import Prefix, SharedEtcd

__all__ = ["FAULTS", "FOREIGN", "open_at", "prefixes_of"]

Fault = Callable[[Any, Path], AbstractContextManager[object]]

_proxies: dict[Path, CuttingProxy] = {}  # by the folder of a test of this process


@contextmanager
def prefixes_of(prefix: Prefix, folder: Path, *, proxied: bool = False) -> Iterator[None]:
    """Let stores in this folder be below a test's prefix; ``proxied``: by way of a proxy, which can fail."""
    told = {"host": prefix.server.host, "url": prefix.url, "name": prefix.name}
    if not proxied:
        (folder / "server").write_text(json.dumps(told), encoding="utf-8")
        yield
        return
    with CuttingProxy(prefix.one_url) as _proxies[folder]:
        told["url"] = _proxies[folder].url
        (folder / "server").write_text(json.dumps(told), encoding="utf-8")
        yield
    del _proxies[folder]


def open_at(path: Path) -> EtcdStore:
    """Open the store at this path, in any process."""
    store = open_store(f"{_told(path)['url']}/{path.name}?pool_size=3")
    assert isinstance(store, EtcdStore)
    return store


def _told(path: Path) -> dict[str, str]:
    told: dict[str, str] = json.loads((path.parent / "server").read_text(encoding="utf-8"))
    return told


# How reading can fail.


def _by_proxy(break_it: Callable[[CuttingProxy], object]) -> Fault:
    @contextmanager
    def fault(store: Any, path: Path) -> Iterator[None]:
        proxy = _proxies[path.parent]
        break_it(proxy)
        try:
            yield
        finally:
            proxy.mend()

    return fault


def _refuse(proxy: CuttingProxy) -> None:
    proxy.refuse()
    proxy.cut_all()


FAULTS: dict[str, Fault] = {
    "nobody answers": _by_proxy(_refuse),
    "an answer is lost": _by_proxy(lambda proxy: proxy.cut("to client", after=0)),
    "an answer is cut": _by_proxy(lambda proxy: proxy.cut("to client", after=300)),
    "a request is cut": _by_proxy(lambda proxy: proxy.cut("to server", after=100, how="close")),
    "an answer ends early": _by_proxy(lambda proxy: proxy.cut("to client", after=150, how="close")),
}


# What others leave.

_TOO_LONG = b"N" * 121
_ILLEGAL = (
    b"a.b",
    b"a b",
    b" ",
    "ключ".encode(),
    _TOO_LONG,
    b"a\n",
    b"\n",
    b"\xff",
    b"[empty]",
    b"",
)


def plant_keys(path: Path) -> None:
    """Keys with illegal names, where entries are, where their expiries are, and in the index of these."""
    told = _told(path)
    server, root = SharedEtcd([told["host"]]), f"/{told['name']}/{path.name}/".encode()
    for name in _ILLEGAL:
        for key in (
            *(b"e/p/s/" + name, b"e/" + (name or b".") + b"/s/k", b"e/p/" + name + b"/k/k"),
            *(b"e//" + name + b"/" + name, b"x/p/s/" + name, b"e/p/s/" + name + b"/k"),
            *(b"t/p/" + name, b"t/p/" + b"0" * 19 + b"/s/" + name, b"t/p/" + b"0" * 18 + b"x/s/k"),
        ):
            server.call("/v3/kv/put", key=coded(root + key), value=coded(b"foreign"))


def plant_beside(path: Path) -> None:
    """Keys below the store's prefix that are none of its kinds."""
    told = _told(path)
    server, root = SharedEtcd([told["host"]]), f"/{told['name']}/{path.name}/".encode()
    for key in (b"e", b"x", b"t", b"f/p/s/k", b"E/p/s/k", b"meta/", b"\xff"):
        server.call("/v3/kv/put", key=coded(root + key), value=coded(b"foreign"))


FOREIGN: dict[str, Callable[[Path], None]] = {"names": plant_keys, "keys beside": plant_beside}
