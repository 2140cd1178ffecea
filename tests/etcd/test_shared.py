"""The session's own cluster, which is not on a network of a test's."""

from __future__ import annotations

from support.etcd import coded
from support.shared_etcd import new_prefix, shared_etcd


def test_the_shared_server_is_one_and_tests_have_their_places() -> None:
    server = shared_etcd()
    assert shared_etcd() is server
    with new_prefix(server) as one, new_prefix(server) as two:
        for each in (one, two):
            server.call("/v3/kv/put", key=coded(f"/{each.name}/a".encode()), value=coded(b"1"))
        assert one.url != two.url
    gone = server.call("/v3/kv/range", key=coded(f"/{one.name}/a".encode()))
    assert "kvs" not in gone
