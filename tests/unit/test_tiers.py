"""Which ranks share a tier is found out when the ladder is opened."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.patience import PATIENCE
from tierstore.backend import Capabilities
from tierstore.backends.local.backend import LocalBackend
from tierstore.backends.memory import MemoryBackend
from tierstore.config import Config, TierConfig
from tierstore.errors import AccessError, CheckpointError, ConfigError
from tierstore.ladder.tiers import Exchange, close_ladder, open_ladder
from tierstore.registry import open_backend
from tierstore.wrappers import open_tier


@pytest.fixture
def ranks() -> Callable[..., list[Any]]:
    """Run a function in one thread a rank, with an all-gather between them."""

    def run(world: int, work: Callable[[int, Exchange], Any]) -> list[Any]:
        barrier = threading.Barrier(world, timeout=PATIENCE)
        slots: list[object] = [None] * world

        def exchange(rank: int, item: object) -> list[object]:
            barrier.wait()
            slots[rank] = item
            barrier.wait()
            return list(slots)

        with ThreadPoolExecutor(world) as pool:
            futures = [
                pool.submit(work, rank, lambda item, rank=rank: exchange(rank, item))
                for rank in range(world)
            ]
            return [future.exception() or future.result() for future in futures]

    return run


def test_sharing_is_discovered_per_tier(
    tmp_path: Path, ranks: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks 0 and 1 on one node, 2 and 3 on the other."""
    machine = threading.local()
    monkeypatch.setattr("tierstore.ladder.tiers._machine", lambda: machine.name)

    def work(rank: int, exchange: Exchange) -> list[tuple[int, ...]]:
        machine.name = (f"node{rank // 2}",)
        config = Config(
            (
                TierConfig("local", f"file://{tmp_path}/node{rank // 2}"),
                TierConfig("shared", f"file://{tmp_path}/shared"),
                TierConfig("own", f"memory://rank{rank}"),
            )
        )
        tiers = open_ladder(config, rank=rank, world_size=4, exchange=exchange)
        close_ladder(tiers)
        return [one.ranks for one in tiers]

    everyone = (0, 1, 2, 3)
    nodes = [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert ranks(4, work) == [[nodes[rank], everyone, (rank,)] for rank in range(4)]
    assert not [path for path in tmp_path.rglob("probes/*") if path.is_file()]


@pytest.mark.parametrize("seen_by", ["process", "host"])
def test_who_sees_a_backend_that_promises_little_is_found_out(
    tmp_path: Path,
    ranks: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    seen_by: Literal["process", "host"],
) -> None:
    """Ranks 0 and 1 are of one node; what 0 to 2 call `half` is one place."""
    machine = threading.local()
    monkeypatch.setattr("tierstore.ladder.tiers._machine", lambda: machine.name)
    monkeypatch.setattr(LocalBackend, "capabilities", Capabilities(seen_by=seen_by))

    def work(rank: int, exchange: Exchange) -> list[tuple[int, ...]]:
        machine.name = ("node", str(rank // 2))
        urls = ["all", "half" if rank < 3 else "other", f"own{rank}"]
        tiers = [TierConfig(f"t{n}", f"file://{tmp_path}/{url}") for n, url in enumerate(urls)]
        tiers.append(TierConfig("memory", "memory://tiers/of-one-process"))
        ladder = open_ladder(Config(tuple(tiers)), rank=rank, world_size=4, exchange=exchange)
        close_ladder(ladder)
        return [one.ranks for one in ladder]

    everyone, half = (0, 1, 2, 3), [(0, 1, 2), (0, 1, 2), (0, 1, 2), (3,)]
    # Of `own` a host's second rank writes no probe, and its place shows none: nobody else's.
    assert ranks(4, work) == [[everyone, half[rank], (rank,), everyone] for rank in range(4)]
    assert not [path for path in tmp_path.rglob("probes/*") if path.is_file()]
    assert not list(open_backend("memory://tiers/of-one-process", {}).list("probes/"))


def test_what_all_hosts_see_is_not_probed(
    ranks: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryBackend, "capabilities", Capabilities(seen_by="all"))
    monkeypatch.setattr(MemoryBackend, "create", None)

    def work(rank: int, exchange: Exchange) -> list[tuple[int, ...]]:
        config = Config((TierConfig("t", f"memory://rank{rank}"),))
        return [
            one.ranks for one in open_ladder(config, rank=rank, world_size=2, exchange=exchange)
        ]

    assert ranks(2, work) == [[(0, 1)], [(0, 1)]]


def test_each_backend_says_who_sees_it(tmp_path: Path) -> None:
    """Through all wrappers; what does not say it promises least."""
    urls = {
        "memory://seen": "process",
        f"file://{tmp_path}": "host",
        "s3://bucket/p": "all",
        "hdfs://namenode:9870/p": "all",
    }
    for url, seen_by in urls.items():
        with closing(open_tier(TierConfig("t", url))) as tier:
            assert tier.capabilities.seen_by == seen_by
    assert Capabilities().seen_by == "process"


def test_a_rank_that_cannot_open_its_ladder_stops_all(
    tmp_path: Path, ranks: Callable[..., list[Any]]
) -> None:
    def work(rank: int, exchange: Exchange) -> object:
        scheme = "tape" if rank == 1 else "file"
        config = Config((TierConfig("t", f"{scheme}://{tmp_path}"),))
        return open_ladder(config, rank=rank, world_size=3, exchange=exchange)

    first, second, third = ranks(3, work)
    assert isinstance(second, ConfigError)
    for error in (first, third):
        assert isinstance(error, CheckpointError)
        assert "rank 1 could not open the ladder" in str(error)


def test_a_tier_that_cannot_be_written_stops_nobody(
    tmp_path: Path,
    ranks: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ranks 0 and 1 on one node, 2 on the other; its folder is not theirs, nor 3's."""
    (tmp_path / "file").write_text("not a folder")
    machine = threading.local()
    monkeypatch.setattr("tierstore.ladder.tiers._machine", lambda: machine.name)

    def work(rank: int, exchange: Exchange) -> object:
        machine.name = ("node", str(rank // 2))
        bad = TierConfig("bad", f"file://{tmp_path}/file/{'own' if rank == 3 else 'below'}")
        good = TierConfig("good", f"file://{tmp_path}/good")
        tiers = open_ladder(Config((bad, good)), rank=rank, world_size=4, exchange=exchange)
        close_ladder(tiers)
        return [one.ranks for one in tiers]

    everyone = (0, 1, 2, 3)
    assert ranks(4, work) == [
        [(0, 1), everyone],
        [(0, 1), everyone],
        [(2,), everyone],
        [(3,), everyone],
    ]
    assert "tier bad cannot be written" in caplog.text


def test_a_tier_that_cannot_be_read_stops_nobody_and_is_told(
    tmp_path: Path,
    ranks: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Rank 1, on a machine of its own, may write there and look at nothing."""
    machine = threading.local()
    monkeypatch.setattr("tierstore.ladder.tiers._machine", lambda: machine.name)

    def refuse(self: LocalBackend, key: str, real: Any = LocalBackend.stat) -> Any:
        if key.startswith("probes/") and machine.name[1] == "1":
            raise AccessError("permission denied")
        return real(self, key)

    def work(rank: int, exchange: Exchange) -> object:
        machine.name = ("node", str(rank))
        config = Config((TierConfig("t", f"file://{tmp_path}"),))
        tiers = open_ladder(config, rank=rank, world_size=2, exchange=exchange)
        close_ladder(tiers)
        return [one.ranks for one in tiers]

    monkeypatch.setattr(LocalBackend, "stat", refuse)
    assert ranks(2, work) == [[(0,)], [(1,)]]
    assert "tier t cannot be read, so which machines share it is unknown" in caplog.text


def test_a_single_process_needs_no_exchange(tmp_path: Path) -> None:
    tiers = open_ladder(Config((TierConfig("t", f"file://{tmp_path}"),)))
    assert [one.ranks for one in tiers] == [(0,)]
    assert tiers[0].covers(1)
    assert not list(tmp_path.iterdir())
    close_ladder(tiers)
