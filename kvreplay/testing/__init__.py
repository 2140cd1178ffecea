"""The store contract as tests. Any backend can run them, ours or yours.

::

    class TestMyStore(StoreContract):
        open = MyStore

It needs pytest, and Hypothesis for one of its tests: ``pip install 'kvreplay[testing]'``.
"""

import pytest

# This comes before their import, so that a failing assertion shows what it compared.
pytest.register_assert_rewrite(
    *(
        f"kvreplay.testing.{module}"
        for module in (
            *(
                "batches",
                "check_and_put",
                "closing",
                "contract",
                "entries",
                "expiry",
                "faults",
                "foreign",
                "forking",
                "inspecting",
                "lazy",
                "limits",
                "model",
                "names",
            ),
            *("paging", "plain", "processes", "prompt", "threads", "transactions", "walking"),
            "whole",
        )
    )
)

from kvreplay.testing.contract import StoreContract  # noqa: E402

__all__ = ["StoreContract"]
