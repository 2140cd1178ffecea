"""Both faces of the store: one test goes over blocking and over awaited calls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.postgres_faults import FACES, Opener


@pytest.fixture(params=FACES)
def opened(request: pytest.FixtureRequest) -> Iterator[Opener]:
    opener = Opener(request.param)
    yield opener
    opener.close()
