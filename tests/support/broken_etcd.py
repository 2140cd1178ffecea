"""The engine on etcd with one thing wrong, in a process that has nothing else to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvreplay import StoreUnavailableError
from kvreplay.backends.etcd import cluster, operations

__all__ = ["BROKEN"]


def reads_from_one_member() -> None:
    """It believes what a member has, though others may have decided something else."""
    one = operations.one
    operations.one = lambda key: one(key)[:-1] + b',"serializable":true}'


def sends_a_change_again() -> None:
    """It takes a change for a read, which is sent again if its answer was lost."""
    transaction = operations.transaction
    operations.transaction = lambda *args, **more: transaction(*args, **{**more, "changes": False})


def denies_what_it_has_sent() -> None:
    """It says that nothing was changed where it does not know."""
    cluster.no_answer = lambda why: StoreUnavailableError("nothing was changed")


def compares_nothing() -> None:
    """It changes whatever is there."""
    transaction = operations.transaction
    operations.transaction = lambda compare, *rest, **more: transaction((), *rest, **more)


BROKEN: Mapping[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        *(reads_from_one_member, sends_a_change_again, denies_what_it_has_sent),
        compares_nothing,
    )
}
"""By their names."""
