"""`tierstore migrate --run` between real stores: a reader never sees half a checkpoint."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.attempts import line_of
from tests.command import save, tierstore
from tests.conftest import Bucket, HdfsRoot
from tests.forked import forked
from tests.patience import PATIENCE
from tests.shards import assert_restores, tier
from tierstore.checkpoint.store import RunStore
from tierstore.config import load_config
from tierstore.ladder.find import choose
from tierstore.wrappers import open_tier
from tierstore.wrappers.metrics import Metered

MIB = 1024**2
ROWS = 3000  # 12 MB a step, in files of 8 MB and more
STEPS = (1, 2, 3)


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """A root on each kind of store that the test is marked for."""
    found = {"local": f"file://{tmp_path}"}
    marks = {mark.name for mark in request.node.iter_markers()}
    if "minio" in marks:
        bucket: Bucket = request.getfixturevalue("minio_bucket")
        found["s3"] = f"s3://{bucket.name}"
    if "hdfs" in marks:
        root: HdfsRoot = request.getfixturevalue("hdfs_root")
        found["hdfs"] = root.url
    return found


def opened(url: str) -> Metered:
    return open_tier(load_config(url).tiers[0])


def check(url: str) -> list[int]:
    """Restore every checkpoint that there is; return their steps."""
    with closing(opened(url)) as backend:
        line = line_of(RunStore(backend, "run"))
        for attempt in line:
            found = choose([tier("t", backend)], "run", step=attempt.step)
            assert_restores(found, attempt, ROWS)
        return [attempt.step for attempt in reversed(line)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("local", "s3", marks=pytest.mark.minio),
        pytest.param("s3", "hdfs", marks=[pytest.mark.minio, pytest.mark.hdfs]),
        pytest.param("hdfs", "local", marks=pytest.mark.hdfs),
    ],
)
def test_killed_resumed_and_moved(urls: dict[str, str], one: str, other: str) -> None:
    source, target = f"{urls[one]}/from", f"{urls[other]}/to"
    with closing(opened(source)) as backend:
        for step in STEPS:
            save([tier("t", backend)], step, rows=ROWS, segment_bytes=8 * MIB)
    words = ["migrate", source, target, "--run", "r*", "--delete-source", "--grace", "0"]
    kills = 0
    for _ in range(6):
        slow = [*words, "--bandwidth", "15M"]
        process = forked(*slow, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(random.uniform(0.1, 0.9))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        there = check(target)
        assert set(there) | set(check(source)) == set(STEPS), "each is whole somewhere"
    assert kills
    done = tierstore(*words, "--json")
    told = json.loads(done.out.splitlines()[-1])
    assert done.code == 0 or (done.code == 1 and not told["objects"]), done.err
    assert check(target) == list(STEPS)
    assert check(source) == []
    with closing(opened(source)) as backend:
        assert [info.key for info in backend.list("runs/run/data/")] == []


@pytest.mark.minio
def test_a_run_that_goes_on_saving(urls: dict[str, str]) -> None:
    """What is committed while a whole tier is copied comes with the next time, or whole."""
    source, target = f"{urls['local']}/from", f"{urls['s3']}/to"
    with closing(opened(source)) as backend:
        for step in STEPS:
            save([tier("t", backend)], step, rows=ROWS)
        words = ["migrate", source, target, "--bandwidth", "40M"]
        process = forked(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        step = STEPS[-1]
        while process.poll() is None and step < 6:
            step += 1
            save([tier("t", backend)], step, rows=ROWS)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, out + err
    there = check(target)
    assert set(STEPS) <= set(there)
    assert tierstore("migrate", source, target).code == 0
    assert check(target) == list(range(1, step + 1))
