"""Configurations: texts of files, strangers' backends, and the error that each mistake ends in."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from kvreplay.config.registry import OpenStore
from kvreplay.errors import ConfigError

__all__ = [
    "ENGINES_WITH_A_PATH",
    "HAS_POSTGRESQL",
    "HOUR",
    "RECORDER",
    "SERVER",
    "STORE",
    "WHOLE",
    "Stranger",
    "complaint",
    "has_driver",
    "put_and_close",
]

DRIVERS = {"postgresql": ("psycopg", "psycopg_pool"), "etcd": ("h11",)}


def has_driver(backend: str) -> bool:
    """Whether what a backend needs is installed."""
    return all(find_spec(module) is not None for module in DRIVERS.get(backend, ()))


HAS_POSTGRESQL = has_driver("postgresql")
HOUR = 3600.0
ENGINES_WITH_A_PATH = ("filesystem", "lmdb", "sqlite")

# A stranger's class that only remembers how it was constructed.
RECORDER = """
class Recorder:
    OPTIONS = {
        "pool": "integer",
        "timeout": "duration",
        "cache": "size",
        "tls": "boolean",
        "password": "text",
        "mode": ("fast", "safe"),
    }
    LOCATION = "url"

    def __init__(self, *args, **options):
        self.args, self.options = args, options
"""

# Only remembers how it was made, as the class of a database server would be.
SERVER = RECORDER.replace(
    '    LOCATION = "url"\n',
    '    LOCATION = "url"\n'
    '    PARAMETERS = frozenset({"host", "port", "user", "sslmode", "options", "sslpassword"})\n',
).replace('        "password": "text",\n', '        "schema": "text",\n')

STORE = '[store]\nurl = "memory:"\n'
WHOLE = """
[store]
url = "lmdb:replay-data?map_size=64MiB"

[replay.request_invoice]
ttl = "1h"
lease = "30s"
tombstone_ttl = "10m"
wait_timeout = "10s"
on_in_doubt = "rerun"
max_record_bytes = "1MiB"
renew = false

[replay.pay-out]
ttl = 0
lease = "none"
"""


def complaint(call: Callable[..., object], *args: object, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args, **options)
    assert "nothing was opened" in str(caught.value)
    return str(caught.value)


class Stranger:
    """Installs distributions into a folder on sys.path: real metadata, a real module."""

    def __init__(self, site: Path) -> None:
        self.site = site
        self.modules: list[str] = []

    def install(self, scheme: str, code: str = RECORDER, *, attribute: str = "Recorder") -> str:
        number = len(self.modules)
        name, module = f"stranger-{number}", f"stranger_{scheme}_{number}"
        self.modules.append(module)
        (self.site / f"{module}.py").write_text(code)
        info = self.site / f"stranger_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[kvreplay.backends]\n{scheme} = {module}:{attribute}\n"
        )
        return name


def put_and_close(store: OpenStore) -> None:
    with store:
        store.write("p", "s", "k", b"value")
        assert store.read("p", "s", "k") == b"value"
