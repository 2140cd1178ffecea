"""What tests need: those of an application that uses kvreplay, and those of a backend's author.

For an application, with any test runner: :class:`ManualClock`, :class:`FaultyStore`, and
:func:`kill_in_handler`.

For a backend, the store contract as tests::

    class TestMyStore(StoreContract):
        open = MyStore

One of an asynchronous store is opened by :class:`Blocking`.

:class:`StoreContract` needs pytest, and Hypothesis for one of its tests:
``pip install 'kvreplay[testing]'``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from kvreplay.testing.blocking import Blocking
from kvreplay.testing.clock import ManualClock
from kvreplay.testing.faulty_store import FaultyStore
from kvreplay.testing.killing import die, kill_in_handler

__all__ = ["Blocking", "FaultyStore", "ManualClock", "StoreContract", "die", "kill_in_handler"]

_WITH_ASSERTIONS: Final = (
    *("backups", "batches", "check_and_put", "checking", "closing", "contract", "entries"),
    *("expiry", "faults", "foreign", "forking", "inspecting", "lazy", "limits", "model", "names"),
    *("paging", "plain", "processes", "prompt", "scanning", "threads", "transactions", "walking"),
    "whole",
)


def _show_what_assertions_compare() -> None:
    """Let a failing assertion of the kit show what it compared. This comes before its import."""
    import pytest

    pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _WITH_ASSERTIONS))


if sys.modules.get("pytest") is not None:  # even for who imports only a part of the kit
    _show_what_assertions_compare()

# It is loaded when it is first used: an application's tests need no pytest.
if TYPE_CHECKING:
    from kvreplay.testing.contract import StoreContract
else:

    def __getattr__(name: str) -> object:
        if name != "StoreContract":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            import pytest  # noqa: F401  # whether it is there
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "kvreplay.testing.StoreContract needs pytest, which is not installed; install it:"
                " pip install 'kvreplay[testing]'",
                name=error.name,
            ) from error
        if f"{__name__}.contract" not in sys.modules:
            _show_what_assertions_compare()
        from kvreplay.testing.contract import StoreContract

        return globals().setdefault(name, StoreContract)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
