"""Measuring a tier: what is measured, verified, bounded, and gone afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tierstore.backends import memory
from tierstore.backends.memory import MemoryBackend
from tierstore.config import TierConfig, load_config
from tierstore.errors import ConfigError, IntegrityError, ModelError, UnreachableError
from tierstore.model import bench
from tierstore.model.bench import Limits, copy_rate, measure, schedule
from tierstore.model.probe import OPERATIONS
from tierstore.registry import open_backend

K = 1 << 10
SHORT = Limits(seconds=0.1, sizes=(4 * K, 16 * K, 64 * K), concurrency=(1, 2, 3))


def tier(url: str) -> TierConfig:
    (found,) = load_config(url).tiers
    return found


def keys(url: str) -> list[str]:
    return [info.key for info in open_backend(url).list("")]


@pytest.fixture
def url() -> str:
    return "memory://bench/here"


@pytest.mark.usefixtures("no_leaks")
def test_every_cell_is_measured_and_nothing_stays(url: str) -> None:
    told: list[Any] = []
    found = measure(tier(url), SHORT, lambda *progress: told.append(progress))
    cells = {(p.operation, p.nbytes, p.concurrency) for p in found.points}
    for operation in OPERATIONS:
        sizes = {"first": [1], "list": [1, 8, 32], "range": [4 * K, 16 * K]}.get(
            operation, [4 * K, 16 * K, 64 * K]
        )
        wanted = {(operation, size, many) for size in sizes for many in (1, 2, 3)}
        assert {cell for cell in cells if cell[0] == operation} == wanted
    for p in found.points:
        assert p.requests == p.rounds * p.concurrency * (p.requests // p.rounds // p.concurrency)
        assert 0 < p.p50 <= p.p90 <= p.p99 <= p.longest
        assert 0 < p.first_done <= p.last_done
        assert (p.commit > 0) == (p.operation == "put")
        assert p.commit < p.seconds
    assert (found.name, found.local, found.reads_back) == ("memory", True, False)
    assert found.stopped in ("seconds", "stable")
    assert keys(url) == []
    assert told[0][0] is None
    for operation in ("put", "write", "commit", "read", "list"):
        assert found.fit(operation).points >= 9


@pytest.mark.usefixtures("no_leaks")
def test_a_folder_is_left_as_it_was(tmp_path: Path) -> None:
    at = tmp_path / "new" / "tier"
    found = measure(tier(at.as_uri()), SHORT)
    assert found.local
    assert list(tmp_path.iterdir()) == []


class Flaky(MemoryBackend):
    """Fails, lies or is interrupted in the n-th read."""

    fate: BaseException | str = ""
    reads = 0

    def read_into(self, key: str, offset: int, *buffers: memoryview) -> None:
        super().read_into(key, offset, *buffers)
        Flaky.reads += 1
        if Flaky.reads == 40:
            if isinstance(self.fate, BaseException):
                raise self.fate
            buffers[0][0] ^= 1


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[Flaky]:
    monkeypatch.setattr(memory, "MemoryBackend", Flaky)
    monkeypatch.setattr(Flaky, "reads", 0)
    return Flaky


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(
    ("fate", "error"),
    [
        ("a flipped bit", IntegrityError),
        (UnreachableError("gone"), UnreachableError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["flipped", "lost", "interrupted"],
)
def test_whatever_ends_it_nothing_stays(
    flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch, url: str, fate: Any, error: Any
) -> None:
    monkeypatch.setattr(flaky, "fate", fate)
    hasty = TierConfig("t", url, policy=load_config(f"{url}?retry_seconds=0").tiers[0].policy)
    with pytest.raises(error):
        measure(hasty, SHORT)
    assert flaky.reads >= 40
    assert keys(url) == []


@pytest.mark.usefixtures("no_leaks")
def test_an_interrupt_waits_for_no_store_that_is_down(
    flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    def listed(self: Flaky, *words: Any, real: Any = MemoryBackend.list, **more: Any) -> Any:
        if flaky.reads >= 40:
            raise UnreachableError("gone")
        return real(self, *words, **more)

    monkeypatch.setattr(bench, "_CLEANING", 0)
    monkeypatch.setattr(flaky, "fate", KeyboardInterrupt())
    monkeypatch.setattr(flaky, "list", listed)
    patient = TierConfig("t", url, policy=load_config(f"{url}?retry_seconds=30").tiers[0].policy)
    told: list[float] = []
    monkeypatch.setattr("tierstore.wrappers.retry.Retrying._rest", lambda _, s: told.append(s))
    with pytest.raises(KeyboardInterrupt):
        measure(patient, SHORT)
    assert not told


def test_bytes_are_a_limit(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_MOST_EACH", 1)  # else so many as fill a time
    monkeypatch.setattr(bench, "_is_stable", lambda _rounds: False)
    one_pass = Limits(1e9, 1 << 40, SHORT.sizes, SHORT.concurrency)
    backend = open_backend(url)
    plan = schedule(tier(url), backend.capabilities, one_pass)
    moved = 3 * sum(plan.sizes) + sum(cell.moved for cell in plan.cells)
    found = measure(tier(url), Limits(1e9, 5 * moved, SHORT.sizes, SHORT.concurrency))
    assert found.stopped == "bytes"
    puts = sum(p.nbytes * p.requests for p in found.points if p.operation != "list")
    assert moved < puts <= 5 * moved


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(nbytes=1000), "warm-up and one pass move .* bytes, the limit is 1000"),
        (Limits(sizes=(1 << 30,)), "1073741824 bytes are more than one request of it"),
    ],
)
def test_limits_that_leave_nothing(url: str, limits: Limits, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(tier(url), limits)


@pytest.mark.parametrize(
    "given",
    [{"seconds": 0}, {"seconds": -1}, {"nbytes": 0}, {"sizes": (0,)}, {"concurrency": (-1,)}],
)
def test_wrong_limits(given: dict) -> None:
    with pytest.raises(ModelError):
        Limits(**given)
    with pytest.raises(ConfigError, match="no operation 'push'"):
        Limits(operations=("push",))


def test_memory_is_copied_at_some_rate() -> None:
    assert 0 < copy_rate(1 << 20) < 1e13
