"""A dry run says what the real run then does: the same verdict, the same numbers, and no trace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.command import Done, folders, save, stored, tierstore
from tests.disks import small_disk
from tierstore.backends.local.backend import LocalBackend
from tierstore.blocks import crc32c
from tierstore.checkpoint.delete import delete
from tierstore.checkpoint.store import RunStore
from tierstore.keys import Attempt
from tierstore.migration.mirror import Extra, Mirror
from tierstore.transfer.engine.journal import Journal
from tierstore.transfer.engine.records import Begun, Version

OUTCOMES = {"copy": "copied", "same": "same", "keep": "kept", "wait": "blocked", "fail": "failed"}
Arrange = Callable[[Path, Path], None]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def put(folder: Path, **files: bytes) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def usual(src: Path, dst: Path) -> None:
    put(src, a=b"a", same=b"same", other=b"one", sub__longer=b"longer", large=bytes(9_000_000))
    put(dst, same=b"same", other=b"two", sub__longer=b"long")


def nothing_at_src(src: Path, dst: Path) -> None:
    put(src)
    put(dst, old=b"x")


def half_is_extra(src: Path, dst: Path) -> None:
    put(src, a=b"a", b=b"b", c=b"c")
    put(dst, old1=b"x", old2=b"x", old3=b"x")


def more_than_half_is_extra(src: Path, dst: Path) -> None:
    put(src, a=b"a", b=b"b")
    put(dst, old1=b"x", old2=b"x", old3=b"x", a=b"a")


def names_that_cannot_be(src: Path, dst: Path) -> None:
    put(src, a=b"a")
    (src / "b\nc").write_bytes(b"x")
    put(dst, old=b"x")


def a_folder_in_the_way(src: Path, dst: Path) -> None:
    put(src, a=b"a", b__c=b"c", d=b"d")
    put(dst, b=b"a file", d__e=b"in a folder")


def an_excluded_name_in_the_way(src: Path, dst: Path) -> None:
    put(src, a=b"a", b=b"b", d=b"d")
    put(dst, b=b"b", d__e=b"in a folder", d__excluded=b"stays")


def a_pipe_in_the_way(src: Path, dst: Path) -> None:
    put(src, a=b"a", b=b"b", d=b"d")
    put(dst, b=b"b", d__e=b"in a folder")
    os.mkfifo(dst / "d" / "pipe")


def a_link_and_a_folder_in_the_way(src: Path, dst: Path) -> None:
    put(src, a=b"a", b=b"b", d=b"d")
    (src / "link").symlink_to("a")
    put(dst, d__e=b"in a folder")


def a_link_to_a_folder(src: Path, dst: Path) -> None:
    put(src, b__c=b"c")
    put(dst)
    (src / "z").symlink_to("b")


def a_checkpoint(src: Path, dst: Path) -> None:
    for step in (1, 2):
        save(folders(src.parent, "src"), step)
    shutil.copytree(src, dst)
    save(folders(src.parent, "src"), 3)
    delete(RunStore(LocalBackend(str(src)), "run"), Attempt(1, 1, 1), grace=0)


def a_checkpoint_that_lost_a_file(src: Path, dst: Path) -> None:
    put(dst)
    save(folders(src.parent, "src"), 1)
    stored(src, 1, "00000-000.safetensors").unlink()


def a_checkpoint_that_is_there(src: Path, dst: Path) -> None:
    for place in (src, dst):
        save(folders(place.parent, place.name), 1)


MANY = [usual, nothing_at_src, half_is_extra, more_than_half_is_extra, names_that_cannot_be]
MANY += [
    a_folder_in_the_way,
    an_excluded_name_in_the_way,
    a_pipe_in_the_way,
    a_link_and_a_folder_in_the_way,
    a_link_to_a_folder,
    a_checkpoint,
    a_checkpoint_that_lost_a_file,
    a_checkpoint_that_is_there,
]
COMMANDS = [
    *("migrate", "migrate --conflict skip", "migrate --delete-source --grace 0"),
    *("sync --delete --grace 0", "sync --delete --force --grace 0"),
]


def events(done: Done, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in done.out.splitlines()]
    return [each for each in found if each["event"] == event]


def last(done: Done, event: str) -> dict[str, Any]:
    return next(reversed(events(done, event)), {})


def state(*places: Path) -> list[tuple[str, bytes | None]]:
    return [
        (str(path), path.read_bytes() if path.is_file() else None)
        for place in places
        for path in sorted(place.rglob("*"))
    ]


@pytest.mark.parametrize("arrange", MANY)
@pytest.mark.parametrize("command", COMMANDS)
def test_it_says_what_then_happens(tmp_path: Path, arrange: Arrange, command: str) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    arrange(src, dst)
    before = state(src, dst)
    name, *options = command.split()
    words = [name, str(src), str(dst), *options, "--exclude", "excluded", "--json"]
    dry = tierstore(*words, "--dry-run")
    assert state(src, dst) == before, "it has left a trace"
    assert not (tmp_path / "state").exists()
    real = tierstore(*words)
    assert dry.code == real.code, (dry, real)
    assert verdict(dry) == verdict(real)
    plan, summary = last(dry, "plan"), last(real, "summary")
    if not any(plan["wait"].values()):  # what waits for its place is moved by a second run
        counted = {outcome: plan[name]["objects"] for name, outcome in OUTCOMES.items()}
        if len(events(real, "summary")) > 1:  # links went first, so the last finds the rest there
            counted = {"failed": counted["failed"]}
        assert counted == {outcome: summary[outcome] for outcome in counted}
    if arrange is not a_checkpoint:  # of its parts a sweep removes some, uncounted
        removed = sum(each["removed"] for each in events(real, "summary"))  # links go first
        assert plan["removed"] == removed
    told, done = last(dry, "delete"), last(real, "delete")
    assert told.get("objects") == done.get("objects")
    assert done.get("objects") == done.get("deleted")


@pytest.mark.parametrize("there", [None, b"same", b"also", b"longer"])
@pytest.mark.parametrize("conflict", ["fail", "skip", "overwrite"])
def test_so_it_is_with_one_object(tmp_path: Path, there: bytes | None, conflict: str) -> None:
    put(tmp_path / "src", a=b"same")
    put(tmp_path / "dst", **({} if there is None else {"b": there}))
    before = state(tmp_path / "dst")
    words = ["cp", "src/a", "./dst/b", "--conflict", conflict, "--json"]
    dry = tierstore(*words, "-n")
    assert state(tmp_path / "dst") == before
    real = tierstore(*words)
    assert (dry.code, verdict(dry)) == (real.code, verdict(real))
    counted = {outcome: last(dry, "plan")[name]["objects"] for name, outcome in OUTCOMES.items()}
    assert counted == {outcome: last(real, "summary")[outcome] for outcome in OUTCOMES.values()}


def verdict(done: Done) -> list[str]:
    """Return what was said of errors, without advice."""
    return [line for line in done.err.splitlines() if line.startswith("error: ")]


def test_once_all_is_there_nothing_is_read(tmp_path: Path) -> None:
    usual(tmp_path / "src", tmp_path / "dst")
    words = ["migrate", "./src", "./dst", "--conflict", "overwrite"]
    assert tierstore(*words).code == 0
    journal = state(tmp_path / "state")
    done = tierstore(*words, "-n")
    assert (done.code, "5 objects of 8.6 MiB are there already" in done.out) == (0, True)
    assert state(tmp_path / "state") == journal


def test_an_upload_that_was_begun_is_left_alone(tmp_path: Path) -> None:
    put(tmp_path / "src", a=b"a")
    source, target = (f"file://{tmp_path}/{name}" for name in ("src", "dst"))
    with closing(LocalBackend(str(tmp_path / "dst"))) as backend:
        upload = backend.upload("gone", 2)
        token = upload.token
        upload.write(0, b"ab", crc32c(b"ab"))
    with closing(Journal(tmp_path / "journal", source, target)) as journal:
        journal.append(Begun(1, "gone", Version(2, 1.0), 2, token))
    before = state(tmp_path)
    done = tierstore("migrate", "./src", "./dst", "-n", "--journal", "journal")
    assert done.code == 0
    assert state(tmp_path) == before
    assert tierstore("migrate", "./src", "./dst", "--journal", "journal").code == 0
    assert not (tmp_path / "dst" / ".tierstore-tmp").exists(), "the real run frees it"


def test_a_source_that_goes_away_once_it_was_counted_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was a disk is an empty folder once it is unmounted, and its mirror all too much."""
    src, dst, count = tmp_path / "src", tmp_path / "dst", Mirror.extra
    half_is_extra(src, dst)

    def then_unmounted(mirror: Mirror, coming: int = 0) -> Extra:
        extra = count(mirror, coming)
        shutil.rmtree(src)
        return extra

    monkeypatch.setattr(Mirror, "extra", then_unmounted)
    done = tierstore("sync", str(src), str(dst), "--delete")
    assert (done.code, "more is missing at SRC" in done.said) == (1, True), done
    assert len(list(dst.iterdir())) == 6


def test_a_source_from_which_nothing_may_be_removed(tmp_path: Path) -> None:
    disk = tmp_path / "src"
    with small_disk(disk, 4):
        put(disk, a=b"a", sub__b=b"b")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        words = ["migrate", str(disk), str(tmp_path / "dst"), "--delete-source", "--json"]
        dry, real = tierstore(*words, "-n"), tierstore(*words)
        assert dry.code == real.code == 1
        assert last(dry, "plan")["fail"]["objects"] == last(real, "summary")["failed"] == 2


@pytest.mark.skipif(not os.geteuid(), reason="root may read and write everything")
def test_what_may_not_be_read_or_written(tmp_path: Path) -> None:
    put(tmp_path / "src", a=b"a", b=b"b")
    (tmp_path / "src/a").chmod(0)
    assert tierstore("migrate", "./src", "./dst", "-n").code == 1
    put(tmp_path / "ro")
    (tmp_path / "ro").chmod(0o500)
    assert tierstore("migrate", "./src", "./ro", "-n").code == 1


def test_a_crew_that_is_unknown_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "src", a=b"a")
    for more in (["--on", "sky"], ["--send-credentials"]):
        assert tierstore("migrate", "./src", "./dst", "-n", *more).code == 2
