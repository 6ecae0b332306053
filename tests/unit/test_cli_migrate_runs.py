"""`tierstore migrate --run`: checkpoints from folder to folder, whole or not at all."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.attempts import line_of
from tests.command import Done, folders, ladder_file, save, start, stored, tierstore
from tests.damage import flip
from tests.files import contents, put
from tests.patience import PATIENCE
from tests.shards import assert_restores, folder, launch, stage
from tierstore.backends.local.backend import LocalBackend
from tierstore.checkpoint.commit import TOMBSTONE_SIZE
from tierstore.checkpoint.delete import delete
from tierstore.checkpoint.store import RunStore
from tierstore.keys import Attempt
from tierstore.ladder.find import choose
from tierstore.ladder.save import Saver

SEGMENT = "00000-000.safetensors"


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Steps 1, 2 and 3 of a run in a folder, each in three files."""
    for step in (1, 2, 3):
        save(folders(tmp_path, "src"), step, rows=900)
    return tmp_path / "src"


def migrate(tmp_path: Path, *words: str, run: str = "run") -> Done:
    return tierstore(
        "migrate", f"file://{tmp_path}/src", f"file://{tmp_path}/dst", "--run", run, *words
    )


def store(path: Path) -> RunStore:
    return RunStore(LocalBackend(str(path)), "run")


def steps(path: Path) -> list[int]:
    return [attempt.step for attempt in reversed(line_of(store(path)))]


def restores(path: Path, step: int) -> None:
    assert_restores(choose([folder("t", path)], "run", step=step), Attempt(step, 1, 1), 900)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], [1, 2, 3]),
        (["--step", "2"], [2]),
        (["--step", "2:"], [2, 3]),
        (["--step", ":2"], [1, 2]),
        (["--step", "1:2", "--step", "3"], [1, 2, 3]),
        (["--step", "latest"], [3]),
    ],
)
def test_steps(src: Path, tmp_path: Path, words: list[str], wanted: list[int]) -> None:
    done = migrate(tmp_path, *words)
    assert (done.code, done.err) == (0, "")
    assert steps(tmp_path / "dst") == wanted
    for step in wanted:
        restores(tmp_path / "dst", step)
    assert contents(tmp_path / "dst").items() <= contents(src).items()
    again = migrate(tmp_path, *words, "--json")
    assert json.loads(again.out.splitlines()[-1])["sent_bytes"] == 0


def test_a_whole_tier_is_its_files(src: Path, tmp_path: Path) -> None:
    assert tierstore("migrate", str(src), str(tmp_path / "dst")).code == 0
    assert contents(tmp_path / "dst") == contents(src)


def test_damage_at_the_source_does_not_become_a_checkpoint(src: Path, tmp_path: Path) -> None:
    flip(stored(src, 2, SEGMENT))
    stored(src, 1, SEGMENT).unlink()
    done = migrate(tmp_path)
    assert done.code == 1
    key = str(stored(src, 2, SEGMENT).relative_to(src))
    assert f"failed: {key}: block 0 of it is damaged at the source" in done.err
    assert "1 file that it relies on did not arrive" in done.err
    assert f"the source has lost {SEGMENT}" in done.err
    assert steps(tmp_path / "dst") == [3]


def test_a_manifest_that_cannot_be_true_does_not_become_a_checkpoint(
    src: Path, tmp_path: Path
) -> None:
    """It could not be restored there, and --delete-source would bury its original."""
    attempt = Attempt(2, 1, 1)
    commit = store(src).read_commit(attempt)
    path = src / store(src).keys.commit(attempt)
    path.write_bytes(replace(commit, tensors=commit.tensors + 1).to_bytes())
    before = contents(src)
    done = migrate(tmp_path, "--step", "2", "--delete-source", "--grace", "0")
    assert (done.code, "is not what its commit says" in done.err) == (1, True), done.err
    assert contents(src) == before
    assert steps(tmp_path / "dst") == []


def test_a_file_that_fails_keeps_the_commit_back(src: Path, tmp_path: Path) -> None:
    other = tmp_path / "dst" / stored(src, 2, SEGMENT).relative_to(src)
    other.parent.mkdir(parents=True)
    other.write_bytes(b"something else")
    for words in ([], ["--conflict", "skip"]):
        done = tierstore("migrate", str(src), str(tmp_path / "dst"), *words)
        assert done.code == 1
        assert "did not arrive" in done.err
        assert steps(tmp_path / "dst") == [1, 3]
    assert migrate(tmp_path, "--conflict", "overwrite").code == 0
    restores(tmp_path / "dst", 2)


def test_a_part_of_a_checkpoint_is_none(src: Path, tmp_path: Path) -> None:
    words = ["migrate", str(src), str(tmp_path / "dst"), "--exclude", "00000-001*"]
    done = tierstore(*words)
    assert done.code == 1
    assert "not all of its checkpoint is selected" in done.err
    assert steps(tmp_path / "dst") == []


@pytest.mark.parametrize("words", [[], ["--conflict", "overwrite"]])
def test_another_jobs_run(src: Path, tmp_path: Path, words: list[str]) -> None:
    rival = store(tmp_path / "dst")
    other = launch(1)
    rival.claim_launch(type(other)(1, "f" * 16, None, 1, 0.0))
    done = migrate(tmp_path, *words)
    assert done.code == 1
    assert "is another job's there: its launch 1 is not the source's" in done.said
    assert steps(tmp_path / "dst") == []


@pytest.mark.parametrize("plain", [False, True])
def test_what_the_destination_has_deleted_stays_so(src: Path, tmp_path: Path, plain: bool) -> None:
    migrate(tmp_path)
    delete(store(tmp_path / "dst"), Attempt(2, 1, 1), grace=0)
    words = ["--conflict", "overwrite"]
    if plain:
        done = tierstore("migrate", str(src), str(tmp_path / "dst"), *words)
    else:
        done = migrate(tmp_path, *words)
    assert done.code == 1
    assert "the destination has deleted this checkpoint" in done.err
    assert steps(tmp_path / "dst") == [1, 3]


def test_what_the_source_has_deleted_is_left_out(src: Path, tmp_path: Path) -> None:
    data = stored(src, 2, SEGMENT).read_bytes()
    path = stored(src, 2, SEGMENT)
    delete(store(src), Attempt(2, 1, 1), grace=0)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)  # somebody was killed before all was removed
    for words in ([], ["--run", "run"]):
        assert tierstore("migrate", str(src), str(tmp_path / "dst"), *words).code == 0
        assert steps(tmp_path / "dst") == [1, 3]
        assert not list((tmp_path / "dst").glob("runs/run/*/000000000002-*"))
    assert migrate(tmp_path, "--delete-source", "--grace", "0").code == 0
    assert not path.exists()


@pytest.mark.parametrize("plain", [False, True])
def test_the_source_is_removed_commit_first(src: Path, tmp_path: Path, plain: bool) -> None:
    before = contents(src)
    words = ["--delete-source", "--grace", "0.3", "--json"]
    if plain:
        (src / "notes.txt").write_bytes(b"notes")
        done = tierstore("migrate", str(src), str(tmp_path / "dst"), *words)
    else:
        done = migrate(tmp_path, *words)
    assert done.code == 0, done.err
    told = json.loads(done.out.splitlines()[-1])
    assert told["removed"] == 3 + plain
    assert steps(src) == []
    assert {
        key: data for key, data in contents(tmp_path / "dst").items() if key in before
    } == before
    left = contents(src)
    assert sorted(Path(key).parent.name for key in left) == [*["commits"] * 3, "launches"]
    assert {len(data) for key, data in left.items() if "/commits/" in key} == {TOMBSTONE_SIZE}
    for step in (1, 2, 3):
        restores(tmp_path / "dst", step)
    # Again: what is gone is gone, and nothing of it comes back.
    assert migrate(tmp_path, "--delete-source").code == 0  # and nobody waits for readers
    assert steps(tmp_path / "dst") == [1, 2, 3]


def test_no_data_is_removed_under_a_commit_that_stays(src: Path, tmp_path: Path) -> None:
    """Neither if that is excluded, nor if it was not there yet when its place was listed."""
    before = {key for key in contents(src) if "/data/" in key or "/commits/" in key}
    words = ["migrate", str(src), str(tmp_path / "dst"), "--delete-source", "--grace", "0"]
    for more in (["-n"], []):
        done = tierstore(*words, "--exclude", "commits/", *more)
        assert done.code == 1
        assert "its checkpoint is alive at the source" in done.said
        assert before <= contents(src).keys()
    assert steps(src) == [1, 2, 3]
    delete(store(src), Attempt(2, 1, 1), grace=0)
    put(src, {key: b"left" for key in before if "/data/000000000002-" in key})
    commit = next(src.glob("runs/run/commits/000000000003-*"))
    commit.unlink()  # of what has no commit, or a tombstone, nobody has read anything
    assert tierstore(*words, "--exclude", "commits/", "--conflict", "overwrite").code == 1
    left = {key for key in contents(src) if "/data/" in key}
    assert left == {key for key in before if "/data/000000000001-" in key}


def test_what_did_not_arrive_is_not_removed(src: Path, tmp_path: Path) -> None:
    flip(stored(src, 2, SEGMENT))
    before = {key: data for key, data in contents(src).items() if "/000000000002-" in key}
    done = migrate(tmp_path, "--delete-source", "--grace", "0")
    assert done.code == 1
    assert steps(src) == [2]
    assert before.items() <= contents(src).items()


def test_killed_while_readers_have_their_time(src: Path, tmp_path: Path) -> None:
    urls = f"file://{src}", f"file://{tmp_path}/dst"
    words = ["--run", "run", "--delete-source", "--grace", "3600"]
    process = start("migrate", *urls, *words, stdout=subprocess.DEVNULL)
    while steps(src):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert steps(tmp_path / "dst") == [1, 2, 3]
    assert stored(src, 2, SEGMENT).exists()
    assert migrate(tmp_path, "--delete-source", "--grace", "0").code == 0
    assert not list(src.glob("runs/run/data/*/*"))


@pytest.fixture
def nodes(tmp_path: Path) -> list[str]:
    """A step of two ranks, each on a tier that is local to its node."""
    made = []
    for rank in (0, 1):
        path = tmp_path / f"node{rank}"
        with closing(Saver([folder("t", path, [rank])], "run")) as saver:
            work = stage(Attempt(1, 1, 1), launch(world=2), rank=rank, world=2, rows=900)
            saver.submit(*work).wait(timeout=PATIENCE)
        made.append(str(path))
    return made


@pytest.mark.parametrize("first", [0, 1])
def test_nodes_join_their_parts(nodes: list[str], tmp_path: Path, first: int) -> None:
    dst, words = str(tmp_path / "dst"), ["--run", "run", "--delete-source", "--grace", "0"]
    one, other = nodes[first], nodes[1 - first]
    for _ in range(2):
        done = tierstore("migrate", one, dst, *words)
        assert done.code == 0, done.err
        assert "1 waiting for the other ranks" in done.out
        assert steps(Path(one)) == [1]
        assert steps(Path(dst)) == []
    done = tierstore("migrate", other, dst, *words)
    assert (done.code, done.err) == (0, "")
    restores(Path(dst), 1)
    assert steps(Path(other)) == []
    assert tierstore("migrate", one, dst, *words).code == 0
    assert steps(Path(one)) == []
    restores(Path(dst), 1)


def test_a_node_joins_what_the_job_began(nodes: list[str], tmp_path: Path) -> None:
    """One rank had written its part to the shared tier when the job died."""
    dst = tmp_path / "dst"
    saver = Saver([folder("t", dst, [0, 1])], "run", commit_timeout=0.1)
    work = stage(Attempt(1, 1, 1), launch(world=2), rank=0, world=2, rows=900)
    saver.submit(*work)
    saver.close()
    assert steps(dst) == []
    for node in nodes:
        done = tierstore("migrate", node, str(dst), "--run", "run")
        assert (done.code, done.err) == (0, "")
    restores(dst, 1)


def test_a_damaged_part_is_not_joined(nodes: list[str], tmp_path: Path) -> None:
    flip(stored(Path(nodes[1]), 1, "fragments/00001"), 100)
    dst = str(tmp_path / "dst")
    assert tierstore("migrate", nodes[0], dst, "--run", "run").code == 0
    done = tierstore("migrate", nodes[1], dst, "--run", "run")
    assert done.code == 1
    assert "fragments/00001 is damaged" in done.err
    assert steps(Path(dst)) == []


def test_the_plan(src: Path, tmp_path: Path) -> None:
    done = migrate(tmp_path, "--step", "3", "--dry-run")
    assert done.code == 0
    assert done.out.startswith("7 objects of 3.5 MiB would be copied\n")
    assert not (tmp_path / "dst").exists()
    stored(src, 3, SEGMENT).unlink()
    done = migrate(tmp_path, "--step", "3", "-n")
    assert done.code == 1
    assert "the source has lost" in done.err


def test_tiers_by_name(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = {"fast": f"file://{src}", "slow": f"file://{tmp_path}/dst"}
    config = ladder_file(tmp_path / "tierstore.toml", **urls)
    assert tierstore("migrate", "fast", "slow", "--run", "*", "-c", config).code == 0
    assert steps(tmp_path / "dst") == [1, 2, 3]
    monkeypatch.setenv("TIERSTORE_CONFIG", config)
    assert tierstore("migrate", "fast", "slow", "--run", "*").code == 0
    done = tierstore("migrate", "fast", "slwo", "--run", "*")
    assert done.code == 2
    assert "there is no tier 'slwo'" in done.said
    assert "fast, slow" in done.said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--step", "1"], 2, "--step is of a run"),
        (["--run", "run", "--include", "x"], 2, "are not for checkpoints"),
        (["--run", "run", "--step", "x"], 2, "'x' is no step"),
        (["--run", "run", "--step", "3:1"], 2, "is empty"),
        (["--run", "other"], 1, "has no run other"),
        (["--run", "run", "--step", "7"], 1, "has no checkpoint of these steps"),
        (["--run", "run", "--bandwidth", "fast"], 2, "'fast' is not a size"),
    ],
)
def test_wrong_words(src: Path, tmp_path: Path, words: list[str], code: int, said: str) -> None:
    done = tierstore("migrate", str(src), str(tmp_path / "dst"), *words)
    assert done.code == code
    assert said in done.said
    assert not (tmp_path / "dst" / "runs").exists()


def test_bandwidth(src: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    assert migrate(tmp_path, "--bandwidth", "5M").code == 0
    assert time.monotonic() - begun > 1  # 11 MB
