"""The store contract on PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvreplay import open_store
from kvreplay.backends.postgresql import PostgreSQLStore
from kvreplay.testing import StoreContract


class TestPostgreSQLStore(StoreContract):
    def open(self, path: Path) -> PostgreSQLStore:
        """Open the store whose URL is in the file at this path: other processes do so too."""
        store = open_store(path.read_text(encoding="utf-8"))
        assert isinstance(store, PostgreSQLStore)
        return store

    @pytest.fixture
    def path(self, tmp_path: Path, postgres: Any) -> Path:
        path = tmp_path / "url"
        path.write_text(postgres.url, encoding="utf-8")
        return path
