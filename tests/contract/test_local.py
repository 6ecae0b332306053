"""The contract on folders: on a disk, in tmpfs, and with each way of reading and writing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tierstore.backends.local.backend import LocalBackend, LocalOptions, open_local
from tierstore.testing.contract import BackendContract


class FolderContract(BackendContract):
    options = LocalOptions()
    root: Path

    def open(self) -> LocalBackend:
        return open_local(f"file://{self.root}", self.options)

    def raw_get(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def raw_put(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def raw_list(self) -> list[str]:
        files = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        return [str(path) for path in files if path.parts[0] != ".tierstore-tmp"]

    def raw_uploads(self) -> Sequence[object]:
        return list((self.root / ".tierstore-tmp").glob("*"))


class TestDisk(FolderContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path):
        self.root = tmp_path / "not" / "there yet"


class TestTmpfs(FolderContract):
    options = LocalOptions(fsync=False)

    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        self.root = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="tierstore-test-"))
        yield
        shutil.rmtree(self.root)


class TestDirect(FolderContract):
    options = LocalOptions(direct="always")

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path):
        self.root = tmp_path


class TestBuffered(FolderContract):
    options = LocalOptions(direct="never")

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path):
        link = tmp_path / "link"
        (tmp_path / "target").mkdir()
        link.symlink_to(tmp_path / "target")
        self.root = link
