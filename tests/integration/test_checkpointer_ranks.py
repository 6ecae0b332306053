"""`Checkpointer` with several real processes: what ranks decide, they decide together."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Bucket
from tests.damage import flip_last_byte
from tests.integration import checkpointer_cases as cases
from tests.integration import reshard_cases, stopping_cases
from tests.ranks import Ranks

pytestmark = pytest.mark.torch


@pytest.fixture
def url(tmp_path: Path) -> str:
    return tmp_path.as_uri()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("value", "rng: ranks 0 and 1 hold different values under this name.*per_rank"),
        ("tensor", "rng: ranks 0 and 1 hold different tensors under this name.*per_rank"),
        ("mesh", "w: ranks 0 and 1 hold different tensors under this name"),
        ("shape", r"w: rank 0 holds a float32 of shape \(3,\), rank 1 a float32 of shape \(4,\)"),
        ("kind", "w: a tensor on rank 1, a value on rank 0"),
        ("partial", "w: its placement .* is a sum that is still pending"),
        ("hole", "w: the ranks hold 3 of the 5 elements"),
        ("meta", "w: a meta tensor has no numbers"),
        ("raises", "ValueError: no state today"),
    ],
)
def test_what_one_rank_cannot_save_no_rank_saves(
    ranks: Ranks, url: str, kind: str, message: str
) -> None:
    results = ranks.run(2, cases.conflict, url, kind)
    for error, state in results:
        assert state == "committed"
        assert re.search(message, error), error


@pytest.mark.parametrize(
    ("kind", "key"), [("value", "epoch"), ("tensor of some", "b.step"), ("value of some", "b.rng")]
)
def test_what_comes_to_differ_is_noticed_at_the_save(
    ranks: Ranks, url: str, kind: str, key: str
) -> None:
    for texts in ranks.run(3, cases.diverging, url, kind):
        assert texts[0] == texts[2] == "None"
        assert re.match(rf"PlanError: {key}: ranks \d and 2 hold different", texts[1])


def test_what_one_rank_can_no_longer_encode_fails_on_all(ranks: Ranks, url: str) -> None:
    for texts in ranks.run(2, cases.becomes_unsavable, url):
        assert texts[0] == texts[2] == "None"
        assert "cannot pickle" in texts[1]


def test_ranks_must_save_the_same_step(ranks: Ranks, url: str) -> None:
    for text in ranks.run(3, cases.different_steps, url):
        assert text == "PlanError: ranks save different steps at once: 10 and 12"


def test_memory_that_one_rank_lacks_is_given_back_by_all(ranks: Ranks, url: str) -> None:
    for first, second, third, fourth in ranks.run(2, cases.memory_runs_out_on_one, url):
        assert first.startswith("OutOfSpaceError")
        assert third.startswith("OutOfSpaceError")
        assert second == fourth == "None"


def test_a_copy_that_fails_on_one_rank_does_not_make_ranks_count_differently(
    ranks: Ranks, tmp_path: Path
) -> None:
    for rank, (first, *others) in enumerate(ranks.run(2, cases.one_cannot_copy, str(tmp_path))):
        assert first.startswith("CheckpointError: no copy today" if rank else "IncompleteError")
        assert others == [
            "000000000002-000001-02: ['committed', 'committed']",
            "000000000003-000001-01: ['committed', 'skipped']",
        ]


def test_a_tier_that_one_rank_is_behind_with_is_caught_up_by_all(
    ranks: Ranks, tmp_path: Path
) -> None:
    for failures, states in ranks.run(2, cases.one_is_behind, str(tmp_path)):
        assert failures == [(2, "b")]
        assert states == {"a": "committed", "b": "committed"}


def test_one_ranks_change_makes_all_plan_again(ranks: Ranks, url: str) -> None:
    assert ranks.run(2, cases.one_rank_changes, url) == [[0, 1, 2, 3]] * 2


def test_pipeline_ranks_hold_different_tensors(ranks: Ranks, url: str) -> None:
    ranks.run(3, cases.pipeline, url, True)
    assert ranks.run(3, cases.pipeline, url, False) == [[], [], []]


FULL = {"at": 5, "seed": 6}
FRESH = {"at": 0, "seed": 0}


@pytest.mark.parametrize(
    ("saved", "here", "said"),
    [
        (
            [FULL, FULL],
            [FRESH, None],
            "2 saved keys have no place here: rank00001/own.at, rank0000",
        ),
        (
            [FULL, None],
            [FRESH, FRESH],
            "2 keys were not saved: rank00001/own.at, rank00001/own.see",
        ),
        ([FULL, FULL], [FRESH, {"at": 0}], "1 saved keys have no place here: rank00001/own.seed"),
        ([FULL, {"at": 5}], [FRESH, FRESH], "1 keys were not saved: rank00001/own.seed"),
        ([None, None], [FRESH, FRESH], "2 keys were not saved: rank0000./own.at"),
    ],
    ids=["no place", "not saved", "no place for a part", "a part not saved", "nothing saved"],
)
def test_what_is_a_ranks_own_is_missed_at_the_same_size(
    ranks: Ranks, url: str, saved: list[Any], here: list[Any], said: str
) -> None:
    ranks.run(2, partial(cases.own_parts, save=True), url, saved, here)
    results = ranks.run(2, partial(cases.own_parts, save=False), url, saved, here)
    for rank, (strict, _log, value) in enumerate(results):
        assert re.search(f"^PlanError: .*{said}", strict), strict
        assert "strict=False" in strict
        mine = saved[rank] or {}
        assert value == (here[rank] and {key: mine.get(key, 0) for key in here[rank]})
    assert re.search(said, "\n".join(log for _, log, _ in results))


@pytest.mark.parametrize(
    ("saved", "here", "said"),
    [
        ([FULL, FULL], [FRESH] * 3, [None, None, "own.* of 2 ranks"]),
        ([FULL, FULL, FULL], [FRESH] * 2, ["of ranks that are not here: rank00002/own.at", None]),
        ([FULL, None, None], [FRESH] * 2, [None, "nothing saved for its own .* of 3 ranks"]),
    ],
    ids=["more", "fewer", "one had none"],
)
def test_what_is_a_ranks_own_at_another_size(
    ranks: Ranks, url: str, saved: list[Any], here: list[Any], said: list[str | None]
) -> None:
    ranks.run(len(saved), partial(cases.own_parts, save=True), url, saved, here)
    results = ranks.run(len(here), partial(cases.own_parts, save=False), url, saved, here)
    for rank, (strict, log, value) in enumerate(results):
        assert strict == "1"
        had = rank < len(saved) and saved[rank] is not None
        assert value == (FULL if had else FRESH)
        expected = said[rank]
        assert (log == "") if expected is None else re.search(expected, log), log


def test_a_part_of_a_ranks_own_is_missed_at_another_size(ranks: Ranks, url: str) -> None:
    saved, here = [{"at": 5}, FULL, FULL], [FRESH] * 2
    ranks.run(3, partial(cases.own_parts, save=True), url, saved, here)
    for strict, _, _ in ranks.run(2, partial(cases.own_parts, save=False), url, saved, here):
        assert "1 keys were not saved: rank00000/own.seed" in strict


def test_replicas_are_written_once_and_balanced(ranks: Ranks, url: str) -> None:
    assert ranks.run(4, cases.replicas, url) == [8000] * 4


def test_no_rank_waits_for_another_beyond_its_end(ranks: Ranks, url: str, tmp_path: Path) -> None:
    assert ranks.run(2, stopping_cases.sigterm_without_the_others, url, str(tmp_path)) == [
        True,
        True,
    ]


def test_sigterm_on_one_rank_saves_on_all(ranks: Ranks, url: str) -> None:
    assert ranks.run(2, cases.sigterm, url) == [(3, True, 3)] * 2


def test_damage_that_one_rank_meets_ends_alike_on_all(
    ranks: Ranks, url: str, tmp_path: Path
) -> None:
    ranks.run(2, cases.save_steps, url, [1, 2])
    flip_last_byte(tmp_path, 2, rank=1)
    results = ranks.run(2, cases.restore_damaged, url)
    assert results == [("CorruptBlockError", "1", [1.0])] * 2


def test_a_key_that_one_rank_misses_is_named_on_all(ranks: Ranks, url: str) -> None:
    ranks.run(2, cases.save_steps, url, [1])
    for text in ranks.run(2, cases.missing_on_one, url):
        assert "1 keys were not saved: x" in text


@pytest.mark.minio
def test_a_job_whose_disk_is_gone_resumes_from_s3_at_another_size(
    ranks: Ranks, tmp_path: Path, minio_bucket: Bucket
) -> None:
    disk = tmp_path / "disk"
    ranks.run(2, reshard_cases.save, [disk.as_uri(), minio_bucket.url], "fsdp", 7)
    shutil.rmtree(disk)
    for size in (1, 3):
        results = ranks.run(
            size, reshard_cases.load, [disk.as_uri(), minio_bucket.url], "fsdp", "fsdp", 2
        )
        assert results == [(7, [])] * size


def test_a_group_of_some_ranks(ranks: Ranks, url: str) -> None:
    results = ranks.run(3, cases.subgroup, url)
    assert results == [[], [1, [5.0] * 3, 1], [1, [5.0] * 3, 2]]


def test_opening_and_closing_leaves_nothing_behind(ranks: Ranks, url: str) -> None:
    for _, files, threads in ranks.run(2, cases.leaks, url):
        assert files <= 0  # gloo closes an earlier group's sockets late
        assert threads <= 0


def test_a_rank_that_dies_while_saving_leaves_no_checkpoint(ranks: Ranks, url: str) -> None:
    ranks.start(2, cases.dies_while_saving, url)
    text, _ = ranks.collect(2, lost=(1,))
    assert text.startswith(("IncompleteError", "DeadlineError")), text
    assert ranks.run(2, cases.restore_halves, url) == [(1, [1.0])] * 2


def test_a_rank_that_dies_while_restoring_is_noticed(ranks: Ranks, url: str) -> None:
    ranks.run(2, cases.save_steps, url, [1])
    ranks.start(2, cases.dies_while_restoring, url)
    text, _ = ranks.collect(2, lost=(1,))
    assert "rank 0 lost the other 1 ranks" in text
