"""The contract on a real HDFS, bare and wrapped."""

from __future__ import annotations

import itertools
import secrets

import pytest

from tests.conftest import HdfsRoot
from tierstore.backend import Backend
from tierstore.config import TierConfig
from tierstore.testing.contract import BackendContract
from tierstore.testing.contract_base import ODD_KEYS
from tierstore.testing.servers import HdfsServer
from tierstore.wrappers import open_tier
from tierstore_hdfs import HdfsOptions, open_hdfs

PART = 4 * 1024 * 1024
_numbers = itertools.count()


@pytest.mark.hdfs
class TestHdfs(BackendContract):
    """Each test has a folder of its own, which the backend makes."""

    root: HdfsRoot
    many = 85  # the fixture's pages are short
    odd_keys = tuple(key.replace(":", "") for key in ODD_KEYS)

    @pytest.fixture(autouse=True)
    def _place(self, hdfs_server: HdfsServer, monkeypatch: pytest.MonkeyPatch):
        for name, value in hdfs_server.environment().items():
            monkeypatch.setenv(name, value)
        path = f"/contract/a tier-{secrets.token_hex(4)}/é+%{next(_numbers)}"
        self.root = HdfsRoot(hdfs_server, path)
        yield
        hdfs_server.client().remove(path)

    def open(self) -> Backend:
        return open_hdfs(self.root.url, HdfsOptions(part_size=PART))

    def raw_get(self, key: str) -> bytes:
        return self.root.read(key)

    def raw_put(self, key: str, data: bytes) -> None:
        self.root.write(key, data)

    def raw_list(self) -> list[str]:
        return [key for key in self._held() if ".tierstore-" not in key]

    def raw_uploads(self) -> list[str]:
        return [key for key in self._held() if ".tierstore-" in key]

    def _held(self) -> list[str]:
        there = self.root.server.client().status(self.root.path)
        return self.root.keys("") if there else []


@pytest.mark.hdfs
class TestHdfsWrapped(TestHdfs):
    def open(self) -> Backend:
        return open_tier(TierConfig("hdfs", self.root.url, options={"part_size": PART}))
