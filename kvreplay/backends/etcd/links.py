"""Connections to members, with blocking calls; and how TLS is spoken."""

from __future__ import annotations

import select
import socket
import ssl
import time
from typing import Final

from kvreplay.backends.etcd.addresses import Found, looked_up
from kvreplay.backends.etcd.cluster import Answer, Attempt, Member, NoAnswer, NotSent
from kvreplay.backends.etcd.exchange import CHUNK, Exchange
from kvreplay.errors import ConfigError

__all__ = ["Link", "connected", "is_quiet", "keep_alive", "tls_context"]

_QUIET: Final = 20  # seconds


class Link:
    """A connection, which one call uses at a time."""

    def __init__(self, sock: socket.socket, exchange: Exchange) -> None:
        self._sock = sock
        self._exchange = exchange

    def ask(self, attempt: Attempt, until: float) -> Answer:
        """Send a request, and return the answer.

        Args:
            until: of ``time.monotonic()``.

        Raises:
            NoAnswer: it did not come whole, or not in time.
        """
        try:
            return self._ask(attempt, until)
        except TimeoutError as error:
            raise NoAnswer("it has not answered in time") from error
        except OSError as error:
            raise NoAnswer(f"the connection was lost: {error}") from error

    def _ask(self, attempt: Attempt, until: float) -> Answer:
        self._sock.settimeout(_left(until))
        self._sock.sendall(self._exchange.ask(attempt))
        while True:
            self._sock.settimeout(_left(until))
            answer = self._exchange.hear(self._sock.recv(CHUNK))
            if answer is not None:
                return answer

    def can_go_on(self) -> bool:
        """Say whether another request can follow."""
        return self._exchange.can_go_on()

    def is_good(self) -> bool:
        """Say whether the member has not ended it while nobody used it."""
        return is_quiet(self._sock)

    def close(self) -> None:
        """End it."""
        self._sock.close()


def connected(member: Member, context: ssl.SSLContext | None, within: float) -> Link:
    """Connect to a member.

    Raises:
        NotSent: it cannot be reached, or not in time (seconds).
    """
    until = time.monotonic() + within
    try:
        found = looked_up(member).result(within)
        return Link(_first_of(found, until, context, member.host), Exchange(member.authority))
    except OSError as error:
        why = "no connection in time" if isinstance(error, TimeoutError) else error
        raise NotSent(f"{member.authority}: {why}") from error


def _first_of(
    found: Found, until: float, context: ssl.SSLContext | None, host: str
) -> socket.socket:
    """Connect to the first of these addresses that answers, and that TLS trusts."""
    failed = OSError("its name has no address")
    for number, (family, kind, protocol, _, address) in enumerate(found):
        end = time.monotonic() + _left(until) / (len(found) - number)
        sock = socket.socket(family, kind, protocol)
        try:
            keep_alive(sock)
            sock.settimeout(_left(end))
            sock.connect(address)
            sock.settimeout(_left(end))
            return sock if context is None else context.wrap_socket(sock, server_hostname=host)
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
    raise failed


def keep_alive(sock: socket.socket) -> None:
    """Send at once, and look now and then whether the other side of a quiet connection is there."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _QUIET)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _QUIET)


def is_quiet(sock: socket.socket) -> bool:
    """Say whether nothing has come, not even the end. An answer comes only if it is asked for."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def tls_context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    """Return how TLS is spoken: by the files of the options, or as this system does.

    Raises:
        ConfigError: a file cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key, password="")  # nobody is asked for one
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the files for TLS cannot be used ({error}); nothing was opened: name PEM files by"
            " ca, cert and key"
        ) from error
    context.set_alpn_protocols(["http/1.1"])
    return context
