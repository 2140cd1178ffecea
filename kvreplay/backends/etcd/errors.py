"""What etcd says when it refuses becomes the store's own errors: what happened, and what to do.

``docs/etcd.md`` shows this as a table.
"""

from __future__ import annotations

import json
from enum import Enum, auto
from typing import Any, Final

import attrs

from kvreplay.errors import (
    CorruptStoreError,
    InvalidValueError,
    KVReplayError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)

__all__ = [
    "Means",
    "Refusal",
    "another_cluster",
    "another_store",
    "maybe_full",
    "no_answer",
    "nobody_answers",
    "not_signed_in",
    "refusal_in",
]


class Means(Enum):
    """What follows from a refusal."""

    ELSEWHERE = auto()
    """Nothing was proposed to the cluster; another member may do it."""
    SIGN_IN = auto()
    """Nothing was done, and the token is over."""
    UNKNOWN = auto()
    """It may still be committed, even after this answer."""
    REFUSED = auto()
    """Nothing was done, and nothing will be."""


@attrs.frozen(eq=False)
class Refusal:
    """An answer that is no result; ``said``: in the words of etcd."""

    means: Means
    said: str

    def error(self) -> KVReplayError:
        """Return what the caller is told if it is ``REFUSED``."""
        for part, kind, told in _REFUSED:
            if part in self.said:
                return kind(told)
        return StoreError(f"etcd refused: {self.said}; nothing was changed")


# By a part of what etcd says, since a code of gRPC stands for very different things.
_MEANS: Final = (
    ("too many requests", Means.ELSEWHERE),
    ("etcdserver: no leader", Means.ELSEWHERE),
    ("not supported for learner", Means.ELSEWHERE),
    ("invalid auth token", Means.SIGN_IN),
    ("user name is empty", Means.SIGN_IN),
    ("revision in header is old", Means.SIGN_IN),
    ("revision of auth store is old", Means.SIGN_IN),
    ("database space exceeded", Means.REFUSED),
    ("message larger than max", Means.REFUSED),
    ("etcdserver: corrupt cluster", Means.REFUSED),
)

# Codes of gRPC: https://grpc.github.io/grpc/core/md_doc_statuscodes.html
_NEVER_BEGUN: Final = {3, 5, 6, 7, 9, 11, 12, 16}
"""A wrong argument, a right that lacks, and their like."""

_NAMED_CLIENT: Final = "CommonName of client"
_NO_GATEWAY: Final = "which is no answer of etcd's v3 JSON gateway"
_TOO_LARGE: Final = (
    "a change is larger than this etcd takes, the expected and the new value together; nothing was"
    " written: raise --max-request-bytes on all members, or store less"
)

_REFUSED: Final[tuple[tuple[str, type[KVReplayError], str], ...]] = (
    (
        "database space exceeded",
        StoreFullError,
        "etcd's quota is used up (its alarm NOSPACE); nothing was written, and deletes still"
        " pass: compact and defragment the members, or raise --quota-backend-bytes, then disarm"
        " the alarm",
    ),
    ("request is too large", InvalidValueError, _TOO_LARGE),
    ("message larger than max", InvalidValueError, _TOO_LARGE),
    (
        _NO_GATEWAY,
        StoreError,
        "what answers under this URL does not know etcd's v3 JSON gateway; nothing was changed:"
        " look at the URL, and whether the members run with --enable-grpc-gateway",
    ),
    (
        "too many operations",
        StoreError,
        "this etcd takes fewer operations in a transaction than its default; nothing was changed:"
        " set --max-txn-ops to 128 or more on all members",
    ),
    (
        "permission denied",
        StoreError,
        "etcd refused: the user may not do this; nothing was changed: grant its role readwrite on"
        " the prefix of the store, as docs/etcd.md shows",
    ),
    (
        _NAMED_CLIENT,
        StoreError,
        "where users have passwords, etcd's JSON gateway takes no client certificate with a common"
        " name; nothing was changed: use one that has another subject, such as O=…",
    ),
    (
        "authentication failed",
        StoreError,
        "etcd refused the user or the password of the URL; nothing was changed: mend the URL",
    ),
    (
        "corrupt cluster",
        CorruptStoreError,
        "the members of this etcd cluster hold different data (its alarm CORRUPT); nothing was"
        " changed: replace the member that differs, then disarm the alarm",
    ),
)


def refusal_in(status: int, body: bytes) -> Refusal:
    """Return what an answer says that has another status than 200."""
    told: Any = None
    try:
        told = json.loads(body)
    except ValueError:
        pass
    if _NAMED_CLIENT.encode() in body:  # in plain text
        return Refusal(Means.REFUSED, _NAMED_CLIENT)
    if not isinstance(told, dict):
        # Not etcd: a proxy in front of it, or a server of another kind.
        means = Means.REFUSED if status in (404, 405) else Means.UNKNOWN
        return Refusal(means, f"HTTP {status}, {_NO_GATEWAY}")
    said = " ".join(str(told.get("message") or told.get("error") or "no reason").split())
    for part, means in _MEANS:
        if part in said:
            return Refusal(means, said)
    return Refusal(Means.REFUSED if told.get("code") in _NEVER_BEGUN else Means.UNKNOWN, said)


def no_answer(why: BaseException | str) -> OutcomeUnknownError:
    """Return the error for a change whose answer was lost, or does not tell."""
    return OutcomeUnknownError(
        f"etcd did not say whether a change was made ({_said(why)}): it may have happened, or may"
        " happen a little later; read again before deciding"
    )


def nobody_answers(waited: float, why: BaseException | str) -> StoreUnavailableError:
    """Return the error for a call that no member has done.

    Args:
        waited: seconds, at most.
        why: what the latest member said, or why it was not reached.
    """
    return StoreUnavailableError(
        f"no member of the etcd cluster did this within {waited:.3g} s: {_said(why)}; nothing was"
        " changed: try again later. A majority of the members must run and reach one another; if"
        " none ever answers, look at the URL, and at tls and ca"
    )


def maybe_full() -> OutcomeUnknownError:
    """Return the error for a change that etcd calls refused for its quota, and may have made."""
    return OutcomeUnknownError(
        "etcd's quota is used up (its alarm NOSPACE), and a change that was under way in that"
        " moment may have been made; read again before deciding. Compact and defragment the"
        " members, or raise --quota-backend-bytes, then disarm the alarm"
    )


def another_cluster(changing: bool) -> StoreError:
    """Return the error for an answer of another cluster, or of an older copy of it."""
    where = "another etcd cluster answers under this URL now, or an older copy of the former one"
    if changing:
        return OutcomeUnknownError(
            f"{where}: a change may have happened there; bring the former cluster back, or open"
            " the store again"
        )
    return CorruptStoreError(
        f"{where}; nothing was changed: bring the former cluster back, or open the store again"
    )


def another_store() -> CorruptStoreError:
    """Return the error for a prefix that has another store than the one that was opened."""
    return CorruptStoreError(
        "under the prefix of this store is another one now, or none; nothing was done: bring the"
        " former one back, or open the store again"
    )


def not_signed_in(said: str, *, has_user: bool) -> StoreError:
    """Return the error for a token that etcd refuses again and again, or for want of one."""
    if not has_user:
        return StoreError(
            "this etcd asks for a user and a password; nothing was changed: write them into the URL"
        )
    return StoreError(
        f"etcd refuses the tokens that it gives ({said}); nothing was changed: look at the"
        " members' --auth-token"
    )


def _said(why: BaseException | str) -> str:
    if isinstance(why, str):
        return why
    return " ".join(str(why).split()) or type(why).__name__
