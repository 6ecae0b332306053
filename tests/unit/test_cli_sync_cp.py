"""`tierstore sync` and `tierstore cp`, called as a user calls them, between folders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.attempts import commits, line_of
from tests.command import Done, folders, save, start, stored, tierstore
from tests.files import contents, put
from tests.patience import PATIENCE
from tierstore.backends.local.backend import LocalBackend
from tierstore.checkpoint.delete import delete
from tierstore.checkpoint.store import RunStore
from tierstore.cli import waits
from tierstore.keys import Attempt

SEGMENT = "00000-000.safetensors"
FILES = {"a": b"a", "sub/b": b"bb", "sub/c": b"ccc"}


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    put(tmp_path / "src", FILES)
    return tmp_path / "src"


def sync(tmp_path: Path, *words: str) -> Done:
    return tierstore("sync", str(tmp_path / "src"), str(tmp_path / "dst"), *words)


def test_a_mirror(src: Path, tmp_path: Path) -> None:
    put(tmp_path / "dst", {"a": b"other", "old/x": b"x", "keep.log": b"log"})
    assert sync(tmp_path).code == 0
    assert contents(tmp_path / "dst") == {**FILES, "old/x": b"x", "keep.log": b"log"}
    words = ["--delete", "--exclude", "*.log"]
    done = sync(tmp_path, *words, "--dry-run")
    assert done.out.splitlines()[-1] == "1 object of 1 B would be deleted at DST"
    assert "old/x" in contents(tmp_path / "dst")
    events = [json.loads(line) for line in sync(tmp_path, *words, "--json").out.splitlines()]
    assert {"event": "deleted", "key": "old/x"} in events
    assert events[-1] == {"event": "delete", "objects": 1, "bytes": 1, "deleted": 1}
    assert contents(tmp_path / "dst") == {**FILES, "keep.log": b"log"}


def test_more_than_half_needs_force(src: Path, tmp_path: Path) -> None:
    theirs = {f"old/{n}": b"x" for n in range(4)}
    put(tmp_path / "dst", theirs)
    done = sync(tmp_path, "--delete")
    assert done.code == 1
    assert "4 of 7 objects" in done.said
    assert "none was" in done.said
    assert contents(tmp_path / "dst") == {**FILES, **theirs}
    assert sync(tmp_path, "--delete", "--force").code == 0
    assert contents(tmp_path / "dst") == FILES


def test_nothing_is_deleted_for_an_empty_source(tmp_path: Path) -> None:
    put(tmp_path / "dst", FILES)
    (tmp_path / "src").mkdir()
    done = sync(tmp_path, "--delete", "--force")
    assert done.code == 1
    assert "there is nothing to migrate" in done.said
    assert contents(tmp_path / "dst") == FILES


def test_nothing_is_deleted_before_all_has_arrived(src: Path, tmp_path: Path) -> None:
    put(tmp_path / "dst", {"old": b"x", "sub/b/blocks": b"a folder is where a file should be"})
    os.mkfifo(tmp_path / "dst" / "sub" / "b" / "too")  # which nobody deletes
    done = sync(tmp_path, "--delete", "--force")
    assert done.code == 1
    assert "failed: sub/b" in done.err
    assert "old" in contents(tmp_path / "dst")


def test_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(folders(tmp_path, "src"), step)
    assert sync(tmp_path).code == 0
    ours, theirs = (RunStore(LocalBackend(str(tmp_path / name)), "run") for name in ("src", "dst"))
    delete(ours, Attempt(2, 1, 1), grace=0)
    for commit in (tmp_path / "src").glob("runs/run/commits/*3-000001*"):
        commit.unlink()  # with all that it relied on: nobody should, but a mirror follows
    for file in (tmp_path / "src").glob("runs/run/data/*3-000001*/**/*"):
        file.unlink() if file.is_file() else None
    words = ["--delete", "--force", "--grace", "0.3"]
    assert steps_of(theirs) == {1: True, 2: True, 3: True}
    dry = sync(tmp_path, *words, "--dry-run", "--json")
    assert steps_of(theirs) == {1: True, 2: True, 3: True}
    done = sync(tmp_path, *words, "--json")
    assert done.code == 0
    told = [json.loads(each.out.splitlines()[-1]) for each in (dry, done)]
    assert told[0] | {"deleted": told[0]["objects"]} == told[1]
    assert [attempt.step for attempt in line_of(theirs)] == [1]
    assert steps_of(theirs) == {1: True, 2: False, 3: False}
    assert list((tmp_path / "dst").glob("runs/run/data/*/*.safetensors")) == [
        stored(tmp_path / "dst", 1, SEGMENT)
    ]


def steps_of(store: RunStore) -> dict[int, bool]:
    return {attempt.step: lives for attempt, lives in commits(store).items()}


@pytest.fixture
def lost(tmp_path: Path) -> RunStore:
    """The run of a mirror whose original has lost step 2."""
    for step in (1, 2):
        save(folders(tmp_path, "src"), step)
    assert sync(tmp_path).code == 0
    delete(RunStore(LocalBackend(str(tmp_path / "src")), "run"), Attempt(2, 1, 1), grace=0)
    return RunStore(LocalBackend(str(tmp_path / "dst")), "run")


def test_readers_of_a_mirror_are_waited_for(
    lost: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "FIRST", 0.05)
    monkeypatch.setattr(waits, "LOOK", 0.02)
    done = sync(tmp_path, "--delete", "--force", "--grace", "0.5")
    assert done.code == 0
    assert "waiting for readers of what was deleted: grace (" in done.err
    assert not list((tmp_path / "dst").glob("runs/run/data/000000000002-*/*"))
    save(folders(tmp_path, "src"), 3)
    done = sync(tmp_path, "--delete", "--grace", "3600")  # no checkpoint goes, so nobody waits
    assert done.code == 0
    assert "waiting for readers" not in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_while_readers_of_a_mirror_have_their_time(
    lost: RunStore, tmp_path: Path, number: signal.Signals
) -> None:
    words = ["--delete", "--force", "--grace", "3600"]
    process = start("sync", str(tmp_path / "src"), str(tmp_path / "dst"), *words)
    while steps_of(lost)[2]:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(PATIENCE) in (130, -number)
    assert steps_of(lost) == {1: True, 2: False}
    assert stored(tmp_path / "dst", 2, SEGMENT).exists()
    done = sync(tmp_path, "--delete", "--force", "--grace", "0")
    assert done.code == 0
    assert not list((tmp_path / "dst").glob("runs/run/data/000000000002-*/*"))
    assert len(line_of(lost)) == 1


def test_a_commit_in_the_way_is_never_removed(lost: RunStore, tmp_path: Path) -> None:
    """Its tombstone would be, so nothing is gained, and nothing was deleted."""
    shutil.rmtree(tmp_path / "src")
    put(tmp_path / "src", {"runs/run/commits": b"a file"})
    before = contents(tmp_path / "dst")
    done = sync(tmp_path, "--delete", "--force", "--grace", "0")
    assert done.code == 1
    assert "is in its place and stays, so nothing was deleted" in done.said
    assert contents(tmp_path / "dst") == before


def test_data_in_the_way_goes_behind_its_tombstone(lost: RunStore, tmp_path: Path) -> None:
    """Step 1 is lost as well, but it is in nobody's way: all has arrived before it goes."""
    shutil.rmtree(tmp_path / "src/runs/run")
    folder = stored(tmp_path / "dst", 2, SEGMENT).parent.relative_to(tmp_path / "dst")
    put(tmp_path / "src", {str(folder): b"a file"})
    words = ["--delete", "--force", "--grace", "0", "--json"]
    done = sync(tmp_path, *words)
    assert done.code == 0, done
    events = [json.loads(line) for line in done.out.splitlines()]
    gone = [each["key"] for each in events if each["event"] == "deleted"]
    first, second = (str(lost.keys.commit(Attempt(step, 1, 1))) for step in (1, 2))
    assert gone[0] == second
    assert [key.startswith(str(folder)) for key in gone[1 : gone.index(first)]] != []
    assert all(key.startswith(str(folder)) for key in gone[1 : gone.index(first)])
    assert steps_of(lost) == {1: False, 2: False}
    assert (tmp_path / "dst" / folder).read_bytes() == b"a file"


def test_what_a_living_commit_relies_on_stays(tmp_path: Path) -> None:
    save(folders(tmp_path, "src"), 1)
    assert sync(tmp_path).code == 0
    lost = stored(tmp_path / "src", 1, SEGMENT)
    lost.unlink()
    assert sync(tmp_path, "--delete", "--force").code == 0
    assert stored(tmp_path / "dst", 1, SEGMENT).exists()


def test_one_object(src: Path, tmp_path: Path) -> None:
    data = os.urandom(20_000_000)
    put(src, {"large": data})
    dst = tmp_path / "dst"
    assert tierstore("cp", f"{src}/large", f"{dst}/here").code == 0
    assert tierstore("cp", f"{src}/large", f"{dst}/in/").code == 0
    assert contents(dst) == {"here": data, "in/large": data}
    done = tierstore("cp", f"{src}/a", f"{dst}/here")
    assert done.code == 1
    assert "the destination already has something else there" in done.err
    assert tierstore("cp", f"{src}/a", f"{dst}/here", "--conflict", "overwrite").code == 0
    assert contents(dst)["here"] == b"a"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["cp", "SRC/sub", "DST"], 1, "`tierstore migrate` copies folders"),
        (["cp", "SRC/none", "DST"], 1, "there is no object"),
        (["sync", "SRC/a", "DST"], 2, "`tierstore cp` copies it"),
        (["sync", "SRC", "SRC/sub"], 2, "lie one in the other"),
        (["sync", "SRC"], 2, "Missing argument 'DST'"),
    ],
)
def test_wrong_words(src: Path, tmp_path: Path, words: list[str], code: int, said: str) -> None:
    places = {"SRC": str(src), "DST": str(tmp_path / "dst")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    done = tierstore(*words)
    assert done.code == code
    assert said in done.said
