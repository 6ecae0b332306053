"""Ranks that die while they save: nobody restores half a checkpoint, and none is lost."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.forked import forked
from tests.patience import PATIENCE
from tests.shards import assert_restores, folder, launch, stage, tier, until
from tierstore.checkpoint.store import RunStore
from tierstore.errors import CheckpointNotFoundError, IncompleteError
from tierstore.keys import Attempt
from tierstore.ladder.find import choose
from tierstore.ladder.handle import SaveHandle
from tierstore.ladder.save import Saver
from tierstore.wrappers.faults import Fault, Faulty

pytestmark = pytest.mark.usefixtures("no_leaks")

REPOSITORY = Path(__file__).parents[2]
WORLD = 2

BEFORE_FRAGMENT = {
    "at its first segment": ("upload", "", 1),
    "in the middle of a segment": ("write", "", 1),
    "before a segment is visible": ("commit", "", 1),
    "at its last segment": ("commit", "", 2),
    "before its fragment": ("create", "fragments/", 1),
}
AFTER_FRAGMENT = {
    "after its fragment": ("list", "fragments/", 1),
    "while it merges": ("read_into", "fragments/", 1),
    "before the manifest": ("create", "manifest-", 1),
    "before the commit": ("create", "commits/", 1),
}


def rank(
    root: Path, attempt: Attempt, number: int, *kill: object, prefix: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    where = [str(w) for w in (root, attempt.step, attempt.number, number, WORLD, *kill)]
    if not prefix:
        return forked(*where, module="tests.crash.rank", stderr=subprocess.PIPE)
    command = [*prefix, sys.executable, "-m", "tests.crash.rank", *where]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


def survivor(root: Path, *faults: Fault, commit_timeout: float = PATIENCE) -> closing[Saver]:
    """Rank 0, in this process."""
    faulty = Faulty(folder("t", root).backend, *faults)
    tiers = [tier("t", faulty, range(WORLD))]
    return closing(Saver(tiers, "run", commit_timeout=commit_timeout))


def submit(saver: Saver, attempt: Attempt) -> SaveHandle:
    return saver.submit(*stage(attempt, launch(world=WORLD), rank=0, world=WORLD))


@pytest.mark.parametrize("kill", BEFORE_FRAGMENT.values(), ids=BEFORE_FRAGMENT.keys())
def test_a_rank_killed_before_its_fragment_makes_the_attempt_incomplete(
    tmp_path: Path, kill: tuple[str, str, int]
) -> None:
    tiers, first, again = [folder("t", tmp_path)], Attempt(7, 1, 1), Attempt(7, 1, 2)
    assert finish(rank(tmp_path, first, 1, *kill))[0] == -signal.SIGKILL
    with survivor(tmp_path, commit_timeout=0.5) as saver:
        save = submit(saver, first)
        with pytest.raises(IncompleteError, match=r"ranks \[1\] have not written their part"):
            save.wait(timeout=PATIENCE)
    with pytest.raises(CheckpointNotFoundError):
        choose(tiers, "run")
    process = rank(tmp_path, again, 1)  # a second try at the same step mixes with nothing
    with survivor(tmp_path) as saver:
        submit(saver, again).wait(timeout=PATIENCE)
    assert finish(process) == (0, "")
    assert_restores(choose(tiers, "run"), again)


@pytest.mark.parametrize("kill", AFTER_FRAGMENT.values(), ids=AFTER_FRAGMENT.keys())
def test_a_last_writer_killed_after_its_fragment_is_replaced(
    tmp_path: Path, kill: tuple[str, str, int]
) -> None:
    attempt, dead = Attempt(7, 1, 1), threading.Event()
    # Else rank 0 may be quicker to commit than rank 1 to come to where it dies.
    held = Fault("list", key="fragments/", action=lambda _: (dead.wait(PATIENCE), None)[1])
    with survivor(tmp_path, held) as saver:
        save = submit(saver, attempt)
        save.wait(timeout=PATIENCE, until="written")
        code, _ = finish(rank(tmp_path, attempt, 1, *kill))
        dead.set()
        save.wait(timeout=PATIENCE)
    assert code == -signal.SIGKILL
    assert_restores(choose([folder("t", tmp_path)], "run"), attempt)


def test_a_set_whose_every_writer_was_killed_is_committed_by_the_restore(tmp_path: Path) -> None:
    attempt = Attempt(7, 1, 1)
    # Rank 0 dies at its first look; rank 1, the last writer, dies before its commit.
    assert finish(rank(tmp_path, attempt, 0, "list", "fragments/", 1))[0] == -signal.SIGKILL
    assert finish(rank(tmp_path, attempt, 1, "create", "commits/", 1))[0] == -signal.SIGKILL
    tiers = [folder("t", tmp_path)]
    assert RunStore(tiers[0].backend, "run").entries() == {}
    assert_restores(choose(tiers, "run"), attempt)


def test_ranks_killed_at_any_moment_leave_a_checkpoint_or_none(tmp_path: Path) -> None:
    rng = random.Random(5)
    older = Attempt(1, 1, 1)
    processes = [rank(tmp_path, older, number) for number in range(WORLD)]
    assert [finish(process) for process in processes] == [(0, "")] * WORLD
    for step in range(2, 6):
        attempt = Attempt(step, 1, 1)
        processes = [rank(tmp_path, attempt, number) for number in range(WORLD)]
        until(lambda: any(tmp_path.rglob(f"{attempt}*")))  # noqa: B023 - it has begun
        time.sleep(rng.uniform(0, 0.1))
        for process in processes:
            process.kill()
            finish(process)
        found = choose([folder("t", tmp_path)], "run")
        assert found.attempt in (attempt, older)
        assert_restores(found, found.attempt)
        older = found.attempt


def test_a_full_disk_is_an_error_that_says_so(tmp_path: Path) -> None:
    """On a real tmpfs of 2 MiB, in a mount namespace of its own."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = f'mount -t tmpfs -o size=2m tmpfs "{mounted}" && exec "$@"'
    prefix = ("unshare", "-rm", "sh", "-c", mount, "sh")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mounts in a namespace")
    code, errors = finish(rank(mounted, Attempt(1, 1, 1), 0, prefix=prefix))
    assert code == 1
    assert "OutOfSpaceError" in errors
    assert "Traceback" not in errors


def test_a_file_size_limit_is_an_error_that_says_so(tmp_path: Path) -> None:
    prefix = ("prlimit", "--fsize=1000000", "--")
    code, errors = finish(rank(tmp_path, Attempt(1, 1, 1), 0, prefix=prefix))
    assert code == 1
    assert "OutOfSpaceError" in errors
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".safetensors"]
    assert not [path for path in tmp_path.rglob(".tierstore-tmp/*") if path.is_file()]
