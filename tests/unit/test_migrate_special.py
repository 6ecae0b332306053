"""What is no file, has no name, or cannot be looked into: told, and never removed for it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import COMMAND, Done, folders, save, stored, tierstore
from tests.files import contents
from tierstore.backends.local.backend import LocalBackend
from tierstore.scan import Kind, LeftOut, Ways

# Whom the modes of folders bind: root only without the capability to ignore them.
BOUND = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if not os.geteuid() else ()


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    put(tmp_path / "src", "a", "sub/b", "z")
    return tmp_path / "src"


def put(folder: Path, *keys: str) -> None:
    for key in keys:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_text(key)


def bytes_path(folder: Path, name: bytes) -> bytes:
    return os.fsencode(folder) + b"/" + name


def run(command: str, src: Path, *words: str) -> Done:
    return tierstore(command, str(src), str(src.parent / "dst"), *words)


def objects(done: Done) -> dict[str, tuple[str, str]]:
    events = [json.loads(line) for line in done.out.splitlines()]
    return {e["key"]: (e["outcome"], e["reason"]) for e in events if e["event"] == "object"}


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "m")
    return "m"


def listener(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # such paths are short
        server.bind("m")
        os.chdir(here)
    return "m"


def device(folder: Path) -> str:
    if os.geteuid():
        pytest.skip("only root makes devices")
    os.mknod(folder / "m", 0o600 | 0o020000, os.makedev(1, 5))
    return "m"


def dangling(folder: Path) -> str:
    (folder / "m").symlink_to("nowhere")
    return "m"


def to_a_pipe(folder: Path) -> str:
    os.mkfifo(folder.parent / "pipe")
    (folder / "m").symlink_to(folder.parent / "pipe")
    return "m"


def to_itself(folder: Path) -> str:
    (folder / "m").symlink_to("m")
    return "m"


def circle(folder: Path) -> str:
    (folder / "sub" / "m").symlink_to(folder)
    return "sub/m/"


def no_text(folder: Path) -> str:
    Path(os.fsdecode(bytes_path(folder, b"\x80m"))).write_text("x")
    return "\\x80m"


def in_no_text(folder: Path) -> str:
    Path(os.fsdecode(bytes_path(folder, b"\xffm"))).mkdir()
    Path(os.fsdecode(bytes_path(folder, b"\xffm/x"))).write_text("x")
    return "\\xffm/x"


def no_key(folder: Path) -> str:
    (folder / "m\nn").write_text("x")
    return "m\nn"


SPECIAL = [
    pipe,
    listener,
    device,
    dangling,
    to_a_pipe,
    to_itself,
    circle,
    no_text,
    in_no_text,
    no_key,
]


@pytest.mark.parametrize("make", SPECIAL)
def test_it_is_told_and_all_else_is_copied(src: Path, make: Callable[[Path], str]) -> None:
    put(src, "é", "😀")  # between which names that are no text sort in two ways
    name = make(src)
    wanted = {key: key.encode() for key in ("a", "sub/b", "z", "é", "😀")}
    plan = run("migrate", src, "--dry-run", "--json")
    done = run("migrate", src, "--json")
    told = objects(done)
    assert (plan.code, objects(plan)) == (1, {name: told[name]})
    assert done.code == 1
    assert told[name][0] == "left_out"
    assert told[name][1]
    assert json.loads(done.out.splitlines()[-1])["left_out"] == 1
    assert contents(src.parent / "dst") == wanted
    again = run("migrate", src)
    assert again.code == 1
    assert again.err.startswith("left out: ")
    assert again.out.startswith("6 objects: 5 there already, 1 left out\n")
    assert run("migrate", src, "--skip-special").code == 0


@pytest.mark.parametrize("make", [pipe, listener, dangling, to_itself])
@pytest.mark.parametrize("below", [False, True])
def test_a_mirror_keeps_its_copy(src: Path, make: Callable[[Path], str], *, below: bool) -> None:
    """What was a file when it was copied may be back as one tomorrow."""
    make(src / "sub" if below else src)
    kept = "sub/m" if below else "m"
    put(src.parent / "dst", kept, "old")
    done = run("sync", src, "--delete", "--force")
    assert (done.code, sorted(contents(src.parent / "dst"))) == (
        1,
        sorted(["a", "sub/b", "z", kept]),
    )
    assert run("sync", src, "--delete", "--force", "--skip-special").code == 0
    assert kept in contents(src.parent / "dst")


def test_a_mirror_keeps_what_sorts_behind_no_text(src: Path) -> None:
    """As bytes it is before "é", as Python's text behind it."""
    put(src, "é", "😀")
    no_text(src)
    for _ in range(2):
        done = run("sync", src, "--delete", "--force", "--skip-special")
        assert done.code == 0, done.said
        assert {"é", "😀"} < set(contents(src.parent / "dst"))


def test_a_source_of_special_things_only_is_empty(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    pipe(tmp_path / "src")
    put(tmp_path / "dst", "old")
    done = run("sync", tmp_path / "src", "--delete", "--force", "--skip-special")
    assert done.code == 1
    assert "there is nothing to migrate" in done.said
    assert contents(tmp_path / "dst") == {"old": b"old"}


# -- links -------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A cache as huggingface_hub makes it."""
    model = tmp_path / "src" / "models--m"
    put(model, "blobs/1", "blobs/2", "refs/main")
    for name, blob in (("config.json", "1"), ("sub/model.safetensors", "2")):
        link = model / "snapshots" / "r" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(model / "blobs" / blob, link.parent))
    return model


def test_the_files_of_a_model_are_copied(hub: Path) -> None:
    src = hub / "snapshots" / "r"
    dst = src.parent / "dst"
    assert run("migrate", src).code == 0
    assert contents(dst) == {"config.json": b"blobs/1", "sub/model.safetensors": b"blobs/2"}
    assert not any(path.is_symlink() for path in dst.rglob("*"))
    again = run("migrate", src, "--delete-source")
    assert (again.code, again.out.splitlines()[0]) == (0, "2 objects: 2 there already")
    assert not list(src.rglob("*.json"))
    assert {path.name for path in (hub / "blobs").iterdir()} == {"1", "2"}


@pytest.mark.parametrize("whole", [False, True])
def test_a_cache_is_moved(hub: Path, tmp_path: Path, *, whole: bool) -> None:
    """Though what the links lead to comes before them, and would be gone."""
    if whole:
        (tmp_path / "src" / "z").symlink_to(hub / "blobs" / "1")
    files = {path: (tmp_path / "src" / path).read_bytes() for path in contents(tmp_path / "src")}
    assert len(files) == (6 if whole else 5)
    done = run("migrate", tmp_path / "src" if whole else hub, "--delete-source")
    assert done.code == 0, done.said
    dst = tmp_path / "dst" if whole else tmp_path / "src" / "dst"
    arrived = contents(dst)
    assert {path.removeprefix("models--m/"): data for path, data in arrived.items()} == {
        path.removeprefix("models--m/"): data for path, data in files.items()
    }
    assert not [path for path in hub.rglob("*") if not path.is_dir()]


def test_what_a_link_leads_to_stays_while_the_link_does(hub: Path) -> None:
    put(hub.parent / "dst", "snapshots/r/config.json")
    done = run("migrate", hub, "--delete-source")
    assert done.code == 1
    assert "failed: snapshots/r/config.json: the destination already has something" in done.err
    assert contents(hub)["snapshots/r/config.json"] == b"blobs/1"


def test_links_are_skipped_if_asked(hub: Path, tmp_path: Path) -> None:
    src = tmp_path / "src"
    (src / "whole").symlink_to(hub)
    put(tmp_path / "dst", "whole/refs/main", "models--m/snapshots/r/config.json", "old")
    done = run("sync", src, "--links", "skip", "--delete", "--force", "--json")
    assert done.code == 0, done.err
    left = {key for key, (outcome, _) in objects(done).items() if outcome == "left_out"}
    links = {"models--m/snapshots/r/config.json", "models--m/snapshots/r/sub/model.safetensors"}
    assert left == {"whole/", *links}
    kept = {"whole/refs/main", "models--m/snapshots/r/config.json"}
    blobs = {f"models--m/{key}" for key in ("blobs/1", "blobs/2", "refs/main")}
    assert set(contents(tmp_path / "dst")) == kept | blobs


def test_what_lies_behind_a_link_is_never_removed(src: Path, tmp_path: Path) -> None:
    put(tmp_path / "else", "x", "y/z")
    (src / "sub" / "link").symlink_to(tmp_path / "else")
    done = run("migrate", src, "--delete-source", "--json")
    assert done.code == 1
    told = {key: why for key, (outcome, why) in objects(done).items() if outcome == "failed"}
    assert set(told) == {"sub/link/x", "sub/link/y/z"}
    assert "it lies behind a link" in told["sub/link/x"]
    assert len(contents(tmp_path / "dst")) == 5
    assert set(contents(tmp_path / "else")) == {"x", "y/z"}
    assert sorted(path.name for path in src.rglob("*")) == [".tierstore-tmp", "link", "sub"] or (
        sorted(path.name for path in src.rglob("*")) == ["link", "sub"]
    )


def test_one_file_that_fails_keeps_no_other_at_the_source_for_a_link(src: Path) -> None:
    (src / "link").symlink_to("a")
    put(src.parent / "dst", "z/in the way")
    done = run("migrate", src, "--delete-source", "--json")
    assert done.code == 1
    assert objects(done)["z"][0] == "failed"
    assert set(contents(src)) == {"z"}


def test_what_a_link_that_failed_leads_to_stays(src: Path) -> None:
    (src / "link").symlink_to("a")
    put(src.parent / "dst", "link/in the way")
    assert run("migrate", src, "--delete-source").code == 1
    assert set(contents(src)) == {"a", "link", "sub/b", "z"}


def test_a_folder_behind_a_link_is_told_in_whatever_order_it_goes(src: Path) -> None:
    (src / "z2").symlink_to("sub")
    done = run("migrate", src, "--delete-source", "--json")
    assert (done.code, objects(done)["z2/b"][0]) == (1, "failed")
    assert (src / "z2").readlink() == Path("sub")


def test_a_commit_behind_a_link_is_no_tombstone(tmp_path: Path) -> None:
    save(folders(tmp_path, "else"), 1)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "runs").symlink_to(tmp_path / "else" / "runs")
    before = contents(tmp_path / "else")
    assert run("migrate", tmp_path / "src", "--delete-source", "--grace", "0").code == 1
    assert contents(tmp_path / "else") == before
    assert contents(tmp_path / "dst") == before


def test_a_link_into_the_destination_is_left_out(src: Path, tmp_path: Path) -> None:
    """Else its copies would be copied again and again."""
    put(tmp_path / "dst", "old")
    (src / "m").symlink_to(tmp_path / "dst")
    done = run("migrate", src, "--json")
    assert done.code == 1
    assert objects(done)["m/"] == ("left_out", "it leads into the other end")
    assert set(contents(tmp_path / "dst")) == {"a", "old", "sub/b", "z"}


def test_a_mirror_does_not_delete_behind_its_links(src: Path, tmp_path: Path) -> None:
    put(tmp_path / "else", "x")
    put(tmp_path / "dst", "a")
    (tmp_path / "dst" / "old").symlink_to(tmp_path / "else")
    assert run("sync", src, "--delete", "--force").code == 0
    assert contents(tmp_path / "else") == {"x": b"x"}


# -- folders that nobody may read --------------------------------------------------------------


def bound(command: str, src: Path, *words: str) -> Done:
    places = [str(src), str(src.parent / "dst")]
    done = subprocess.run(
        [*BOUND, *COMMAND, command, *places, *words], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def test_an_unreadable_folder(src: Path) -> None:
    put(src, "sub/deep/x", "t/y")
    put(src.parent / "dst", "sub/deep/x", "sub/deep/old", "sub/old", "u")
    (src / "sub" / "deep").chmod(0)
    try:
        done = bound("sync", src, "--delete", "--force", "--json")
        excluded = bound("sync", src, "--delete", "--force", "--exclude", "deep")
    finally:
        (src / "sub" / "deep").chmod(0o700)
    assert done.code == 1, done.err
    told = objects(done)
    assert told["sub/deep/"] == ("failed", "it cannot be listed: Permission denied")
    assert {key for key, (outcome, _) in told.items() if outcome == "copied"} == {
        "a",
        "sub/b",
        "t/y",
        "z",
    }
    assert excluded.code == 0, excluded.err
    assert set(contents(src.parent / "dst")) == {
        "a",
        "sub/b",
        "sub/deep/x",
        "sub/deep/old",
        "t/y",
        "z",
    }


@pytest.mark.parametrize("words", [(), ("--exclude", "fragments")])
def test_a_checkpoint_of_which_not_all_can_be_seen_is_none(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    for step in (1, 2):
        save(folders(tmp_path, "src"), step)
    fragments = stored(tmp_path / "src", 1, "fragments")
    if not words:  # as what cannot be listed
        (fragments / "m").symlink_to("m")
    done = run("migrate", tmp_path / "src", *words)
    assert done.code == 1
    commits = [path.name[:12] for path in (tmp_path / "dst").glob("runs/run/commits/*")]
    assert commits == ([] if words else ["000000000002"])


# -- the walk itself ---------------------------------------------------------------------------


def test_walking_goes_on_behind_anything(src: Path) -> None:
    """As it does when a request for more of it failed."""
    put(src, "é", "sub/x/y", "😀")
    for make in (no_text, in_no_text, pipe, circle):
        make(src)
    backend = LocalBackend(str(src))
    everything = list(backend.scan(Ways()))
    assert len(everything) == 10
    for number, found in enumerate(everything, 1):
        assert list(backend.scan(Ways(), after=found.key)) == everything[number:], found
    listed = [found for found in everything if not isinstance(found, LeftOut)]
    assert list(backend.list("")) == listed


def test_a_folder_that_is_too_deep_ends(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1100):  # deeper than Python's own calls go
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)
    (left,) = LocalBackend(str(tmp_path)).scan(Ways())
    assert isinstance(left, LeftOut)
    assert left.kind is Kind.SPECIAL
    assert "longer than 1,024 bytes" in left.why
    assert list(LocalBackend(str(tmp_path)).list("")) == []
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


# -- a file that became a folder ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["x/y/1", "x/y/2"], ["x"]),
        (["x/y/1"], ["x/y"]),
        (["x"], ["x/y/1", "x/z"]),
        (["x/y"], ["x/y/1/2", "x/y-"]),
    ],
)
def test_a_mirror_follows(tmp_path: Path, ours: list[str], theirs: list[str]) -> None:
    put(tmp_path / "src", "a", "b", "c", *ours)
    put(tmp_path / "dst", "a", "b", "c", *theirs)
    assert run("sync", tmp_path / "src").code == 1
    done = run("sync", tmp_path / "src", "--delete", "--force")
    assert done.code == 0, done.err
    assert contents(tmp_path / "dst") == contents(tmp_path / "src")
    assert "failed" not in done.out


def test_an_empty_folder_is_in_nobodys_way(src: Path, tmp_path: Path) -> None:
    (tmp_path / "dst" / "a" / "empty").mkdir(parents=True)
    assert run("migrate", src).code == 0
    assert contents(tmp_path / "dst") == contents(src)
