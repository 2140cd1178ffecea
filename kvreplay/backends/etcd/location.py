"""Where the cluster is: the members, the user and the prefix in a store's URL."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

import attrs

from kvreplay.backends.etcd.cluster import Member
from kvreplay.errors import ConfigError

__all__ = ["Location", "locate"]

_PORT: Final = 2379  # etcd's own for clients
_PREFIX: Final = b"/kvreplay/"
_LONGEST: Final = 256  # bytes of a prefix: keys have up to 385 more


@attrs.frozen(repr=False)
class Location:
    """What a URL names.

    Attributes:
        user: name and password, if etcd asks for them.
        prefix: what all keys of the store begin with; a slash ends it.
    """

    members: tuple[Member, ...]
    user: tuple[str, str] | None
    prefix: bytes


def locate(url: object) -> Location:
    """Return what a URL names: ``etcd://user:password@host:2379,host,[::1]:2379/prefix``.

    Raises:
        ConfigError: it names nothing that can be asked; no password is shown.
    """
    if not isinstance(url, str) or not url.startswith("etcd://"):
        raise _wrong("it does not begin with etcd://")
    if not url.isprintable() or " " in url:
        raise _wrong("it has a blank, a control character or a byte that is not UTF-8")
    if "?" in url or "#" in url:
        raise _wrong("it has options; give them as arguments")
    hosts, slash, path = url.removeprefix("etcd://").partition("/")
    given, at, hosts = hosts.rpartition("@")
    user: tuple[str, str] | None = None
    if at:
        name, colon, password = given.partition(":")
        if not name or not colon:
            raise _wrong('it has a "@" without a user and a password before it')
        user = _text(name), _text(password)
    members = tuple(_member(host) for host in hosts.split(","))
    if len(set(members)) != len(members):
        raise _wrong("it names a member twice")
    prefix = unquote_to_bytes(f"{slash}{path}".rstrip("/"))
    prefix = prefix + b"/" if prefix else _PREFIX
    if len(prefix) > _LONGEST:
        raise _wrong(f"its prefix has more than {_LONGEST} bytes")
    return Location(members, user, prefix)


def _member(text: str) -> Member:
    host, port = text, str(_PORT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _wrong("a member's IPv6 address is not in brackets")
        port = rest[1:] or port
    elif ":" in text:
        host, _, port = text.rpartition(":")
        if ":" in host:
            raise _wrong("a member's IPv6 address is not in brackets")
    is_number = port.isascii() and port.isdecimal() and len(port) <= 5
    if not host or not is_number or not 0 < int(port) < 2**16:
        raise _wrong("a member is not HOST or HOST:PORT")
    try:
        host = host if ":" in host else host.encode("idna").decode()
    except UnicodeError:
        raise _wrong("a member's host is no name of DNS") from None
    return Member(host, int(port))


def _text(quoted: str) -> str:
    try:
        return unquote_to_bytes(quoted).decode()
    except UnicodeDecodeError:
        raise _wrong("the user or the password is not UTF-8") from None


def _wrong(why: str) -> ConfigError:
    return ConfigError(
        f"the URL of an etcd store is wrong: {why}; nothing was opened: write"
        " etcd://HOST:2379,HOST:2379,HOST:2379/PREFIX, with USER:PASSWORD@ before the hosts if etcd"
        " asks for it"
    )
