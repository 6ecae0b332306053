"""Fixtures for tests with real processes and real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ends import End, hdfs_end, local_end, s3_end
from tests.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """A pool of processes that play the ranks; see `tests.ranks`."""
    pool = Ranks()
    yield pool
    pool.close()


@pytest.fixture
def end(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], End]:
    """Make an end of one kind, of a name that tells source from destination."""

    def make(kind: str, name: str) -> End:
        if kind == "local":
            return local_end(tmp_path / name)
        if kind == "s3":
            return s3_end(request.getfixturevalue("minio_bucket"), name)
        return hdfs_end(request.getfixturevalue("hdfs_root"), name)

    return make
