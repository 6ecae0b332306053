"""A run, and checkpoints of several ranks, on a real HDFS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.collect_rules import CollectRules
from tests.conftest import HdfsRoot
from tests.integration import reshard_cases
from tests.layouts import LAYOUTS
from tests.mirror_rules import MirrorRules
from tests.ranks import Ranks
from tests.store_rules import StoreRules
from tierstore.backend import Backend
from tierstore_hdfs import open_hdfs


@pytest.mark.hdfs
class TestHdfs(StoreRules, CollectRules, MirrorRules):
    @pytest.fixture
    def backend(self, hdfs_root: HdfsRoot) -> Iterator[Backend]:
        backend = open_hdfs(f"{hdfs_root.url}/tier")
        yield backend
        assert not list(backend.uploads())
        backend.close()


@pytest.mark.hdfs
@pytest.mark.torch
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_save_and_three_restore(ranks: Ranks, hdfs_root: HdfsRoot, layout: str) -> None:
    urls = [f"{hdfs_root.url}?user={hdfs_root.server.user}"]
    assert len(set(ranks.run(2, reshard_cases.save, urls, layout, 7))) == 1
    for into in {layout, "fsdp"}:
        for step, wrong in ranks.run(3, reshard_cases.load, urls, layout, into, 2):
            assert (step, wrong) == (7, [])
