"""Connections to the members by httpcore, and what its exceptions mean: was anything sent?"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Final

import httpcore

from kvreplay.backends.etcd.cluster import Attempt, Member, NoAnswer, NotSent
from kvreplay.errors import ConfigError

__all__ = ["FAILURES", "Links", "tls_context", "what_failed"]

FAILURES: Final = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    OSError,
)
"""What httpcore raises if a request fails; the last is Python's own, of TLS."""


def what_failed(error: BaseException) -> NotSent | NoAnswer:
    """Return what is known of a request that failed."""
    not_sent = isinstance(error, (httpcore.ConnectError, httpcore.ConnectTimeout))
    said = " ".join(str(error).split()) or type(error).__name__
    return (NotSent if not_sent else NoAnswer)(said)


class Links:
    """How the members of one cluster are connected to.

    Args:
        context: how TLS is spoken; ``None``: it is not.
    """

    def __init__(self, members: Iterable[Member], context: ssl.SSLContext | None) -> None:
        self.context = context
        scheme = b"http" if context is None else b"https"
        self._members = [
            (httpcore.Origin(scheme, member.host.encode("idna"), member.port), member)
            for member in members
        ]

    def origin(self, number: int) -> httpcore.Origin:
        """Return where a member is."""
        return self._members[number][0]

    def request(self, attempt: Attempt) -> httpcore.Request:
        """Return the request of an attempt, with its bounds."""
        origin, member = self._members[attempt.member]
        asked = attempt.asked
        headers = [
            (b"Host", member.authority.encode("idna")),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(asked.body)),
        ]
        if attempt.token is not None:
            headers.append((b"Authorization", attempt.token))
        url = httpcore.URL(
            scheme=origin.scheme, host=origin.host, port=origin.port, target=asked.path.encode()
        )
        within = attempt.answer_within
        bounds = {"connect": attempt.connect_within, "read": within, "write": within}
        return httpcore.Request(
            b"POST", url, headers=headers, content=asked.body, extensions={"timeout": bounds}
        )


def tls_context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    """Return how TLS is spoken: by the files of the options, or as this system does.

    Raises:
        ConfigError: a file cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the files for TLS cannot be used ({error}); nothing was opened: name PEM files by"
            " ca, cert and key"
        ) from error
    return context
