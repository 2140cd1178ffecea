"""One hierarchy of errors: one class for each decision that a caller can take.

No message and no ``repr`` of these errors ever contains a payload or a key:
you may log an error as it is.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ClaimLostError",
    "ClaimsInProgressError",
    "ConfigError",
    "CorruptRecordError",
    "CorruptStoreError",
    "DestinationNotEmptyError",
    "ExpiredError",
    "InDoubtError",
    "InFlightError",
    "IndeterminateError",
    "InvalidNameError",
    "InvalidParamsError",
    "InvalidResponseError",
    "InvalidValueError",
    "KVReplayError",
    "KeyNotFoundError",
    "MigrationError",
    "NotAppliedError",
    "NotEqualError",
    "OutcomeUnknownError",
    "ParamsMismatchError",
    "RecordError",
    "ReplayClosedError",
    "ReplayError",
    "ResponseNotStorableError",
    "ResponseTypeError",
    "StaleFlowError",
    "StoreError",
    "StoreFullError",
    "StoreNotFoundError",
    "StoreUnavailableError",
    "StoredFailureError",
    "UnsupportedRecordVersionError",
]


class KVReplayError(Exception):
    """The root: every error that kvreplay raises on purpose is one of these."""


class StoreError(KVReplayError):
    """A store refused or failed; the driver's exception is its ``__cause__``.

    Nothing changed in the store, unless it is an :class:`OutcomeUnknownError`.
    """


class KeyNotFoundError(StoreError, KeyError):
    """``read`` found no entry under that name. No other failure raises this class."""

    # KeyError would show its message in quotes, as if it were a key.
    __str__ = Exception.__str__


class InvalidNameError(StoreError, ValueError):
    """A namespace or key breaks LDK's name rules; nothing was touched."""


class InvalidValueError(StoreError, ValueError):
    """A value is not ``bytes``, or an expiry is not a time; nothing was touched."""


class CorruptStoreError(StoreError):
    """The store's own files are damaged, emptied, another program's or of another format."""


class StoreNotFoundError(StoreError):
    """There is no store in that place, and ``create=False`` said not to make one."""


class StoreUnavailableError(StoreError):
    """Nothing was changed, and the same call may succeed later."""


class StoreFullError(StoreError):
    """There is no room; nothing was written, and what was stored is intact."""


class OutcomeUnknownError(StoreError):
    """The commit may or may not have happened: read again before you decide."""


class RecordError(KVReplayError):
    """A stored replay record cannot be used; it is never returned as an answer.

    Attributes:
        addresses: where the store has it, as (primary namespace, secondary namespace, key), to be
            looked at or removed there. Several, if ``records()`` raises it. The message and the
            ``repr`` do not show them, since they may show keys.
    """

    addresses: tuple[tuple[str, str, str], ...] = ()


class CorruptRecordError(RecordError):
    """The bytes have a wrong checksum or shape, or belong to another key."""


class UnsupportedRecordVersionError(RecordError):
    """A newer kvreplay wrote this intact record: upgrade this node to read it."""


class ReplayError(KVReplayError):
    """The root of the replay protocol's errors: this request has no answer."""


class InvalidParamsError(ReplayError, ValueError):
    """The parameters, the key or an option of the call cannot be stored; nothing ran."""


class StaleFlowError(ReplayError):
    """The request does not belong to a live record of its key: start a new flow."""


class ParamsMismatchError(StaleFlowError):
    """The key is bound to other parameters; its record is untouched."""


class ExpiredError(StaleFlowError):
    """The key had an answer, and that answer has expired."""


class InFlightError(ReplayError):
    """Another owner is running this key; nothing ran here.

    Attributes:
        retry_after: how many seconds to wait before asking again.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class InDoubtError(ReplayError):
    """A run began, and nobody knows how it ended: it may or may not have taken effect.

    It is never run again silently. Ask the system that the handler acts on, then
    settle the key with ``resolve`` or ``release``, or give ``Replay`` a policy.

    Attributes:
        retry_after: how many seconds to wait before asking again, as a reconciler said with
            ``Unknown``; ``None``: nobody knows.
        response: what the handler returned, if it ran for this request and its answer may not be
            stored. If its effect counts: ``resolve(key, response=error.response)``. ``None``: there
            is none, or it was ``None``. It is never part of the message or the ``repr``.
    """

    def __init__(
        self, *args: object, retry_after: float | None = None, response: Any = None
    ) -> None:
        super().__init__(*args)
        self.retry_after = retry_after
        self.response = response


class IndeterminateError(InDoubtError):
    """Raised *by a handler* that cannot tell whether its effect happened.

    The claim stays, so the key is in doubt instead of free to run again.
    """


class ResponseNotStorableError(InDoubtError):
    """The handler ran, but its response cannot be stored: the key is in doubt."""


class InvalidResponseError(ReplayError, ValueError):
    """A response cannot be stored, and nothing is in doubt by it.

    It was given to ``resolve``, by a reconciler, or by the handler of a transaction, whose writes
    were undone.
    """


class ResponseTypeError(ReplayError):
    """The stored answer does not fit the type that is asked for; nothing ran, it is untouched.

    Its class, or ``returns=``, has changed since the answer was stored. ``record(key)`` still shows
    what is stored.
    """


class StoredFailureError(ReplayError):
    """The key was answered with a final failure whose class is not built again.

    ``store_errors`` does not list that very class, or it cannot be built from what is stored so
    that it has the same arguments.

    Attributes:
        name: the full name of the class.
        arguments: the exception's arguments; ``None``: they could not be stored. They are never
            part of the message or the ``repr``.
    """

    def __init__(self, message: str, name: str, arguments: tuple[Any, ...] | None) -> None:
        super().__init__(message)
        self.name = name
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:  # args has only the message, which all may see
        return type(self), (*self.args, self.name, self.arguments), self.__dict__


class ReplayClosedError(ReplayError):
    """``close()`` was called, so no handler begins here any more; nothing ran."""


class NotAppliedError(ReplayError):
    """Raised *by a handler* whose effect did not happen and cannot happen any more.

    The key is freed, whatever ``doubt_on`` says, and the error propagates. It speaks for the whole
    handler: inside an exception group it does not, and a handler that did something else must
    catch the one of a request nested in it.
    """


class ClaimLostError(ReplayError):
    """The handler ran, but another owner had taken the key over: that owner's result counts.

    Or it ran in a transaction of the caller's own, and has ended that itself: then what it has
    committed stands, without an answer.
    """


class MigrationError(KVReplayError):
    """The root of what ``migrate`` refuses; the source is as it was."""


class DestinationNotEmptyError(MigrationError):
    """The destination has entries of its own; none of them was changed."""


class ClaimsInProgressError(MigrationError):
    """The source has requests in progress: let them end, settle them, or migrate them too.

    Attributes:
        claims: which, as far as they are named: (:meth:`kvreplay.ReplayKey.digest`, what is known
            of the run).
    """

    def __init__(self, message: str, claims: tuple[tuple[str, str], ...]) -> None:
        super().__init__(message, claims)
        self.claims = claims

    def __str__(self) -> str:
        return str(self.args[0])


class NotEqualError(MigrationError):
    """The second pass found that the destination is not equal to the source: migrate again.

    Attributes:
        differences: how many entries differ, at least.
    """

    def __init__(self, message: str, differences: int) -> None:
        super().__init__(message, differences)
        self.differences = differences

    def __str__(self) -> str:
        return str(self.args[0])


class ConfigError(KVReplayError, ValueError):
    """A setting is wrong; the message names it and the nearest valid one."""
