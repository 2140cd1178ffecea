"""One etcd cluster of three members for all processes of a test session (``support.shared_servers``).

::

    server = shared_etcd()                        # server.url("prefix")
    with new_prefix(server) as prefix: ...        # prefix.url: one a test; prefix.one_url: of its first member alone

Nobody may kill, stop or change this server: a test that does so starts a ``Cluster`` of its own.
"""

from __future__ import annotations

import functools
import http.client
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

import attrs

from support.etcd import Cluster, coded, end_of_range
from support.etcd_programs import etcd_program
from support.shared_servers import keep, shared

__all__ = ["Prefix", "SharedEtcd", "new_prefix", "put_below", "shared_etcd"]

# Nobody kills its leader, and a busy machine shall not cost it one.
_CALM = {"heartbeat-interval": 100, "election-timeout": 2000}
_PATIENCE = 60.0  # seconds; it never fails, and may be busy


@attrs.frozen
class SharedEtcd:
    """What a test may know of the server.

    Attributes:
        hosts: the members' addresses and ports.
    """

    hosts: tuple[str, ...] = attrs.field(converter=tuple)

    @property
    def host(self) -> str:
        """Of the first member."""
        return self.hosts[0]

    def url(self, prefix: str, **options: Any) -> str:
        """What ``open_store`` takes."""
        return f"etcd://{','.join(self.hosts)}/{prefix}" + (
            f"?{urlencode(options)}" if options else ""
        )

    def call(self, path: str, **body: Any) -> Any:
        """Call the v3 API as a client of its own; return what the JSON of its answer says."""
        connection = http.client.HTTPConnection(self.host, timeout=_PATIENCE)
        try:
            connection.request("POST", path, json.dumps(body))
            answer = connection.getresponse()
            told = json.loads(answer.read())
        finally:
            connection.close()
        assert answer.status == 200, told
        return told


@attrs.frozen
class Prefix:
    """A place of one test on a server."""

    server: SharedEtcd
    name: str

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    @property
    def one_url(self) -> str:
        """With one member alone, which can be reached by a proxy; what it answers is still the cluster's."""
        return SharedEtcd(self.server.hosts[:1]).url(self.name)


def put_below(url: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Put keys, with values in base64, below the prefix of a store's URL, one after the other."""
    where = urlsplit(url)
    server = SharedEtcd(where.netloc.split(","))
    for key, value in pairs:
        server.call("/v3/kv/put", key=coded(f"{where.path}/{key}".encode()), value=value)


@contextmanager
def new_prefix(server: SharedEtcd) -> Iterator[Prefix]:
    """Give a test a prefix that nobody else has, and remove what is below it afterwards."""
    prefix = Prefix(server, f"t_{uuid.uuid4().hex[:12]}")
    yield prefix
    first = f"/{prefix.name}/".encode()
    server.call("/v3/kv/deleterange", key=coded(first), range_end=coded(end_of_range(first)))


@functools.cache
def shared_etcd() -> SharedEtcd:
    """Start it, unless it runs. The test is skipped if this machine has no etcd that is fit."""
    etcd_program()
    return SharedEtcd(**shared("etcd", __name__))


def serve() -> None:
    keep(_server)


@contextmanager
def _server() -> Iterator[dict[str, Any]]:
    with Cluster(3, settings=_CALM) as cluster:
        yield {"hosts": [f"{each.address}:{each.port}" for each in cluster.members]}
