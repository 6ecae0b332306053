"""SRC and DST that are one place under two names: nothing is removed, and nothing goes round."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.command import Done, tierstore
from tests.disks import small_disk
from tests.files import contents, put
from tierstore.backend import Backend, ObjectInfo
from tierstore.backends.local.backend import LocalBackend
from tierstore.backends.memory import open_memory
from tierstore.errors import AccessError, ConfigError, UnreachableError
from tierstore.migration.apart import check_apart
from tierstore.migration.ends import Ends
from tierstore.wrappers.faults import Fault, Faulty

FILES = {"a": b"a", "sub/b": b"bb", "sub/deep/c": b"ccc"}
DELETING = ("migrate", "--delete-source"), ("sync", "--delete", "--force")


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    put(tmp_path / "src", FILES)
    return tmp_path / "src"


@contextlib.contextmanager
def mounted(what: Path, where: Path) -> Iterator[None]:
    for folder in (what, where):
        folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "--bind", what, where], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no permission to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", where], check=True)


def refuses(done: Done, src: Path, *said: str) -> None:
    assert done.code, done.out
    assert any(text in done.said for text in said), done.said
    assert {name: data for name, data in contents(src).items() if name in FILES} == FILES


@pytest.mark.parametrize("words", DELETING)
@pytest.mark.parametrize("query", ["?direct=never", "?fsync=false&read_bandwidth=1000000"])
def test_a_folder_with_other_options(src: Path, words: tuple[str, ...], query: str) -> None:
    command, *options = words
    done = tierstore(command, str(src), f"file://{src}{query}", *options)
    refuses(done, src, "SRC and DST are the same place")
    done = tierstore(command, str(src), f"file://{src}/sub{query}", *options)
    refuses(done, src, "SRC and DST lie one in the other")
    done = tierstore(command, f"file://{src}/sub{query}", str(src), *options)
    refuses(done, src, "SRC and DST lie one in the other")


@pytest.mark.parametrize("words", DELETING)
@pytest.mark.parametrize(
    ("what", "one", "other"),
    [
        ("src", "src", "mnt"),
        ("src", "mnt", "src"),
        ("src/sub", "src", "mnt"),
        ("src/sub", "mnt", "src"),
        ("src", "src/sub", "mnt"),
        ("src", "mnt", "src/sub/deep"),
        ("src/sub", "src", "mnt/deep"),
    ],
)
def test_a_bind_mount(
    src: Path, tmp_path: Path, words: tuple[str, ...], what: str, one: str, other: str
) -> None:
    command, *options = words
    with mounted(tmp_path / what, tmp_path / "mnt"):
        done = tierstore(command, str(tmp_path / one), str(tmp_path / other), *options)
        refuses(done, src, "are the same place", "lie one in the other")


@pytest.mark.parametrize("words", DELETING)
def test_a_mount_below_an_end(src: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """What a mirror has too much may be the original of something else."""
    command, *options = words
    (tmp_path / "dst" / "in").mkdir(parents=True)
    for place in ("dst/other", "dst/in/sub", "dst/sub"):
        with mounted(src / "sub", tmp_path / place):
            done = tierstore(command, str(src), str(tmp_path / "dst"), *options)
            refuses(done, src, "lie one in the other")
    (tmp_path / "dst" / "here").mkdir()
    put(tmp_path / "dst" / "here", {"x": b"x"})
    with mounted(tmp_path / "dst" / "here", src / "new mount"):
        done = tierstore(command, str(src), str(tmp_path / "dst"), *options)
        refuses(done, src, "lie one in the other")
    assert (tmp_path / "dst" / "here" / "x").read_bytes() == b"x"


def test_a_mount_that_leads_up(src: Path, tmp_path: Path) -> None:
    with mounted(src / "sub", tmp_path / "mnt"):
        for words in DELETING:
            up = str(tmp_path / "mnt" / "deep"), str(src)
            refuses(tierstore(words[0], *up, *words[1:]), src, "lie one in the other")
        assert contents(src) == FILES


def test_a_folder_that_is_not_there_yet_below_a_mount(src: Path, tmp_path: Path) -> None:
    with mounted(src, tmp_path / "mnt"):
        done = tierstore("migrate", str(src), str(tmp_path / "mnt" / "z" / "new"))
        refuses(done, src, "lie one in the other")
        assert contents(src) == FILES


def test_a_mount_of_something_else(src: Path, tmp_path: Path) -> None:
    put(tmp_path / "else", {"x": b"x"})
    with mounted(tmp_path / "else", src / "more"), mounted(tmp_path / "state", tmp_path / "dst"):
        done = tierstore("migrate", str(src), f"{tmp_path}/dst/here", "--delete-source")
        assert done.code == 0, done.said
        assert contents(tmp_path / "dst" / "here") == {**FILES, "more/x": b"x"}


@pytest.mark.parametrize("where", ["sub", "sub/deep"])
def test_a_link_at_the_destination_to_the_source(src: Path, tmp_path: Path, where: str) -> None:
    """What is written below it would be written into the source."""
    dst = tmp_path / "dst"
    (dst / where).parent.mkdir(parents=True)
    (dst / where).symlink_to(src / where)
    for command, *options in DELETING:
        refuses(tierstore(command, str(src), str(dst), *options), src, "lie one in the other")


def test_a_file_that_is_a_link_to_the_source(src: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / "a").symlink_to(src / "a")
    done = tierstore("migrate", str(src), str(dst), "--delete-source")
    assert done.code == 1
    assert "failed: a: it is at the destination, but could not be removed" in done.err
    assert "are one and the same" in done.err
    assert contents(src) == {"a": b"a"}
    assert contents(dst) == FILES


def test_two_names_of_one_file_are_two_copies(src: Path, tmp_path: Path) -> None:
    (tmp_path / "dst").mkdir()
    os.link(src / "a", tmp_path / "dst" / "a")
    assert tierstore("migrate", str(src), str(tmp_path / "dst"), "--delete-source").code == 0
    assert (contents(src), contents(tmp_path / "dst")) == ({}, FILES)


def test_one_file_onto_itself(src: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(src / "a")
    (tmp_path / "folder").symlink_to(src)
    for target in (f"file://{src}/a?direct=never", f"{tmp_path}/link", f"{tmp_path}/folder/a"):
        for words in (["cp", "--conflict", "overwrite"], ["migrate", "--delete-source"]):
            done = tierstore(words[0], f"{src}/a", target, *words[1:])
            refuses(done, src, "SRC and DST are the same place")


def test_a_dry_run_refuses_too_what_cannot_be_told_where_nothing_may_be_written(
    src: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 4):
        shutil.copytree(src, disk, dirs_exist_ok=True)
        (disk / "old").touch()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for words in (["--dry-run"], []):
            done = tierstore("sync", str(src), str(disk), "--delete", *words)
            assert (done.code, "nobody can tell whether" in done.err) == (2, True), words


def test_a_dry_run_finds_it_too_and_writes_nothing(src: Path) -> None:
    done = tierstore("migrate", str(src), f"file://{src}?direct=never", "--dry-run")
    refuses(done, src, "SRC and DST are the same place")
    assert sorted(path.name for path in src.iterdir()) == ["a", "sub"]


# -- stores of which nothing but their answers is known ----------------------------------------


class Shifted(Faulty):
    """What another server shows of a store: all below some prefix, under a URL of its own."""

    def __init__(self, inner: Backend, prefix: str, url: str, *faults: Fault) -> None:
        super().__init__(inner, *faults)
        self._prefix, self._url = prefix, url

    @property
    def url(self) -> str:
        return self._url

    def stat(self, key: str) -> ObjectInfo:
        return replace(super().stat(self._prefix + key), key=key)

    def create(self, key: str, *args: object, **options: object) -> ObjectInfo:
        return super().create(self._prefix + key, *args, **options)  # type: ignore[arg-type]

    def read_into(self, key: str, offset: int, *buffers: memoryview) -> None:
        super().read_into(self._prefix + key, offset, *buffers)

    def delete(self, keys: object) -> None:
        super().delete([self._prefix + key for key in keys])  # type: ignore[attr-defined]

    def list(
        self, prefix: str, *, after: str | None = None, delimiter: bool = False
    ) -> Iterator[ObjectInfo]:
        assert (prefix, after, delimiter) == ("", None, False)
        for info in super().list(self._prefix):
            yield ObjectInfo(info.key[len(self._prefix) :], info.size, info.mtime, tag=info.tag)


@pytest.fixture
def store() -> Backend:
    return open_memory(f"memory://{secrets.token_hex(8)}")


def view(store: Backend, prefix: str, host: str, *faults: Fault) -> Shifted:
    return Shifted(store, prefix, f"s3://{host}/{prefix}".rstrip("/"), *faults)


def keys(store: Backend) -> list[str]:
    return [info.key for info in store.list("")]


PLACES = [
    ("x/", "x/", "the same place"),
    ("x/", "x/y/", "one in the other"),
    ("x/y/", "x/", "one in the other"),
    ("", "x/y/", "one in the other"),
    ("x/y/", "", "one in the other"),
]


@pytest.mark.parametrize(("one", "other", "said"), PLACES)
@pytest.mark.parametrize("empty", [False, True])
def test_two_names_of_a_server(
    store: Backend, one: str, other: str, said: str, *, empty: bool
) -> None:
    store.create(f"{one}a", b"content")
    if not empty:
        store.create(f"{other}b", b"content")
    before = keys(store)
    ends = Ends(view(store, one, "bucket"), view(store, other, "alias"))
    with pytest.raises(ConfigError, match=said):
        check_apart(ends, writes=True)
    assert keys(store) == before
    if not empty or one == other:
        with pytest.raises(ConfigError, match=said):
            check_apart(ends, writes=False)


@pytest.mark.parametrize(("one", "other"), [place[:2] for place in PLACES])
def test_equal_copies_are_apart(store: Backend, one: str, other: str) -> None:
    """Whatever they are called, and however alike they are."""
    second = open_memory(f"memory://{secrets.token_hex(8)}")
    for each in (store, second):
        for key in ("a", "x/a", "x/y/a"):
            each.create(key, b"content")
    ends = Ends(view(store, one, "bucket"), view(second, other, "bucket"))
    check_apart(ends, writes=True)
    check_apart(ends, writes=False)
    assert keys(store) == keys(second) == ["a", "x/a", "x/y/a"]


@pytest.mark.parametrize("only", [None, ("a", "a")])
def test_a_destination_that_nobody_may_write_to(
    store: Backend, only: tuple[str, str] | None
) -> None:
    """Then nobody can tell, and an equal copy may be the very one that would be removed."""
    store.create("x/a", b"content")
    denied = Fault("create", times=99, error=AccessError("denied"))
    ends = Ends(view(store, "x/", "bucket"), view(store, "x/", "alias", denied), only)
    with pytest.raises(ConfigError, match="nobody can tell"):
        check_apart(ends, writes=True)


@pytest.mark.parametrize("only", [None, ("a", "a")])
def test_the_mark_goes_whatever_happens(store: Backend, only: tuple[str, str] | None) -> None:
    store.create("x/a", b"content")
    failing = Fault("stat", key="probe", error=UnreachableError("no answer"))
    ends = Ends(view(store, "x/", "bucket", failing), view(store, "x/", "alias"), only)
    with pytest.raises(UnreachableError):
        check_apart(ends, writes=True)
    assert keys(store) == ["x/a"]


def test_who_may_not_delete_is_told_what_is_left(
    store: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    second = open_memory(f"memory://{secrets.token_hex(8)}")
    store.create("x/a", b"content")
    denied = Fault("delete", error=AccessError("denied"))
    check_apart(Ends(view(store, "x/", "bucket"), view(second, "", "other", denied)), writes=True)
    (left,) = keys(second)
    assert left.startswith("tierstore-probe-")
    assert "a mark of 16 bytes is left" in caplog.text


def test_somebody_removes_the_mark(store: Backend) -> None:
    """As a mirror does that runs elsewhere: then not to see it proves nothing."""
    store.create("x/a", b"content")

    def remove(_call: object) -> None:
        store.delete([key for key in keys(store) if "probe" in key])

    before = Fault("stat", key="probe", action=remove)
    ends = Ends(view(store, "x/", "bucket", before), view(store, "x/", "alias"))
    with pytest.raises(ConfigError, match="nobody can tell"):
        check_apart(ends, writes=True)


@pytest.mark.parametrize("empty", [False, True])
def test_it_takes_few_requests(store: Backend, *, empty: bool) -> None:
    """However deep a place lies: each goes to a server far away."""
    second = open_memory(f"memory://{secrets.token_hex(8)}")
    store.create("a", b"content")
    if not empty:
        second.create("a/b/c/d/e", b"content")
    source, target = view(store, "", "bucket"), view(second, "a/b/c/d/", "other")
    check_apart(Ends(source, target), writes=True)
    assert len(source.calls) + len(target.calls) == (13 if empty else 9)
    written = [call.operation for call in target.calls if call.operation in ("create", "delete")]
    assert written == (["create", "delete"] if empty else [])


def test_what_a_killed_run_left_goes_with_the_next_one(store: Backend) -> None:
    """And is no mark of that one's, wherever it has got to."""
    second = open_memory(f"memory://{secrets.token_hex(8)}")
    for each in (store, second):
        each.create("a", b"content")
    kill = Fault("delete", error=KeyboardInterrupt("as a kill does"))
    with pytest.raises(KeyboardInterrupt):
        check_apart(Ends(view(store, "", "bucket"), view(second, "", "alias", kill)), writes=True)
    (left,) = {*keys(second)} - {"a"}
    store.create(left, bytes(16))  # somebody has copied it
    check_apart(Ends(view(store, "", "bucket"), view(second, "", "alias")), writes=True)
    assert keys(second) == ["a"]


def test_other_objects_of_one_folder(store: Backend) -> None:
    store.create("x/a", b"content")
    store.create("x/b", b"content")
    check_apart(
        Ends(view(store, "x/", "bucket"), view(store, "x/", "alias"), ("a", "b")), writes=True
    )


def test_a_folder_that_is_not_there_is_not_made(src: Path, tmp_path: Path) -> None:
    check_apart(Ends(LocalBackend(str(src)), LocalBackend(str(tmp_path / "new"))), writes=True)
    assert not (tmp_path / "new").exists()
