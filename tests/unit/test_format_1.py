"""A run that the version before stored: tests/data/format-1.zip, made by it, byte for byte."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.attempts import flip
from tests.shards import assert_restores, folder, launch, matrix, stage
from tierstore.checkpoint.store import RunStore
from tierstore.errors import AttemptDeletedError
from tierstore.keys import Attempt, AttemptId
from tierstore.ladder.claim import claim, launch_after
from tierstore.ladder.find import choose
from tierstore.ladder.save import Saver
from tierstore.ladder.survey import survey
from tierstore.ladder.tiers import OpenTier

BRANCH, NEWEST, COMPLETE = Attempt(50, 1, 1), Attempt(60, 2, 1), Attempt(70, 2, 1)


@pytest.fixture
def tier(tmp_path: Path) -> OpenTier:
    archive = Path(__file__).parents[1] / "data" / "format-1.zip"
    zipfile.ZipFile(archive).extractall(tmp_path)
    return folder("t", tmp_path)


def line(tier: OpenTier) -> list[Attempt]:
    return [saved.attempt for saved in survey([tier], "run").timeline]


def test_it_is_restored_and_what_was_complete_is_committed_as_it_was(tier: OpenTier) -> None:
    store = RunStore(tier.backend, "run")
    before = {info.key for info in tier.backend.list("runs/run/data/")}
    assert_restores(choose([tier], "run"), COMPLETE, rows=4)
    assert line(tier) == [COMPLETE, NEWEST, BRANCH]  # not step 100, which launch 2 left behind
    assert store.read_commit(COMPLETE).format == 1
    # The manifest was there: its name holds its CRC32C, so it is the same to the last byte.
    assert {info.key for info in tier.backend.list("runs/run/data/")} == before
    assert_restores(choose([tier], "run", step=50), BRANCH, rows=4)
    with pytest.raises(AttemptDeletedError):
        store.read_commit(Attempt(55, 2, 1))  # its tombstone is an empty file


def test_a_new_launch_goes_on_from_it(tier: OpenTier) -> None:
    found = choose([tier], "run")
    later = launch_after(survey([tier], "run"), "f" * 16, found.id, 1)
    later = claim([RunStore(tier.backend, "run")], later)
    saver = Saver([tier], "run")
    saver.submit(*stage(Attempt(80, later.number, 1), later, rows=4))
    saver.close()
    assert line(tier) == [Attempt(80, 3, 1), COMPLETE, NEWEST, BRANCH]


@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_claim_costs_no_more_than_what_it_alone_told(tier: OpenTier, number: int) -> None:
    flip(tier.backend, RunStore(tier.backend, "run").keys.launch(number), 40)
    assert_restores(choose([tier], "run"), COMPLETE, rows=4)
    known = [COMPLETE, NEWEST, BRANCH] if number == 1 else [COMPLETE, NEWEST]
    assert line(tier) == known


def test_a_parent_without_a_nonce_is_the_launch_of_that_number(tier: OpenTier) -> None:
    seen = survey([tier], "run")
    parents = [each.parent for each in seen.launches.values()]
    assert AttemptId(BRANCH, "") in parents
    assert launch(1).id in seen.launches


def test_the_door_reads_it(tmp_path: Path, tier: OpenTier) -> None:
    with tierstore.open(tmp_path.as_uri()) as store:
        run = store["run"]
        assert [row.step for row in run.steps()] == [70, 60, 50]
        assert np.array_equal(run[50]["matrix"][1::2], matrix(BRANCH, 4)[1::2])
        run[60].delete(grace=0)
        assert [row.step for row in run.steps()] == [70, 50]
    assert line(tier) == [COMPLETE, BRANCH]


@pytest.mark.torch
def test_load_reads_it(tmp_path: Path, tier: OpenTier) -> None:
    from tierstore_torch import Checkpointer

    del tier
    with Checkpointer(tmp_path.as_uri(), run="run") as ckpt:
        loaded = ckpt.load()
    assert np.array_equal(loaded["matrix"].numpy(), matrix(COMPLETE, 4))
