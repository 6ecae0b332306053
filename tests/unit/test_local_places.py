"""Where a local tier writes what is not finished, and what it leaves: also over several mounts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest

from tests.command import tierstore
from tests.disks import small_disk
from tests.files import contents
from tierstore.backends.local import scratch
from tierstore.backends.local.backend import LocalBackend
from tierstore.backends.local.folders import Folders
from tierstore.blocks import crc32c
from tierstore.config import load_config
from tierstore.errors import (
    ConfigError,
    InvalidKeyError,
    NotFoundError,
    OutOfSpaceError,
    StorageError,
)

LARGE = os.urandom(9_000_000)  # more than a part


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(params=["file system", "bind"])
def below(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Mount another file system, or another folder of the same one, at dst/below."""
    at = tmp_path / "dst" / "below"
    at.mkdir(parents=True)
    if request.param == "file system":
        with small_disk(at, 64):
            yield at
        return
    (tmp_path / "elsewhere").mkdir()
    bind = ["mount", "--bind", str(tmp_path / "elsewhere"), str(at)]
    if subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a folder")
    yield at
    subprocess.run(["umount", str(at)], check=True)


def write(backend: LocalBackend, key: str, data: bytes, *, resumable: bool = False) -> None:
    upload = backend.upload(key, len(data))
    if resumable:
        assert upload.token
    upload.write(0, data, crc32c(data))
    upload.commit()


def test_a_mount_below_the_root(below: Path, tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    for name in ("x", "below/x", "below/a/b/x"):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_bytes(LARGE)
    (dst / "below" / "old").write_bytes(b"old")
    done = tierstore("migrate", str(src), str(dst))
    assert (done.code, done.err) == (0, "")
    assert contents(below) == {"x": LARGE, "a/b/x": LARGE, "old": b"old"}
    assert not [*dst.rglob(".tierstore-tmp")]
    assert tierstore("migrate", str(src), str(dst), "--conflict", "overwrite").code == 0


def test_an_upload_on_a_mount_is_gone_on_with(below: Path, tmp_path: Path) -> None:
    with closing(LocalBackend(str(tmp_path / "dst"))) as backend:
        upload = backend.upload("below/new/x", len(LARGE))
        token = upload.token
        upload.write(0, LARGE, crc32c(LARGE))
    assert (below / ".tierstore-tmp" / token).exists()
    with closing(LocalBackend(str(tmp_path / "dst"))) as backend:
        upload = backend.upload("below/new/x", len(LARGE), resume=token)
        assert upload.done == [(0, len(LARGE))]
        upload.commit()
        assert [info.key for info in backend.list("")] == ["below/new/x"]
    assert not (below / ".tierstore-tmp").exists()


def test_nothing_unfinished_stays_or_is_moved(tmp_path: Path) -> None:
    inner = LocalBackend(str(tmp_path / "src" / "tier"))
    with closing(inner):
        upload = inner.upload("half", 2)
        assert upload.token
        upload.write(0, b"ha", crc32c(b"ha"))
    assert list((tmp_path / "src" / "tier" / ".tierstore-tmp").iterdir())
    with closing(LocalBackend(str(tmp_path / "src"))) as outer:
        write(outer, "a", LARGE)
        assert [info.key for info in outer.list("")] == ["a"]
        assert [info.key for info in outer.list("", delimiter=True)] == ["a"]
        with pytest.raises(InvalidKeyError, match="cannot be a file name"):
            outer.create("tier/.tierstore-tmp/x", b"")
    assert not (tmp_path / "src" / ".tierstore-tmp").exists()
    for command in ("migrate", "sync"):
        assert tierstore(command, str(tmp_path / "src"), f"{tmp_path}/{command}").code == 0
        names = [str(path.relative_to(tmp_path)) for path in (tmp_path / command).rglob("*")]
        assert names == [f"{command}/a"]


def test_a_file_system_without_inodes(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 64):
        subprocess.run(["mount", "-o", "remount,nr_inodes=20", str(disk)], check=True)
        with closing(LocalBackend(str(disk))) as backend:
            for n in range(os.statvfs(disk).f_favail - 1):
                (disk / str(n)).touch()
            with pytest.raises(OutOfSpaceError, match="no inodes are left") as caught:
                backend.create("f/x", b"abc")
            assert "df -i" in caught.value.hint
            assert "bytes needed" not in str(caught.value)


def test_a_small_file_that_does_not_fit_says_how_large_it_is(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 1), closing(LocalBackend(str(disk))) as backend:
        for durable in (True, False):
            with pytest.raises(OutOfSpaceError, match="2,000,000 bytes needed"):
                backend.create("x", bytes(2_000_000), if_absent=True, durable=durable)


def test_what_a_sync_of_the_root_does_not_reach_is_synced_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else --delete-source would rely on what a crash of the host takes away."""
    synced: list[str] = []
    fsync = os.fsync

    def noting(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    root = tmp_path / "t"
    (root / "m").mkdir(parents=True)
    with small_disk(root / "m", 1), closing(LocalBackend(str(root))) as backend:
        monkeypatch.setattr(os, "fsync", noting)
        for replaces, key in product((False, True), ("a", "f/b", "m/c", "m/f/d")):
            synced.clear()
            backend.create(key, b"x", if_absent=not replaces, durable=False)
            files = [path for path in synced if Path(path).is_relative_to(root / "m")]
            assert bool(files) == key.startswith("m/"), key


@pytest.mark.parametrize("root", ["t", "./t", "a/../t", "t/"])
def test_a_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(LocalBackend(root)) as backend:
        assert backend.url == f"file://{tmp_path}/t"
        monkeypatch.chdir("/")
        write(backend, "a/b", b"x")
        backend.create("c", b"y", if_absent=True)
        backend.delete(["c"])
    assert contents(tmp_path / "t") == {"a/b": b"x"}


@pytest.mark.parametrize("name", ["./ck", "ck", "new/ck"])
def test_a_folder_where_a_configuration_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    url = (tmp_path / name).as_uri()
    with pytest.raises(ConfigError, match="no such file") as caught:
        load_config(name)
    assert caught.value.hint == f"for a tier in a new folder write {url}"
    Path(name).mkdir(parents=True)
    with pytest.raises(ConfigError, match="is a folder") as caught:
        load_config(name)
    assert caught.value.hint == f"for a tier in this folder write {url}"


def test_a_folder_that_is_pruned_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others delete the last object beside: the folder has gone between two looks at it."""
    backend = LocalBackend(str(tmp_path))
    backend.create("a/b", b"x")
    looked: list[str] = []

    def pruned(folder: str, real: Callable[[str], object] = scratch._mount) -> object:
        looked.append(folder)
        if len(looked) == 1:
            backend.delete(["a/b"])
        return real(folder)

    monkeypatch.setattr(scratch, "_mount", pruned)
    backend.create("a/c", b"y")
    assert looked[0] == f"{tmp_path}/a"
    assert backend.stat("a/c").size == 1


def test_an_unfinished_file_is_swept_with_its_folder_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process begins and ends between two steps of this one."""
    backend, other = LocalBackend(str(tmp_path)), LocalBackend(str(tmp_path))
    others: list[str] = []

    def after_another(fd: int, *, wait: bool, real: Callable[..., bool] = scratch._lock) -> bool:
        if not others:
            others.append("d/x")
            other.create("d/x", b"")
            other.close()
        return real(fd, wait=wait)

    monkeypatch.setattr(scratch, "_lock", after_another)
    backend.create("a", b"y")
    backend.close()
    assert others
    assert contents(tmp_path) == {"a": b"y", "d/x": b""}


@pytest.mark.parametrize("pruned", [".tierstore-tmp", "a/b", "a"])
def test_a_folder_that_is_pruned_as_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pruned: str
) -> None:
    backend, other = LocalBackend(str(tmp_path)), Folders(str(tmp_path), sync=False)
    left = [f"{tmp_path}/{pruned}"]

    def make(self: Folders, folder: str, real: Callable[..., bool] = Folders._make) -> bool:
        made = real(self, folder)
        if folder in left:
            left.remove(folder)
            other.prune(folder)
        return made

    monkeypatch.setattr(Folders, "_make", make)
    backend.create("a/b/c", b"y")
    assert not left
    assert backend.stat("a/b/c").size == 1


@pytest.mark.parametrize("root", ["/proc/none/deep", "LINK", "LINK/deep/deep"])
def test_a_root_that_cannot_be_made(tmp_path: Path, root: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at all")
    root = root.replace("LINK", f"{tmp_path}/link")
    with pytest.raises(StorageError, match="cannot write") as caught:
        LocalBackend(root).create("a", b"y")
    assert not isinstance(caught.value, NotFoundError)
