"""What takes a whole store: its identity, and histories of all its calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

__all__ = ["WholeTests"]


class WholeTests:
    """They open stores of their own, as the author's class says."""

    open: ClassVar[Callable[..., Any]]
    durable: ClassVar[bool]

    def test_the_identity_is_that_of_the_entries(
        self, store: Any, another: Callable[[], Any], tmp_path: Path
    ) -> None:
        if not hasattr(store, "identity"):
            pytest.skip(f"{type(store).__name__} has no identity, which is optional")
        assert another().identity == store.identity
        assert hash(another().identity) == hash(store.identity)
        with self.open(tmp_path / "different") as different:
            assert different.identity != store.identity

    def test_histories_agree_with_a_dictionary(self, tmp_path: Path) -> None:
        pytest.importorskip(
            "hypothesis", reason="needs Hypothesis: pip install 'kvreplay[testing]'"
        )
        from kvreplay.testing.model import check_against_a_dictionary

        paths: list[Path] = []

        def open_fresh() -> Any:
            paths.append(tmp_path / f"store{len(paths)}")
            return self.open(paths[-1])

        def reopen(store: Any) -> Any:
            store.close()
            return self.open(paths[-1])

        check_against_a_dictionary(open_fresh, reopen if self.durable else None)
