"""What etcd says, and what follows from it: the table of ``docs/etcd.md``, line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvreplay import (
    CorruptStoreError,
    InvalidValueError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from kvreplay.backends.etcd.cluster import Attempt, Cluster, Member, NoAnswer, NotSent
from kvreplay.backends.etcd.errors import Means, refusal_in
from kvreplay.backends.etcd.requests import is_absent, one, put, read, transaction

PAGE = Path(__file__).parents[3] / "docs" / "etcd.md"
READ = read(one(b"k"))
CHANGE = transaction([is_absent(b"k")], [put(b"k", b"v")])
OK = b'{"header":{"cluster_id":"7","revision":"%d"}}'

SAID = {
    # a part of what etcd says: (the code of gRPC, HTTP's status, what follows, the error)
    "etcdserver: request timed out": (14, 503, Means.UNKNOWN, None),
    "etcdserver: request timed out, possibly due to previous leader failure": (
        14,
        503,
        Means.UNKNOWN,
        None,
    ),
    "etcdserver: leader changed": (14, 503, Means.UNKNOWN, None),
    "etcdserver: server stopped": (14, 503, Means.UNKNOWN, None),
    "context deadline exceeded": (4, 504, Means.UNKNOWN, None),
    "something that nobody has seen yet": (2, 500, Means.UNKNOWN, None),
    "etcdserver: too many requests": (8, 429, Means.ELSEWHERE, None),
    "etcdserver: no leader": (14, 503, Means.ELSEWHERE, None),
    "etcdserver: rpc not supported for learner": (14, 503, Means.ELSEWHERE, None),
    "etcdserver: invalid auth token": (16, 401, Means.SIGN_IN, None),
    "auth: revision in header is old": (2, 500, Means.SIGN_IN, None),
    "etcdserver: revision of auth store is old": (3, 400, Means.SIGN_IN, None),
    "etcdserver: mvcc: database space exceeded": (8, 429, Means.REFUSED, StoreFullError),
    "etcdserver: request is too large": (3, 400, Means.REFUSED, InvalidValueError),
    "grpc: received message larger than max (5 vs. 4)": (8, 429, Means.REFUSED, InvalidValueError),
    "etcdserver: permission denied": (7, 403, Means.REFUSED, StoreError),
    "etcdserver: authentication failed, invalid user ID or password": (
        3,
        400,
        Means.REFUSED,
        StoreError,
    ),
    "etcdserver: user name is empty": (3, 400, Means.SIGN_IN, None),
    "etcdserver: corrupt cluster": (15, 500, Means.REFUSED, CorruptStoreError),
    "etcdserver: too many operations in txn request": (3, 400, Means.REFUSED, StoreError),
    "etcdserver: duplicate key given in txn request": (3, 400, Means.REFUSED, StoreError),
}


def body_of(said: str, code: int) -> bytes:
    return json.dumps({"error": said, "message": said, "code": code}).encode()


@pytest.mark.parametrize("said", SAID)
def test_what_etcd_says(said: str) -> None:
    code, status, means, kind = SAID[said]
    refusal = refusal_in(status, body_of(said, code))
    assert (refusal.means, refusal.said) == (means, said)
    if kind is not None:
        error = refusal.error()
        assert type(error) is kind
        assert "nothing was" in str(error)


@pytest.mark.parametrize("status", [400, 404, 405, 500, 502, 503, 504])
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b"\xff"])
def test_what_is_no_answer_of_etcds(status: int, body: bytes) -> None:
    """Of a proxy nobody knows what it has passed on; who does not know the path has done nothing."""
    refusal = refusal_in(status, body)
    assert refusal.means is (Means.REFUSED if status in (404, 405) else Means.UNKNOWN)


def test_the_page_has_what_the_code_knows() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## When something fails")[2]
    for said in (
        *(
            "request timed out",
            "leader changed",
            "server stopped",
            "too many requests",
            "no leader",
        ),
        *("not supported for learner", "invalid auth token", "revision in header is old"),
        *("database space exceeded", "request is too large", "message larger than max"),
        *("permission denied", "corrupt cluster"),
    ):
        assert said in table
        assert any(said in each for each in SAID)


# A conversation with members that the test plays.


class Played:
    """Members that answer as they are told, one after the other."""

    def __init__(self, asked: Any, *answers: Any, user: Any = None, members: int = 3) -> None:
        cluster = Cluster([Member(f"m{n}", 1) for n in range(members)], user, 5.0)
        self.cluster, self.attempts = cluster, list[Attempt]()
        self.ended = self._play(cluster.ask(asked), list(answers))

    def _play(self, conversation: Any, answers: list[Any]) -> Any:
        attempt = next(conversation)
        while True:
            self.attempts.append(attempt)
            answer = answers.pop(0)
            try:
                if isinstance(answer, Exception):
                    attempt = conversation.throw(answer)
                else:
                    attempt = conversation.send(answer)
            except StopIteration as end:
                assert not answers
                return end.value
            except StoreError as error:
                assert not answers
                return error

    @property
    def asked(self) -> list[int]:
        return [each.member for each in self.attempts]


REFUSED = NotSent("refused")
LOST = NoAnswer("lost")
TIMED_OUT = (503, body_of("etcdserver: request timed out", 14))
BUSY = (429, body_of("etcdserver: too many requests", 8))
OLD_TOKEN = (401, body_of("etcdserver: invalid auth token", 16))
TOKEN = (200, b'{"token":"t"}')
DONE = (200, OK % 5)


@pytest.mark.parametrize(
    ("asked", "answers", "members", "ended"),
    [
        (READ, [DONE], [0], dict),
        (READ, [REFUSED, DONE], [0, 1], dict),
        (READ, [LOST, TIMED_OUT, DONE], [0, 1, 2], dict),
        (READ, [BUSY, BUSY, BUSY], [0, 1, 2], StoreUnavailableError),
        (READ, [LOST, REFUSED, TIMED_OUT], [0, 1, 2], StoreUnavailableError),
        (CHANGE, [REFUSED, BUSY, DONE], [0, 1, 2], dict),
        (CHANGE, [REFUSED, REFUSED, REFUSED], [0, 1, 2], StoreUnavailableError),
        (CHANGE, [LOST], [0], OutcomeUnknownError),
        (CHANGE, [TIMED_OUT], [0], OutcomeUnknownError),
        (CHANGE, [BUSY, LOST], [0, 1], OutcomeUnknownError),
        (CHANGE, [(502, b"<html>")], [0], OutcomeUnknownError),
        (CHANGE, [(200, b"<html>")], [0], OutcomeUnknownError),
        (CHANGE, [(200, b"{}")], [0], OutcomeUnknownError),
        (READ, [(200, b"<html>")], [0], StoreUnavailableError),
        (CHANGE, [(403, body_of("etcdserver: permission denied", 7))], [0], StoreError),
    ],
)
def test_who_is_asked_next(asked: Any, answers: Any, members: list[int], ended: type) -> None:
    """A change whose answer was lost is never sent again."""
    played = Played(asked, *answers)
    assert played.asked == members
    assert type(played.ended) is ended


def test_the_member_that_has_answered_is_asked_first_from_then_on() -> None:
    played = Played(READ, REFUSED, DONE)
    assert next(played.cluster.ask(READ)).member == 1
    played = Played(CHANGE, LOST)
    assert next(played.cluster.ask(CHANGE)).member == 1


def test_who_signs_in_does_so_again_when_the_token_is_over() -> None:
    user = ("u", "hunter2")
    played = Played(CHANGE, TOKEN, DONE, user=user)
    assert [each.token for each in played.attempts] == [None, b"t"]
    played = Played(CHANGE, TOKEN, OLD_TOKEN, TOKEN, DONE, user=user)
    assert played.asked == [0] * 4
    assert isinstance(played.ended, dict)
    played = Played(CHANGE, TOKEN, OLD_TOKEN, TOKEN, OLD_TOKEN, user=user)
    assert "refuses the tokens" in str(played.ended)
    wrong = (400, body_of("etcdserver: authentication failed, invalid user ID or password", 3))
    played = Played(CHANGE, wrong, user=user)
    assert type(played.ended) is StoreError
    assert "hunter2" not in str(played.ended)


def test_a_sign_in_whose_answer_was_lost_has_changed_nothing() -> None:
    played = Played(CHANGE, LOST, TOKEN, DONE, user=("u", "p"))
    assert played.asked == [0, 1, 1]
    assert isinstance(played.ended, dict)


def test_a_cluster_that_asks_for_no_user_is_used_without_one() -> None:
    disabled = (412, body_of("etcdserver: authentication is not enabled", 9))
    played = Played(READ, disabled, DONE, user=("u", "p"))
    assert [each.token for each in played.attempts] == [None, None]
    assert isinstance(played.ended, dict)

    conversation = played.cluster.ask(READ)
    assert next(conversation).asked is READ  # nobody signs in again and again
    nameless = (400, body_of("etcdserver: user name is empty", 3))
    assert (
        conversation.send(nameless).asked.path == "/v3/auth/authenticate"
    )  # until it is asked for


@pytest.mark.parametrize("said", ["invalid auth token", "user name is empty"])
def test_without_a_user_a_demand_for_one_is_told(said: str) -> None:
    played = Played(READ, (401, body_of(f"etcdserver: {said}", 16)))
    assert type(played.ended) is StoreError
    assert "user" in str(played.ended)


ODD = [b"ok", b"{}", b"[]", b"null", b'{"token":5}', b'{"token":"a\\nb"}', b'{"token":"\xc3\xa9"}']


@pytest.mark.parametrize("body", ODD)
def test_an_odd_answer_to_a_sign_in(body: bytes) -> None:
    played = Played(CHANGE, (200, body), TOKEN, DONE, user=("u", "p"))
    assert played.asked == [0, 1, 1]
    played = Played(CHANGE, (200, body), (200, body), (200, body), user=("u", "p"))
    assert type(played.ended) is StoreUnavailableError


def test_time_that_is_over_before_is_a_part_of_the_whole() -> None:
    cluster = Played(READ, DONE).cluster
    assert next(cluster.ask(READ, waited=4.9)).answer_within < 0.1


def test_an_older_copy_is_noticed() -> None:
    for asked, error in ((READ, CorruptStoreError), (CHANGE, OutcomeUnknownError)):
        played = Played(READ, (200, OK % 9))
        for answer, ended in ((9, None), (12, None), (11, error)):
            conversation = played.cluster.ask(asked)
            next(conversation)
            if ended is None:
                with pytest.raises(StopIteration):
                    conversation.send((200, OK % answer))
            else:
                with pytest.raises(ended, match="an older copy"):
                    conversation.send((200, OK % answer))


def test_an_answer_that_was_overtaken_is_no_older_copy() -> None:
    cluster = Played(READ, (200, OK % 9)).cluster
    slow, quick = cluster.ask(READ), cluster.ask(READ)
    next(slow)
    next(quick)
    with pytest.raises(StopIteration):
        quick.send((200, OK % 20))
    with pytest.raises(StopIteration):
        slow.send((200, OK % 10))
