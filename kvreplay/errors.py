"""One hierarchy of errors: one class for each decision that a caller can take.

Nothing here, neither a message nor a ``repr``, ever contains a payload or a key:
an error may be logged as it is.
"""

from __future__ import annotations

__all__ = [
    "ClaimLostError",
    "ConfigError",
    "CorruptRecordError",
    "CorruptStoreError",
    "ExpiredError",
    "InDoubtError",
    "InFlightError",
    "IndeterminateError",
    "InvalidNameError",
    "InvalidParamsError",
    "InvalidValueError",
    "KVReplayError",
    "KeyNotFoundError",
    "OutcomeUnknownError",
    "ParamsMismatchError",
    "RecordError",
    "ReplayError",
    "ResponseNotStorableError",
    "StaleFlowError",
    "StoreError",
    "StoreFullError",
    "StoreUnavailableError",
    "UnsupportedRecordVersionError",
]


class KVReplayError(Exception):
    """The root: every error that kvreplay raises on purpose is one of these."""


class StoreError(KVReplayError):
    """A store refused or failed; the driver's exception is its ``__cause__``.

    Nothing changed in the store, unless it is an :class:`OutcomeUnknownError`.
    """


class KeyNotFoundError(StoreError, KeyError):
    """``read`` found no entry under that name. No other failure is ever reported so."""

    # KeyError would show its message in quotes, as if it were a key.
    __str__ = Exception.__str__


class InvalidNameError(StoreError, ValueError):
    """A namespace or key breaks LDK's name rules; nothing was touched."""


class InvalidValueError(StoreError, ValueError):
    """A value is not ``bytes``, or an expiry is not a time; nothing was touched."""


class CorruptStoreError(StoreError):
    """The store's own files are damaged, emptied, foreign or of another format."""


class StoreUnavailableError(StoreError):
    """Nothing was changed, and the same call may succeed later."""


class StoreFullError(StoreError):
    """There is no room; nothing was written, and what was stored is intact."""


class OutcomeUnknownError(StoreError):
    """The commit may or may not have happened: read again before deciding."""


class RecordError(KVReplayError):
    """A stored replay record cannot be used; it is never taken for an answer."""


class CorruptRecordError(RecordError):
    """The bytes fail their checksum or shape, or belong to another key."""


class UnsupportedRecordVersionError(RecordError):
    """An intact record that a newer kvreplay wrote: upgrade this node to read it."""


class ReplayError(KVReplayError):
    """The replay protocol's answer to a request that it neither ran nor replayed."""


class InvalidParamsError(ReplayError, ValueError):
    """Parameters, a key or a call's option that cannot be stored; nothing ran."""


class StaleFlowError(ReplayError):
    """The request does not belong to a live record of its key: start a new flow."""


class ParamsMismatchError(StaleFlowError):
    """The key is bound to other parameters; its record is untouched."""


class ExpiredError(StaleFlowError):
    """The key was answered once, and the answer's time is over."""


class InFlightError(ReplayError):
    """Another owner is running this key; nothing ran here.

    Attributes:
        retry_after: seconds after which asking again is worth it.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class InDoubtError(ReplayError):
    """A run began and nobody knows its end: it may or may not have taken effect.

    It is never run again silently. Ask the system that the handler acts on, then
    settle the key with ``resolve`` or ``release``, or give ``Replay`` a policy.
    """


class ClaimLostError(ReplayError):
    """The handler ran, but another owner had taken the key over: its result rules."""


class IndeterminateError(ReplayError):
    """Raised *by a handler* that cannot tell whether its effect happened.

    The claim stays, so the key is in doubt instead of free to run again.
    """


class ResponseNotStorableError(ReplayError):
    """The handler ran, but its response cannot be stored: the key is in doubt."""


class ConfigError(KVReplayError, ValueError):
    """A setting is wrong; the message names it and the nearest valid one."""
