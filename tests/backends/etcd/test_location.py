"""What a URL of etcd names, and what is wrong with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvreplay import ConfigError, StoreUnavailableError, open_store
from kvreplay.backends.etcd import EtcdStore
from kvreplay.backends.etcd.cluster import Member
from kvreplay.backends.etcd.location import locate
from kvreplay.config import registry


@pytest.mark.parametrize(
    ("url", "members", "user", "prefix"),
    [
        ("etcd://one", [("one", 2379)], None, b"/kvreplay/"),
        ("etcd://one/", [("one", 2379)], None, b"/kvreplay/"),
        ("etcd://one:1/p", [("one", 1)], None, b"/p/"),
        ("etcd://one,two:2,[::1]:3,[fe80::1]/a/b/", None, None, b"/a/b/"),
        ("etcd://u:p@one/x%20y%2Fz", [("one", 2379)], ("u", "p"), b"/x y/z/"),
        ("etcd://u%40x:%3A%2F%40@one", [("one", 2379)], ("u@x", ":/@"), b"/kvreplay/"),
        ("etcd://u:@one", [("one", 2379)], ("u", ""), b"/kvreplay/"),
        ("etcd://bücher.example", [("xn--bcher-kva.example", 2379)], None, b"/kvreplay/"),
    ],
)
def test_what_a_url_names(url: str, members: Any, user: Any, prefix: bytes) -> None:
    location = locate(url)
    if members is None:
        members = [("one", 2379), ("two", 2), ("::1", 3), ("fe80::1", 2379)]
    assert [(each.host, each.port) for each in location.members] == members
    assert (location.user, location.prefix) == (user, prefix)


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert Member("::1", 5).authority == "[::1]:5"
    assert Member("one", 5).authority == "one:5"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("etcd:one", "begin with etcd://"),
        ("etcds://one", "begin with etcd://"),
        ("etcd://one?timeout=5", "options"),
        ("etcd://", "HOST or HOST:PORT"),
        ("etcd:///p", "HOST or HOST:PORT"),
        ("etcd://one,", "HOST or HOST:PORT"),
        ("etcd://one:", "HOST or HOST:PORT"),
        ("etcd://one:x", "HOST or HOST:PORT"),
        ("etcd://one:0", "HOST or HOST:PORT"),
        ("etcd://one:65536", "HOST or HOST:PORT"),
        ("etcd://one:" + "1" * 5000, "HOST or HOST:PORT"),
        ("etcd://one/\udcff", "not UTF-8"),
        ("etcd://u:hunter2\n@one", "a control character"),
        ("etcd://::1", "brackets"),
        ("etcd://[::1", "brackets"),
        ("etcd://[::1]x", "brackets"),
        ("etcd://one,one:2379", "twice"),
        ("etcd://hunter2@one", "without a user and a password"),
        ("etcd://:hunter2@one", "without a user and a password"),
        ("etcd://u:hunter2%FF@one", "not UTF-8"),
        ("etcd://one/" + "p" * 256, "256 bytes"),
        (f"etcd://{'x' * 64}.example", "name of DNS"),
    ],
)
def test_what_is_wrong_is_said_and_shows_no_password(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)) as caught:
        locate(url)
    assert "hunter2" not in str(caught.value)
    assert "nothing was opened" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"pool_size": 0}, "pool_size"),
        ({"timeout": 0}, "timeout"),
        ({"max_request_bytes": 100}, "max_request_bytes"),
        ({"key": "key.pem"}, "no cert"),
        ({"tls": False, "ca": "ca.pem"}, "tls is false"),
        ({"ca": "/nowhere/ca.pem"}, "PEM"),
        ({"cert": "/nowhere/cert.pem"}, "PEM"),
    ],
)
def test_wrong_options_are_refused_before_anybody_is_asked(options: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        open_store({"url": "etcd://127.0.0.1:1", **options})


def test_nobody_is_asked_for_the_passphrase_of_a_key(tmp_path: Path) -> None:
    """On a terminal that would wait for ever."""
    key = tmp_path / "key.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-subj",
        "/O=test",
        "-passout",
        "pass:x",
    ]
    files = ["-keyout", str(key), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*made, *files], check=True, capture_output=True)
    code = (
        "from kvreplay.backends.etcd import EtcdStore\n"
        f"EtcdStore('etcd://127.0.0.1:1', cert={str(tmp_path / 'cert.pem')!r}, key={str(key)!r})"
    )
    said = on_a_terminal(code)
    assert "ConfigError: the files for TLS cannot be used" in said
    assert "pass phrase" not in said


def on_a_terminal(code: str) -> str:
    """Run some code where its input is a terminal at which nobody types; return what it says."""
    keyboard, terminal = os.openpty()
    try:
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command,
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
        )
    finally:
        os.close(keyboard)
        os.close(terminal)
    return done.stdout + done.stderr


def test_tls_is_no_text() -> None:
    with pytest.raises(ConfigError, match="tls must be"):
        EtcdStore("etcd://127.0.0.1:1", tls="no")  # type: ignore[arg-type]  # which would count as true


def test_an_option_beside_the_url_or_in_it(etcd: Any) -> None:
    settings = registry.settings_of(f"{etcd.url}?timeout=500ms&pool_size=3&max_request_bytes=2MiB")
    assert settings.options == {"timeout": 0.5, "pool_size": 3, "max_request_bytes": 2**21}
    with settings.open() as store:
        assert store.max_change_bytes == 2**21 - 2**13  # type: ignore[attr-defined]


def test_no_text_shows_the_password() -> None:
    url = "etcd://node:hunter2@127.0.0.1:1/p"
    assert "hunter2" not in repr(registry.settings_of(url))
    with pytest.raises(StoreUnavailableError) as caught:
        open_store(f"{url}?timeout=2")
    assert "hunter2" not in repr(caught.value) + str(caught.value.__cause__)
    assert "127.0.0.1:1" in str(caught.value)


@pytest.mark.parametrize("name", ["localhost", "no-such-host.invalid"])
def test_a_name_is_looked_up(etcd: Any, name: str) -> None:
    """Once it is known, and once it is not."""
    port = etcd.server.host.rpartition(":")[2]
    url = f"etcd://{name}:{port},{etcd.server.host}/{etcd.name}"
    with open_store(url) as store:  # another member answers, if this one is not found
        store.write("p", "s", "k", b"v")
        assert store.read("p", "s", "k") == b"v"
    with pytest.raises(StoreUnavailableError, match=name):
        open_store(f"etcd://{name}:1/p?timeout=3")
