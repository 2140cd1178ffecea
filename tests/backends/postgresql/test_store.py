"""The store contract on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay.testing import StoreContract
from support.postgres_stores import FAULTS, FOREIGN, open_at, role_of


class TestPostgreSQLStore(StoreContract):
    open = staticmethod(open_at)
    faults = FAULTS
    foreign = FOREIGN

    @pytest.fixture(autouse=True)
    def role(self, tmp_path: Path, postgres: Any) -> Iterator[None]:
        with role_of(postgres, tmp_path):
            yield
