"""Connections to members, with blocking calls; and how TLS is spoken."""

from __future__ import annotations

import select
import socket
import ssl
import time

from kvreplay.backends.etcd.addresses import Found, looked_up
from kvreplay.backends.etcd.cluster import Answer, Attempt, Member, NoAnswer, NotSent
from kvreplay.backends.etcd.exchange import CHUNK, Exchange
from kvreplay.errors import ConfigError

__all__ = ["Link", "connected", "is_quiet", "tls_context"]


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
        sock = _first_of(found, until)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                sock = context.wrap_socket(sock, server_hostname=member.host)
            return Link(sock, Exchange(member.authority))
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        why = "no connection in time" if isinstance(error, TimeoutError) else error
        raise NotSent(f"{member.authority}: {why}") from error


def _first_of(found: Found, until: float) -> socket.socket:
    """Connect to the first of these addresses that answers."""
    failed = OSError("its name has no address")
    for number, (family, kind, protocol, _, address) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(until) / (len(found) - number))
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
    raise failed


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
            context.load_cert_chain(cert, key)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the files for TLS cannot be used ({error}); nothing was opened: name PEM files by"
            " ca, cert and key"
        ) from error
    context.set_alpn_protocols(["http/1.1"])
    return context
