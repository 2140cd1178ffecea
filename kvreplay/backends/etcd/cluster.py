"""The members of a cluster, and what is common to all requests to them: who is asked, and again.

The conversation about one request is a generator that does no I/O. It yields an :class:`Attempt`
at one member, and is sent the answer, or thrown :class:`NotSent` or :class:`NoAnswer`.
``session.py`` makes the attempts with blocking calls, ``aio_session.py`` with awaits, so that what
follows from an answer is written once.

**Which member.** All requests go to one, until it fails: then to the next. What was not sent, or
not proposed, goes to each member once. So does a read whose answer was lost. A change whose answer
was lost is never sent again: it may have happened, and may still.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from typing import Any, Final, TypeVar

import attrs

from kvreplay.backends.etcd.errors import (
    Means,
    another_cluster,
    no_answer,
    nobody_answers,
    not_signed_in,
    refusal_in,
)
from kvreplay.backends.etcd.requests import Asked
from kvreplay.errors import StoreError, StoreUnavailableError

__all__ = [
    "Answer",
    "Attempt",
    "Cluster",
    "Conversation",
    "Member",
    "NoAnswer",
    "NotSent",
    "TooMuch",
]

T = TypeVar("T")

_SIGN_INS: Final = 2  # for one request: a token may end in the very moment
_SIGN_IN: Final = "/v3/auth/authenticate"


class NotSent(Exception):
    """No connection was made: nothing was sent."""


class NoAnswer(Exception):
    """A request was sent, or some of it, and its answer was lost, or did not come in time."""


class TooMuch(StoreError):
    """The answer is longer than was asked for; nothing of it was kept."""


@attrs.frozen
class Member:
    """Where a member listens for clients."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        """Its host and port, as HTTP's ``Host`` has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@attrs.frozen(eq=False, repr=False)
class Attempt:
    """A request to one member.

    Attributes:
        connect_within: seconds to make a connection, if there is none: fewer, so that it is known
            whether anything was sent.
        answer_within: seconds for all of it.
        token: what proves who asks.
    """

    member: int
    asked: Asked
    connect_within: float
    answer_within: float
    token: bytes | None


Answer = tuple[int, bytes]
"""HTTP's status, and the body."""

Conversation = Generator[Attempt, Answer, T]


class Cluster:
    """What all sessions of a store have in common.

    Args:
        members: in the order in which they are asked.
        user: name and password.
        timeout: how many seconds a request may take, over all members.
    """

    def __init__(
        self, members: Sequence[Member], user: tuple[str, str] | None, timeout: float
    ) -> None:
        self.members = members
        self.id = ""
        self.timeout = timeout
        self._user = user
        self._token: bytes | None = None
        self._is_open = False  # as far as is known, nobody needs to sign in
        self._first = 0  # the member that is asked first
        self._revision = 0  # the latest that an answer has told

    def ask(self, asked: Asked, waited: float = 0.0) -> Conversation[dict[str, Any]]:
        """Make one request, and return the answer.

        Args:
            waited: how many seconds of its time are over.

        Raises:
            OutcomeUnknownError: it is a change, and nobody knows whether it happened.
            StoreUnavailableError: no member has done it.
            StoreError: etcd refuses it.
        """
        until = time.monotonic() + self.timeout - waited
        why: BaseException | str = "none has answered in time"
        number = len(self.members)
        member = self._first
        for left in range(number, 0, -1):
            heard = yield from self._ask_one(member, asked, until, left)
            if isinstance(heard, dict):
                return heard
            why = heard
            self._move_on(member)
            member = (member + 1) % number
        raise nobody_answers(self.timeout, why)

    def _ask_one(
        self, member: int, asked: Asked, until: float, left: int
    ) -> Conversation[dict[str, Any] | BaseException | str]:
        """Make a request to one member; return the answer, or why it has done nothing.

        Args:
            left: how many members have not been asked yet, with this one.
        """
        said = ""
        for _ in range(_SIGN_INS):
            known, token = self._revision, self._token
            try:
                if token is None and self._user is not None and not self._is_open:
                    token = yield from self._sign_in(member, _left(until) / left)
            except (NotSent, NoAnswer) as error:
                return error
            remaining = _left(until)
            share = remaining / left
            whole = remaining if asked.changes else share
            try:
                status, body = yield Attempt(member, asked, share / 2, whole, token)
            except NotSent as error:
                return error
            except NoAnswer as error:
                if not asked.changes:
                    return error
                self._move_on(member)
                raise no_answer(error) from error
            if status == 200:
                return self._heard(body, known, asked.changes)
            refusal = refusal_in(status, body)
            said = refusal.said
            if refusal.means is Means.REFUSED:
                raise refusal.error()
            if refusal.means is not Means.SIGN_IN:
                if refusal.means is Means.UNKNOWN and asked.changes:
                    self._move_on(member)
                    raise no_answer(said)
                return said
            if self._user is None:
                break
            self._is_open = False
            if self._token is token:  # else another request has a new one
                self._token = None
        raise not_signed_in(said, has_user=self._user is not None)

    @property
    def revision(self) -> int:
        """The latest revision that an answer has told; no later change has a lower one."""
        return self._revision

    def _sign_in(self, member: int, within: float) -> Conversation[bytes | None]:
        """Return a new token, or ``None`` if this cluster asks for none."""
        assert self._user is not None  # the caller has looked
        name, password = self._user
        told = json.dumps({"name": name, "password": password}).encode()
        status, body = yield Attempt(member, Asked(_SIGN_IN, told), within / 2, within, None)
        if status == 200:
            self._token = _token_in(body)
            return self._token
        refusal = refusal_in(status, body)
        if "authentication is not enabled" in refusal.said:
            self._is_open = True
            return None
        if refusal.means is Means.REFUSED:
            raise refusal.error()
        raise NoAnswer(refusal.said)

    def _move_on(self, member: int) -> None:
        """Ask another one first from now on, unless another request has seen to that."""
        if self._first == member:
            self._first = (member + 1) % len(self.members)

    def _heard(self, body: bytes, known: int, changing: bool) -> dict[str, Any]:
        """Return an answer as it was told, if it comes from where the store is.

        A linearizable answer is of a revision that no earlier answer is ahead of.
        """
        try:
            told: dict[str, Any] = json.loads(body)
            cluster, revision = told["header"]["cluster_id"], int(told["header"]["revision"])
        except (ValueError, KeyError, TypeError) as error:
            if changing:
                raise no_answer("its answer cannot be read") from error
            raise StoreUnavailableError(
                "what answers under this URL does not speak etcd's v3 JSON; nothing was changed:"
                " look at the URL"
            ) from error
        if self.id not in ("", cluster) or revision < known:
            raise another_cluster(changing)
        self.id = cluster
        self._revision = max(self._revision, revision)
        return told


def _left(until: float) -> float:
    return max(0.0, until - time.monotonic())


def _token_in(body: bytes) -> bytes:
    """Return the token in an answer to who has signed in; it can stand in a header."""
    try:
        token: str = json.loads(body)["token"]
        if token.isascii() and token.isprintable():
            return token.encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise NoAnswer("the answer has no token")
