"""Finding the checkpoint to restore, over tiers, launches and damage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.attempts import contents
from tests.patience import PATIENCE
from tests.shards import assert_restores, folder, launch, matrix, stage, tier
from tierstore.backends.memory import MemoryBackend
from tierstore.checkpoint.delete import bury, delete
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch
from tierstore.errors import (
    AccessError,
    AttemptDeletedError,
    CheckpointError,
    CheckpointNotFoundError,
    FormatError,
    NotFoundError,
    UnreachableError,
)
from tierstore.keys import Attempt
from tierstore.ladder.find import choose, open_attempt
from tierstore.ladder.save import Saver
from tierstore.ladder.survey import survey
from tierstore.ladder.tiers import OpenTier
from tierstore.transfer.read import Want, fetch
from tierstore.wrappers.faults import Fault, Faulty

pytestmark = pytest.mark.usefixtures("no_leaks")


def save(
    tiers: Sequence[OpenTier], step: int, *, on: int = 1, number: int = 1, **line: Any
) -> Attempt:
    """Save a step of launch `on` to tiers that a single rank sees."""
    attempt = Attempt(step, on, number)
    with closing(Saver(tiers, "run")) as saver:
        saver.submit(*stage(attempt, launch(on, **line))).wait(timeout=PATIENCE)
    return attempt


@pytest.fixture
def ladder(tmp_path: Path) -> list[OpenTier]:
    memory = MemoryBackend(f"memory://{tmp_path.name}")
    return [folder("fast", tmp_path / "fast"), tier("slow", memory)]


def rotten(one: OpenTier, key: str) -> None:
    """Overwrite an object with something else."""
    one.backend.create(key, b"{}")


def test_the_newest_is_found_and_read_from_the_first_tier(ladder: list[OpenTier]) -> None:
    save(ladder, 1)
    newest = save(ladder, 2)
    found = choose(ladder, "run")
    assert_restores(found, newest)
    assert [replica.tier for replica in found.replicas] == ["fast", "slow"]
    assert found.passed_over == ()


def test_a_step_that_only_the_slow_tier_has(ladder: list[OpenTier]) -> None:
    older = save(ladder, 1)
    newest = save(ladder[1:], 2)
    found = choose(ladder, "run")
    assert_restores(found, newest)
    assert [replica.tier for replica in found.replicas] == ["slow"]
    assert_restores(choose(ladder, "run", step=1), older)


def test_nothing_there_says_what_is(ladder: list[OpenTier]) -> None:
    with pytest.raises(CheckpointNotFoundError, match="run 'run' has no checkpoint on"):
        choose(ladder, "run")
    save(ladder, 3)
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint of step 4 .*steps \[3\]"):
        choose(ladder, "run", step=4)


def test_a_rollback_makes_the_new_line_the_latest(
    ladder: list[OpenTier], caplog: pytest.LogCaptureFixture
) -> None:
    for step in (50, 100, 200):
        save(ladder, step)
    branched = Attempt(50, 1, 1)
    newest = save(ladder, 60, on=2, parent=branched)
    assert choose(ladder, "run").attempt == newest
    assert [saved.attempt for saved in survey(ladder, "run").timeline] == [newest, branched]
    found = choose(ladder, "run", step=200)  # who names it wants it
    assert_restores(found, Attempt(200, 1, 1))
    assert "step 200 of run run is of an abandoned line" in caplog.text
    assert_restores(choose(ladder, "run"), newest)


def test_a_tier_that_missed_a_launch_does_not_bring_an_abandoned_line_back(
    ladder: list[OpenTier],
) -> None:
    save(ladder, 50)
    save(ladder, 200)
    newest = save(ladder[:1], 60, on=2, parent=Attempt(50, 1, 1))
    assert choose(ladder, "run").attempt == newest
    assert choose(list(reversed(ladder)), "run").attempt == newest


def test_of_two_tries_at_one_step_the_higher_is_taken(ladder: list[OpenTier]) -> None:
    save(ladder, 7, number=1)
    second = save(ladder, 7, number=2)
    assert_restores(choose(ladder, "run", step=7), second)


def test_a_damaged_segment_is_read_from_the_next_tier(ladder: list[OpenTier]) -> None:
    newest = save(ladder, 1)
    keys = [info.key for info in ladder[0].backend.list("runs/run/data/")]
    (second,) = (key for key in keys if key.endswith("-001.safetensors"))
    rotten(ladder[0], second)
    assert_restores(choose(ladder, "run"), newest)


def test_a_damaged_manifest_is_read_from_the_next_tier(ladder: list[OpenTier]) -> None:
    newest = save(ladder, 1)
    commit = RunStore(ladder[0].backend, "run").read_commit(newest)
    keys = RunStore(ladder[0].backend, "run").keys.attempt(newest, commit.nonce)
    rotten(ladder[0], keys.manifest(commit.manifest_crc32c))
    found = choose(ladder, "run")
    assert_restores(found, newest)
    assert [replica.tier for replica in found.replicas] == ["slow"]
    assert "tier fast" in found.passed_over[0]


@pytest.mark.parametrize("record", ["commit", "manifest"])
def test_what_is_damaged_on_every_tier_is_made_anew_from_the_fragments(
    ladder: list[OpenTier], record: str, caplog: pytest.LogCaptureFixture
) -> None:
    newest = save(ladder, 1)
    for one in ladder:
        store = RunStore(one.backend, "run")
        commit = store.read_commit(newest)
        manifest = store.keys.attempt(*commit.id).manifest(commit.manifest_crc32c)
        rotten(one, store.keys.commit(newest) if record == "commit" else manifest)
    found = choose(ladder, "run")
    assert_restores(found, newest)
    assert [replica.tier for replica in found.replicas] == ["fast", "slow"]
    assert "was put together from the fragments on tier fast" in caplog.text


@pytest.mark.parametrize("size", [0, 128])
def test_a_commit_cut_short_is_no_deletion(ladder: list[OpenTier], size: int) -> None:
    save(ladder, 1)
    newest = save(ladder, 2)
    key = RunStore(ladder[0].backend, "run").keys.commit(newest)
    whole = RunStore(ladder[0].backend, "run").read_commit(newest).to_bytes()
    for one in ladder:  # first on one tier, then on both
        one.backend.create(key, whole[:size])
        assert_restores(choose(ladder, "run"), newest)
    for one in ladder:
        rotten(one, RunStore(one.backend, "run").keys.attempt(newest, f"{1:016x}").fragment(0))
    with pytest.raises(CheckpointError, match="step 2 cannot be restored from any tier"):
        choose(ladder, "run")


def test_a_damaged_commit_is_an_error_unless_older_ones_may_be_taken(
    ladder: list[OpenTier],
) -> None:
    older, newest = save(ladder, 1), save(ladder, 2)
    for one in ladder:
        keys = RunStore(one.backend, "run").keys
        rotten(one, keys.commit(newest))
        rotten(one, keys.attempt(newest, f"{1:016x}").fragment(0))
    with pytest.raises(
        CheckpointError, match=r"step 2 cannot be restored from any tier: tier fast"
    ):
        choose(ladder, "run")
    with pytest.raises(FormatError):
        choose(ladder[:1], "run")
    found = choose(ladder, "run", allow_older=True)
    assert_restores(found, older)
    assert "step 2" in found.passed_over[0]


def test_a_tier_that_cannot_be_listed_may_hide_a_newer_step(ladder: list[OpenTier]) -> None:
    older = save(ladder, 1)
    gone = Faulty(ladder[1].backend, Fault("list", times=99, error=UnreachableError("no route")))
    tiers = [ladder[0], tier("slow", gone)]
    with pytest.raises(UnreachableError):
        choose(tiers, "run")
    found = choose(tiers, "run", allow_older=True)
    assert_restores(found, older)
    assert "tier slow cannot be listed" in found.passed_over[0]
    with pytest.raises(UnreachableError):  # "there is none" would be a guess
        choose([tiers[1]], "run", allow_older=True)


def test_a_complete_set_that_nobody_committed_is_committed_first(ladder: list[OpenTier]) -> None:
    save(ladder, 1)
    one = ladder[0]
    dying = Faulty(one.backend, Fault("create", key="commits/", error=AccessError("dead")))
    with pytest.raises(AccessError):
        save([tier("fast", dying)], 2)
    assert list(RunStore(one.backend, "run").entries()) == [Attempt(1, 1, 1)]
    assert_restores(choose(ladder, "run"), Attempt(2, 1, 1))


def test_an_incomplete_set_is_left_alone(ladder: list[OpenTier]) -> None:
    older = save(ladder, 1)
    saver = Saver([folder("fast", Path(ladder[0].backend.url[7:]), (0, 1))], "run")
    saver.submit(*stage(Attempt(2, 1, 1), launch(), world=2)).wait(
        timeout=PATIENCE, until="written"
    )
    saver.close(timeout=0)
    assert choose(ladder, "run").attempt == older


def test_a_zombie_of_an_earlier_launch_changes_nothing(ladder: list[OpenTier]) -> None:
    save(ladder, 100)
    newest = save(ladder, 110, on=2, parent=Attempt(100, 1, 1))
    save(ladder, 900)  # launch 1 is still alive somewhere
    assert choose(ladder, "run").attempt == newest


@pytest.mark.parametrize("began", [0.5, 1.5])
def test_of_two_launches_of_one_number_the_later_is_newer(
    ladder: list[OpenTier], began: float, caplog: pytest.LogCaptureFixture
) -> None:
    mine = save(ladder[:1], 5)
    theirs, rival = Attempt(9, 1, 1), Launch(1, "f" * 16, None, 1, began)
    with closing(Saver(ladder[1:], "run")) as saver:
        saver.submit(*stage(theirs, rival)).wait(timeout=PATIENCE)
        saver.submit(*stage(mine, rival)).wait(timeout=PATIENCE)  # one name, two checkpoints
    for tiers in (ladder, ladder[::-1]):
        caplog.clear()
        found = choose(tiers, "run")
        assert_restores(found, mine if began < 1 else theirs)
        assert len(found.replicas) == 1
        assert f"launches {1:016x} and {'f' * 16} have one number, 1" in caplog.text
    if began > 1:
        again = choose(ladder, "run", step=5)
        assert (again.id.nonce, [one.tier for one in again.replicas]) == ("f" * 16, ["slow"])


def test_a_checkpoint_of_one_node_is_not_the_whole(tmp_path: Path) -> None:
    local = folder("local", tmp_path, (0, 1))
    line = launch(world=4)
    with closing(Saver([local], "run")) as one, closing(Saver([local], "run")) as two:
        for rank, saver in enumerate((one, two)):
            saver.submit(*stage(Attempt(1, 1, 1), line, rank=rank, world=4))
    commit = RunStore(local.backend, "run").read_commit(Attempt(1, 1, 1))
    assert (commit.ranks, commit.world_size, commit.whole) == ((0, 1), 4, False)
    with pytest.raises(CheckpointError, match=r"step 1 on tier 'local' holds 2 of 4 ranks"):
        choose([local], "run")


def test_any_commit_of_a_launch_tells_what_it_went_on_from(tmp_path: Path) -> None:
    one = folder("one", tmp_path)
    for step in (10, 20):
        save([one], step)
    for step in (11, 12):
        save([one], step, on=2, parent=Attempt(10, 1, 1))
    keys = RunStore(one.backend, "run").keys
    rotten(one, keys.commit(Attempt(12, 2, 1)))
    one.backend.delete([keys.launch(2)])
    assert [this.step for this in survey([one], "run").timeline] == [12, 11, 10]


@pytest.mark.parametrize("line", ["on", "anew"])
def test_what_only_one_node_has_hides_no_checkpoint(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is newer, and went no further than the nodes' own disks before the job was killed."""
    local, shared = folder("local", tmp_path / "local"), folder("shared", tmp_path / "shared")
    whole = save([local, shared], 10)
    part = Attempt(20, 1, 1) if line == "on" else Attempt(1, 2, 1)
    with closing(Saver([local], "run")) as saver:
        saver.submit(*stage(part, launch(part.launch, world=2), rank=0, world=2))
    for allow_older in (False, True):
        found = choose([local, shared], "run", allow_older=allow_older)
        assert_restores(found, whole)
        assert [replica.tier for replica in found.replicas] == ["local", "shared"]
    assert f"step {part.step} is passed over" in caplog.text
    with pytest.raises(CheckpointError, match=r"holds 1 of 2 ranks"):
        choose([local, shared], "run", step=part.step)


def test_without_any_that_can_be_read_none_is_not_the_answer(ladder: list[OpenTier]) -> None:
    """Who is told that there is no checkpoint begins anew."""
    for one in (save(ladder, 1), save(ladder, 2)):
        for each in ladder:
            keys = RunStore(each.backend, "run").keys
            rotten(each, keys.commit(one))
            rotten(each, keys.attempt(one, f"{1:016x}").fragment(0))
    for step in (None, 1):
        with pytest.raises(CheckpointError, match="cannot be restored from any tier") as raised:
            choose(ladder, "run", step=step, allow_older=True)
        assert not isinstance(raised.value, CheckpointNotFoundError)


@pytest.mark.parametrize("size", [0, 60, 127, 128, 129])
@pytest.mark.parametrize("data", [False, True])
def test_a_damaged_tombstone_is_no_checkpoint(
    ladder: list[OpenTier], size: int, data: bool, caplog: pytest.LogCaptureFixture
) -> None:
    older, newest = save(ladder, 1), save(ladder, 2, on=2, parent=Attempt(1, 1, 1))
    for one in ladder:
        store = RunStore(one.backend, "run")
        key = store.keys.commit(newest)
        if data:
            bury(one.backend, key)
        else:
            delete(store, newest, grace=0)
        if one is ladder[0]:
            buried = contents(one.backend, key)[key]
            one.backend.create(key, (buried[:-1] + b"  ")[:size])
    if data and size < 127:  # that is damaged beyond knowing, and its data is good
        assert_restores(choose(ladder, "run"), newest)
    else:
        assert_restores(choose(ladder, "run"), older)
    assert "have one number" not in caplog.text


def test_a_checkpoint_deleted_during_the_restore_says_so(ladder: list[OpenTier]) -> None:
    newest = save(ladder, 1)
    found = choose(ladder, "run")
    for one in ladder:
        store = RunStore(one.backend, "run")
        bury(one.backend, store.keys.commit(newest))
        one.backend.delete([info.key for info in list(one.backend.list("runs/run/data/"))])
    files = {entry.name: entry for entry in found.manifest.files}
    into = memoryview(bytearray(10))
    with pytest.raises(NotFoundError):
        fetch([Want("00000-000.safetensors", 0, 10, into=into)], files, found.replicas)
    with pytest.raises(AttemptDeletedError):
        found.check_deleted()
    with pytest.raises(AttemptDeletedError):
        open_attempt(ladder, "run", found.id)
    with pytest.raises(CheckpointNotFoundError):
        choose(ladder, "run")


def test_a_checkpoint_that_is_there_is_not_called_deleted(ladder: list[OpenTier]) -> None:
    save(ladder, 1)
    found = choose(ladder, "run")
    bury(ladder[0].backend, RunStore(ladder[0].backend, "run").keys.commit(found.attempt))
    found.check_deleted()
    assert (matrix(found.attempt, 3) != matrix(Attempt(2, 1, 1), 3)).all()


def test_fragments_that_contradict_each_other_are_never_committed(tmp_path: Path) -> None:
    """Of one attempt a rank believes in other tensors than the rest, as after a wrong restart."""
    tiers = [folder("t", tmp_path, (0, 1))]
    line, attempt = launch(world=2), Attempt(1, 1, 1)
    with closing(Saver(tiers, "run")) as one, closing(Saver(tiers, "run")) as two:
        handles = [
            saver.submit(*stage(attempt, line, rank=rank, world=2, rows=rows))
            for rank, saver, rows in ((0, one, 600), (1, two, 1200))
        ]
    for handle in handles:
        with pytest.raises(FormatError, match="ranks 0 and 1 are not of one attempt"):
            handle.wait(timeout=PATIENCE)
    with pytest.raises(CheckpointNotFoundError):
        choose(tiers, "run")


def test_what_was_chosen_and_could_not_be_read_is_not_chosen_again(
    ladder: list[OpenTier],
) -> None:
    older, newer = save(ladder, 1), save(ladder, 2)
    away = Faulty(ladder[1].backend, Fault("list", times=99, error=UnreachableError("no route")))
    tiers = [ladder[0], tier("slow", away)]
    newest = choose(tiers, "run", allow_older=True)
    assert (newest.attempt, newest.unseen) == (newer, ("slow",))
    found = choose(tiers, "run", allow_older=True, failed=[newest.id])
    assert_restores(found, older)
    assert {call.operation for call in away.calls} == {"list"}, "who does not answer is left alone"
    with pytest.raises(UnreachableError, match="may hold it: wait until it answers"):
        choose(tiers, "run", allow_older=True, failed=[newest.id, found.id])
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint older than step 1 on"):
        choose(ladder, "run", allow_older=True, failed=[newest.id, found.id])
