"""HTTP/1.1 on one connection, without its I/O: by h11.

``links.py`` sends and receives by blocking calls, ``aio_links.py`` by awaits.
"""

from __future__ import annotations

from typing import Final

import h11

from kvreplay.backends.etcd.cluster import Answer, Attempt, NoAnswer, TooMuch

__all__ = ["CHUNK", "Exchange"]

CHUNK: Final = 2**16
"""How many bytes to receive at once, at most."""


class Exchange:
    """One request after the other, each with its answer.

    Args:
        authority: the host and the port, as HTTP's ``Host`` has them.
    """

    def __init__(self, authority: str) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._authority = authority.encode()
        self._most: int | None = None
        self._status = 0
        self._parts: list[bytes] = []

    def ask(self, attempt: Attempt) -> bytes:
        """Begin with a request; return what is to be sent."""
        asked = attempt.asked
        self._most, self._status, self._parts = asked.most, 0, []
        headers = [
            (b"Host", self._authority),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(asked.body)),
        ]
        if attempt.token is not None:
            headers.append((b"Authorization", attempt.token))
        request = h11.Request(method="POST", target=asked.path, headers=headers)
        parts = (request, h11.Data(asked.body), h11.EndOfMessage())
        return b"".join(self._http.send(part) or b"" for part in parts)

    def hear(self, data: bytes) -> Answer | None:
        """Take what was received; return the answer, once it is whole.

        Args:
            data: nothing: the other side has ended the connection.

        Raises:
            NoAnswer: what came is no answer of HTTP's, or a part of one.
            TooMuch: it is longer than was asked for.
        """
        try:
            self._http.receive_data(data)
            return self._answer()
        except h11.RemoteProtocolError as error:
            raise NoAnswer(f"the connection was ended, or garbage came: {error}") from error

    def _answer(self) -> Answer | None:
        while True:
            event = self._http.next_event()
            match event:
                case h11.Response(status_code=status):
                    self._status = status
                case h11.Data(data=data):
                    self._parts.append(bytes(data))
                    self._check_length()
                case h11.EndOfMessage():
                    return self._status, b"".join(self._parts)
                case h11.NEED_DATA:
                    return None
                case h11.ConnectionClosed() | h11.PAUSED:
                    raise NoAnswer("the connection was ended")
                case _:  # an answer that only says that another one will come
                    pass

    def _check_length(self) -> None:
        if self._most is not None and sum(map(len, self._parts)) > self._most:
            raise TooMuch("the answer is longer than was asked for; nothing was changed")

    def can_go_on(self) -> bool:
        """Say whether another request can follow on the connection, and be ready for it."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return True
        return False
