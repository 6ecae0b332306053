"""torch DCP over several processes: round trips, background saves, plan caching, faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration import dcp_cases as cases
from tests.patience import PATIENCE
from tests.ranks import RankError, Ranks

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("save_size", [1, 2, 4])
def test_every_layout_loads_at_every_world_size(
    ranks: Ranks, tmp_path: Path, save_size: int
) -> None:
    url = tmp_path.as_uri()
    ranks.run(save_size, cases.save_layouts, url)
    for load_size in (1, 2, 3, 4):
        assert ranks.run(load_size, cases.load_layouts, url) == [[]] * load_size


def test_checkpointer_and_dcp_read_each_other(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks.run(2, cases.interop, tmp_path.as_uri()) == [[]] * 2


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_background_save_holds_what_the_tensors_were(
    ranks: Ranks, tmp_path: Path, mode: str
) -> None:
    expected = [1, *((float(step), {"nested": [step, "x"]}) for step in (1, 2, 3))]
    results = ranks.run(2, cases.async_steps, tmp_path.as_uri(), mode, mode, 3, timeout=PATIENCE)
    assert results == [expected] * 2
    assert len(list(tmp_path.glob(f"runs/{mode}/launches/*"))) == 1
    assert len(list(tmp_path.glob(f"runs/{mode}/commits/*"))) == 3


def test_cached_plans_never_mix_attempts(ranks: Ranks, tmp_path: Path) -> None:
    expected = [(float(step), {"nested": [step, "x"]}) for step in (1, 2, 3)]
    assert ranks.run(2, cases.cached_steps, tmp_path.as_uri()) == [expected] * 2
    commits = sorted(path.name for path in tmp_path.glob("runs/cached/commits/*"))
    assert commits == [
        "000000000001-000001-01.json",
        "000000000002-000001-01.json",
        "000000000003-000001-02.json",
    ]


def test_a_writer_that_is_not_told_its_rank(ranks: Ranks, tmp_path: Path) -> None:
    expected = [(float(step), {"nested": [step, "x"]}) for step in (1, 2)]
    assert ranks.run(2, cases.rankless, tmp_path.as_uri()) == [expected] * 2


@pytest.mark.parametrize(
    ("rank", "operation", "key"),
    [
        (1, "write", "safetensors"),
        (1, "commit", "safetensors"),
        (1, "create", "fragments"),
        (0, "create", "launches"),
        (0, "create", "fragments"),
        (0, "create", "manifest"),
        (0, "create", "commits"),
    ],
)
def test_a_fault_on_one_rank_fails_all_and_commits_nothing(
    ranks: Ranks, tmp_path: Path, rank: int, operation: str, key: str
) -> None:
    url = tmp_path.as_uri()
    for name, notes, failed in ranks.run(2, cases.failing_save, url, rank, operation, key):
        assert name == "OutOfSpaceError"
        assert notes == f"raised on rank {rank}"
        assert failed == [rank], "nobody else waited until a deadline"
    assert list(tmp_path.glob("runs/failing/commits/*")) == []
    ranks.run(2, cases.save_step, url, "failing/1")
    assert ranks.run(2, cases.loaded, url, "failing") == [(1.0, {"nested": [1, "x"]})] * 2


def test_a_rank_that_cannot_read_fails_all_with_its_own_error(ranks: Ranks, tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    ranks.run(2, cases.save_step, url, "failing/1")
    for name, failed in ranks.run(2, cases.failing_load, url, 1):
        assert name == "OutOfSpaceError"
        assert failed == [1], "nobody else waited until a deadline"
    ranks.run(2, cases.save_step, url, "failing/2")
    for text in ranks.run(2, cases.disagreeing, url):
        assert "the ranks found different checkpoints" in text


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_rank_that_cannot_stage_fails_all_and_blocks_nothing(
    ranks: Ranks, tmp_path: Path, mode: str
) -> None:
    results = ranks.run(2, cases.failing_stage, tmp_path.as_uri(), mode, timeout=PATIENCE)
    assert results == [[("PlanError", False), ("", True)]] * 2
    commits: list[Any] = [path.name for path in tmp_path.glob("runs/staged/commits/*")]
    assert commits == ["000000000002-000001-01.json"]


def test_what_dcp_offers_and_we_refuse_is_refused_on_every_rank(
    ranks: Ranks, tmp_path: Path
) -> None:
    for text in ranks.run(2, cases.refused_without_collectives, tmp_path.as_uri()):
        assert text.startswith("use_collectives=False is not supported")


def test_a_part_of_the_ranks_saves_and_loads_by_itself(ranks: Ranks, tmp_path: Path) -> None:
    results = ranks.run(3, cases.subgroup, tmp_path.as_uri())
    assert results == [None, (20.0, 1), (20.0, 1)]


def test_ranks_may_hold_names_of_their_own(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks.run(3, cases.per_rank_names, tmp_path.as_uri()) == [[100 + r, r] for r in range(3)]


def test_a_rank_killed_in_a_save_leaves_no_checkpoint_and_the_job_goes_on(
    ranks: Ranks, tmp_path: Path
) -> None:
    url = tmp_path.as_uri()
    ranks.run(2, cases.save_step, url, "killed/0")
    with pytest.raises(RankError, match=r"rank 1:\nthe process died"):
        ranks.run(2, cases.die_while_saving, url)
    assert [path.name[:12] for path in tmp_path.glob("runs/killed/commits/*")] == ["000000000000"]
    assert ranks.run(3, cases.loaded, url, "killed") == [(0.0, {"nested": [0, "x"]})] * 3
    ranks.run(3, cases.save_step, url, "killed/1")
    assert ranks.run(2, cases.loaded, url, "killed") == [(1.0, {"nested": [1, "x"]})] * 2


def test_many_background_saves_leave_nothing_behind(ranks: Ranks, tmp_path: Path) -> None:
    [(kib, files, threads)] = ranks.run(1, cases.growth, tmp_path.as_uri(), 60)
    assert kib < 4096  # one save's tensors; 60 leaked ones would be 240 MiB
    assert (files, threads) == (0, 0)


@pytest.mark.minio
@pytest.mark.parametrize("mode", ["thread", "process"])
def test_background_saves_reach_a_real_s3(ranks: Ranks, minio_bucket: Any, mode: str) -> None:
    expected = [1, *((float(step), {"nested": [step, "x"]}) for step in (1, 2))]
    results = ranks.run(2, cases.async_steps, minio_bucket.url, mode, mode, 2, timeout=PATIENCE)
    assert results == [expected] * 2
    minio_bucket.assert_no_uploads()


@pytest.mark.minio
def test_every_layout_comes_back_from_a_real_s3(ranks: Ranks, minio_bucket: Any) -> None:
    for layout in ranks.run(2, cases.load_after_save, minio_bucket.url):
        assert layout == []
    minio_bucket.assert_no_uploads()
