"""Final failures, such as a declined card: stored with the key, and raised again for a retry.

Stored are the class's full name and the arguments. Only a class that the caller lists is ever built
again, and none is imported by its name.
"""

from __future__ import annotations

from kvreplay._protocol.record import ReplayRecord, encode_response
from kvreplay.errors import StoredFailureError

__all__ = ["built_again", "encode_failure", "name_of"]


def encode_failure(error: Exception, *, arguments: bool = True) -> bytes:
    """Encode the class's name, and the arguments or ``None``.

    Raises:
        InvalidResponseError: msgpack cannot hold the arguments.
    """
    name = name_of(type(error))
    return encode_response([name, list(error.args) if arguments else None], "nothing was stored")


def built_again(record: ReplayRecord, store_errors: tuple[type[Exception], ...]) -> Exception:
    """Return the stored failure as an exception of its class, if that is listed and takes it.

    Raises:
        CorruptRecordError: the record does not hold a failure.
    """
    failure = record.load_failure()
    assert failure is not None  # its state says that it is one
    name, arguments = failure
    listed = next((each for each in store_errors if name_of(each) == name), None)
    if listed is None or arguments is None:
        why = "its arguments could not be stored" if listed else "store_errors does not list it"
        return _stored(name, arguments, why)
    why = "its class makes other arguments of those that it had"
    problem: Exception | None = None
    try:
        again = listed(*arguments)
        if encode_failure(again) == record.response:
            return again
    except Exception as error:  # of the class's own code
        problem, why = error, "its class cannot be built from its arguments"
    stored = _stored(name, arguments, why)
    stored.__cause__ = problem
    return stored


def _stored(name: str, arguments: list[object] | None, why: str) -> StoredFailureError:
    return StoredFailureError(
        f"this key was answered with a final failure, a {name}; {why}, so this error stands for it;"
        " nothing ran",
        name,
        None if arguments is None else tuple(arguments),
    )


def name_of(kind: type) -> str:
    """Return the name of a class that a record keeps."""
    return f"{kind.__module__}.{kind.__qualname__}"
