"""Fixtures for tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """A pool of processes that play the ranks; see `tests.ranks`."""
    pool = Ranks()
    yield pool
    pool.close()
