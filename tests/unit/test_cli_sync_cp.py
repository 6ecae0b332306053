"""`tierstore sync` and `tierstore cp`, called as a user calls them, between folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.attempts import commits, line_of
from tests.command import Done, folders, save, stored, tierstore
from tests.files import contents, put
from tierstore.backends.local.backend import LocalBackend
from tierstore.checkpoint.delete import delete
from tierstore.checkpoint.store import RunStore
from tierstore.keys import Attempt

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
    assert sync(tmp_path, "--delete", "--force").code == 0
    assert [attempt.step for attempt in line_of(theirs)] == [1]
    assert {a.step: lives for a, lives in commits(theirs).items()} == {1: True, 2: False, 3: False}
    assert list((tmp_path / "dst").glob("runs/run/data/*/*.safetensors")) == [
        stored(tmp_path / "dst", 1, "00000-000.safetensors")
    ]


def test_what_a_living_commit_relies_on_stays(tmp_path: Path) -> None:
    save(folders(tmp_path, "src"), 1)
    assert sync(tmp_path).code == 0
    lost = stored(tmp_path / "src", 1, "00000-000.safetensors")
    lost.unlink()
    assert sync(tmp_path, "--delete", "--force").code == 0
    assert stored(tmp_path / "dst", 1, "00000-000.safetensors").exists()


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
