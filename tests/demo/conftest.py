"""A node of the demo, for each module. Without the demo's extra nothing here is run, and that is said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvreplay import ConfigError
from support.demo_node import write_config

if TYPE_CHECKING:
    from kvreplay.demo.client import Node

try:
    import kvreplay.demo.invoice
    import kvreplay.demo.printing  # noqa: F401
except (ConfigError, ModuleNotFoundError) as error:
    if os.environ.get("CI") == "true":
        raise
    MISSING = str(error)
else:
    MISSING = ""


class NotRun(pytest.Module):
    """A module whose imports would fail."""

    def collect(self) -> Iterator[pytest.Item]:
        pytest.skip(MISSING, allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    return NotRun.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    from kvreplay.demo.client import Node

    directory = tmp_path_factory.mktemp("node")
    node = Node(write_config(directory), directory / "node.log")
    try:
        yield node
        assert node.stop() == 0
        assert node.last_words() == ""
    finally:
        node.close()
