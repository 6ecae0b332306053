"""The contract on wrapped backends: no wrapper may change what a backend promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.test_local import FolderContract
from tests.contract.test_memory import TestMemory as MemoryContract
from tests.fired import fired
from tierstore.backend import Backend
from tierstore.blocks import crc32c
from tierstore.config import Policy, TierConfig
from tierstore.errors import DeadlineError, ThrottledError, UnreachableError
from tierstore.wrappers import open_tier
from tierstore.wrappers.bandwidth import Throttled
from tierstore.wrappers.delegate import Delegate
from tierstore.wrappers.faults import Fault, Faulty
from tierstore.wrappers.limit import Limited
from tierstore.wrappers.metrics import Metered
from tierstore.wrappers.retry import Budget, Retrying

_ANSWERS = (
    *("create", "write", "commit", "abort", "delete", "read_into", "fetch", "stat", "list"),
    "flush",
)
_FLAKY = [
    Fault("*", nth=2, every=3, error=UnreachableError("gone")),
    Fault("*", nth=5, every=11, error=ThrottledError("slow down", retry_after=0.001)),
    *(Fault(op, nth=2, every=4, error=DeadlineError("late"), after=True) for op in _ANSWERS),
]


@pytest.mark.parametrize(
    "wrap",
    [
        Delegate,
        Faulty,
        Metered,
        Retrying,
        lambda inner: Limited(inner, 2),
        lambda inner: Throttled(inner, read=1e12, write=1e12),
    ],
    ids=["delegate", "faulty", "metered", "retrying", "limited", "throttled"],
)
class TestWrappedMemory(MemoryContract):
    @pytest.fixture(autouse=True)
    def _wrap(self, wrap):
        self.wrap = wrap

    def open(self) -> Backend:
        return self.wrap(super().open())


class TestWholeStack(FolderContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path):
        self.root = tmp_path

    def open(self) -> Backend:
        policy = Policy(max_requests=3, read_bandwidth=10**12, write_bandwidth=10**12)
        return open_tier(TierConfig("nvme", f"file://{self.root}", policy=policy))


class TestFlakyFolder(FolderContract):
    """A third of all requests fail and a quarter of the answers are lost; retries hide it."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path):
        self.root = tmp_path

    def open(self) -> Backend:
        self.faulty = Faulty(super().open(), *_FLAKY)
        return Retrying(self.faulty, budget=Budget(1e9), pause=lambda _: False)

    def test_the_faults_happen(self, backend: Backend) -> None:
        for number in range(30):
            key = f"k{number}"
            backend.create(key, b"x", durable=False)
            backend.flush()
            upload = backend.upload(key, 1)
            upload.write(0, b"y", crc32c(b"y"))
            upload.commit()
            backend.upload(key, 1).abort()
            assert backend.stat(key).size == 1
            backend.read_into(key, 0, memoryview(bytearray(1)))
            backend.fetch(key, memoryview(bytearray(1)))
            assert [info.key for info in backend.list("")] == [key]
            backend.delete([key])
        assert all(fired(self.faulty)), dict(zip(_FLAKY, fired(self.faulty), strict=True))
