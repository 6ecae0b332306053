"""The contract on a ladder as one backend, whichever of its tiers is written to."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import Bucket
from tests.contract.test_local import FolderContract
from tests.contract.test_memory import TestMemory as MemoryContract
from tests.contract.test_s3 import SHORT, _S3Contract
from tests.contract.test_s3 import on_minio as on_minio
from tests.contract.test_s3 import short_pages as short_pages
from tierstore.backends import memory
from tierstore.backends.memory import open_memory
from tierstore.config import TierConfig
from tierstore.ladder.tiers import OpenTier
from tierstore.ladder.union import UnionBackend
from tierstore.testing.contract import BackendContract
from tierstore.testing.contract_base import Hooks

_numbers = itertools.count()


class UnionContract(BackendContract):
    """What others stored is on this tier and that; what is read and written, on any."""

    write_to: str
    tiers: dict[str, Hooks]

    def open(self) -> UnionBackend:
        opened = [
            OpenTier(TierConfig(name, f"x://{name}"), hooks.open())
            for name, hooks in self.tiers.items()
        ]
        return UnionBackend(opened, self.write_to)

    def raw_get(self, key: str) -> bytes:
        (data,) = (hooks.raw_get(key) for hooks in self.tiers.values() if key in hooks.raw_list())
        return data

    def raw_put(self, key: str, data: bytes) -> None:
        hooks = [*self.tiers.values()]
        hooks[next(_numbers) % len(hooks)].raw_put(key, data)

    def raw_list(self) -> list[str]:
        return [key for hooks in self.tiers.values() for key in hooks.raw_list()]

    def raw_uploads(self) -> Sequence[object]:
        return [each for hooks in self.tiers.values() for each in hooks.raw_uploads()]


def _memory() -> MemoryContract:
    hooks = MemoryContract()
    hooks.url = f"memory://union/{secrets.token_hex(8)}"
    open_memory(hooks.url)
    hooks.space = memory._spaces[hooks.url]
    return hooks


def _folder(root: Path) -> FolderContract:
    hooks = FolderContract()
    hooks.root = root
    return hooks


@pytest.mark.parametrize("write_to", ["memory", "nvme"])
class TestMemoryAndFolder(UnionContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, write_to: str):
        self.write_to = write_to
        self.tiers = {"memory": _memory(), "nvme": _folder(tmp_path)}


@pytest.mark.minio
@pytest.mark.parametrize("write_to", ["nvme", "s3"])
class TestFolderAndMinIO(UnionContract):
    many = SHORT + 3

    @pytest.fixture(autouse=True)
    def _place(
        self,
        tmp_path: Path,
        on_minio: Bucket,
        short_pages: None,
        write_to: str,
        monkeypatch: pytest.MonkeyPatch,
    ):
        s3 = _S3Contract()
        s3.place(on_minio, monkeypatch)
        self.write_to, self.tiers = write_to, {"nvme": _folder(tmp_path), "s3": s3}
