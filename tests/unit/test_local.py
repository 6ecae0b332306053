"""What only folders do: paths, durability, leftovers, direct I/O."""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tierstore.backends.local import direct_io
from tierstore.backends.local.backend import LocalOptions, open_local
from tierstore.backends.local.direct_io import is_cached, is_direct, read_at, set_direct, write_at
from tierstore.backends.local.errors import translated
from tierstore.blocks import BLOCK_SIZE, crc32c
from tierstore.errors import (
    AccessError,
    ConfigError,
    InvalidKeyError,
    NotFoundError,
    OutOfSpaceError,
    StorageError,
    TransientError,
    TruncatedFileError,
    UnsupportedError,
)
from tierstore.registry import open_backend
from tierstore.testing.contract_base import noise, read

# -- places and names ------------------------------------------------------------------------


def test_urls(tmp_path: Path):
    (tmp_path / "a b%").mkdir()
    backend = open_backend(f"file://{tmp_path}/a%20b%25/", {"fsync": False, "direct": "never"})
    backend.create("x", b"x")
    assert (tmp_path / "a b%" / "x").read_bytes() == b"x"
    assert backend.url == f"file://{tmp_path}/a%20b%25"


@pytest.mark.parametrize("url", ["file://host/path", "file://", "file:///", "file:///x#y"])
def test_wrong_urls(url):
    with pytest.raises(ConfigError):
        open_local(url)


def test_unknown_options(tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'fsync'"):
        open_backend(f"file://{tmp_path}", {"fsynk": True})
    with pytest.raises(ConfigError, match="auto"):
        open_backend(f"file://{tmp_path}", {"direct": "sometimes"})


@pytest.mark.parametrize("key", ["x/" + "n" * 256, "x/" + "é" * 128, ".tierstore-tmp/x"])
def test_names_that_no_file_can_have(tmp_path: Path, key):
    backend = open_local(f"file://{tmp_path}")
    with pytest.raises(InvalidKeyError):
        backend.create(key, b"")
    with pytest.raises(InvalidKeyError):
        backend.stat(key)


def test_a_folder_is_not_an_object(tmp_path: Path):
    backend = open_local(f"file://{tmp_path}")
    backend.create("a/b", b"x")
    with pytest.raises(NotFoundError):
        read(backend, "a", 0, 1)
    for key in ("a", "a/b/c"):
        for if_absent in (False, True):
            with pytest.raises(UnsupportedError, match="folder"):
                backend.create(key, b"y", if_absent=if_absent)
    backend.delete(["a", "a/b/c"])
    assert [item.key for item in backend.list("")] == ["a/b"]


@pytest.mark.parametrize("size", [2, 6])
def test_fetch_of_a_file_that_somebody_changes_meanwhile(tmp_path: Path, monkeypatch, size):
    backend = open_local(f"file://{tmp_path}")
    backend.create("x", b"four")

    def change_and_read(fd, buffers, offset):
        os.truncate(tmp_path / "x", size)
        return read_at(fd, buffers, offset)

    monkeypatch.setattr("tierstore.backends.local.backend.read_at", change_and_read)
    with pytest.raises(TruncatedFileError, match=f"has {size} bytes, 4 are wanted"):
        backend.fetch("x", memoryview(bytearray(4)))


def test_local_path_can_be_mapped(tmp_path: Path):
    backend = open_local(f"file://{tmp_path}")
    backend.create("m/x", b"mapped")
    assert Path(backend.local_path("m/x")).read_bytes() == b"mapped"


def test_foreign_files_are_not_listed(tmp_path: Path):
    backend = open_local(f"file://{tmp_path}")
    backend.create("a/x", b"x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff")).write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "x")
    assert [item.key for item in backend.list("")] == ["a/x"]


def test_deleting_prunes_up_to_the_root(tmp_path: Path):
    root = tmp_path / "root"
    backend = open_local(f"file://{root}")
    backend.create("a/b/c/x", b"")
    backend.create("a/y", b"")
    backend.delete(["a/b/c/x"])
    assert list((root / "a").iterdir()) == [root / "a" / "y"]
    backend.delete(["a/y"])
    assert list(root.iterdir()) == [root / ".tierstore-tmp"]


def test_deleting_again_completes_what_was_interrupted(tmp_path: Path):
    root = tmp_path / "root"
    backend = open_local(f"file://{root}")
    backend.create("a/b/x", b"")
    (root / "a/b/x").unlink()
    (root / "a/c").mkdir()
    backend.delete(["a/b/x"])
    assert list((root / "a").iterdir()) == [root / "a/c"]
    backend.delete(["a/c/gone/y"])
    assert list(root.iterdir()) == [root / ".tierstore-tmp"]


# -- durability ------------------------------------------------------------------------------


def test_everything_is_synced_in_order(tmp_path: Path, monkeypatch):
    """File, name, folder of the name; and the folder of each new folder before that."""
    events: list[tuple[str, str]] = []
    fsync, link = os.fsync, os.link

    def record_fsync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        name = "file" if ".tierstore-tmp" in path.parts else str(path.relative_to(tmp_path))
        events.append(("fsync", name))
        fsync(fd)

    def record_link(source: str, target: str) -> None:
        events.append(("link", str(Path(target).relative_to(tmp_path))))
        link(source, target)

    backend = open_local(f"file://{tmp_path}")
    backend.create("warm", b"")
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "link", record_link)
    backend.create("a/b/x", b"x", if_absent=True)
    assert events == [
        ("fsync", "file"),
        ("fsync", "."),
        ("fsync", "a"),
        ("link", "a/b/x"),
        ("fsync", "a/b"),
    ]
    events.clear()
    backend.create("a/b/y", b"y", if_absent=True)
    assert events == [("fsync", "file"), ("link", "a/b/y"), ("fsync", "a/b")]
    events.clear()
    backend.create("a/b/y", b"y", if_absent=True)  # may have been somebody else's, not yet synced
    assert events == [("fsync", "file"), ("link", "a/b/y"), ("fsync", "a/b")]
    events.clear()
    backend.delete(["a/b/x", "a/b/y"])
    open_local(f"file://{tmp_path}").create("a/b/z", b"z")
    events.clear()
    backend.create("a/b/z", b"z")  # the folders are new, and somebody else made them
    assert ("fsync", ".") in events
    assert ("fsync", "a") in events


def test_without_fsync(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: pytest.fail("fsync was called"))
    backend = open_local(f"file://{tmp_path}", LocalOptions(fsync=False))
    backend.create("a/x", b"x")
    backend.upload("a/y", 0).commit()


# -- leftovers -------------------------------------------------------------------------------


def _leave(root: Path, name: str, age: float = 0.0) -> Path:
    path = root / ".tierstore-tmp" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"left")
    status = path.stat()
    os.utime(path, (status.st_atime, status.st_mtime - age))
    return path


def test_sweeps_what_the_dead_left(tmp_path: Path, caplog):
    host = os.uname().nodename
    ours, theirs = _leave(tmp_path, f"{host}-1"), _leave(tmp_path, "elsewhere-1")
    old, locked = _leave(tmp_path, "elsewhere-2", age=7200), _leave(tmp_path, f"{host}-2")
    with locked.open("rb") as file, caplog.at_level(logging.INFO):
        fcntl.flock(file, fcntl.LOCK_SH)
        open_local(f"file://{tmp_path}").create("x", b"")
        assert not ours.exists()
        assert not old.exists()
        assert theirs.exists()  # may be alive: locks may not reach from host to host
        assert locked.exists()  # is alive
    assert "removed" in caplog.text


def test_an_upload_in_use_is_not_swept(tmp_path: Path):
    upload = open_local(f"file://{tmp_path}").upload("x", 1)
    open_local(f"file://{tmp_path}").create("y", b"")
    upload.write(0, b"x", crc32c(b"x"))
    upload.commit()
    assert (tmp_path / "x").read_bytes() == b"x"


def test_an_upload_whose_file_was_taken_away(tmp_path: Path):
    upload = open_local(f"file://{tmp_path}").upload("x", 0)
    for path in (tmp_path / ".tierstore-tmp").iterdir():
        path.unlink()
    for commit in (upload.commit, upload.commit):
        with pytest.raises(StorageError, match=r"removed by somebody|over"):
            commit()


def test_a_small_file_that_is_flushed_later_has_no_other_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY))
    except OSError:
        pytest.skip("no O_TMPFILE in this file system")
    backend = open_local(f"file://{tmp_path}")
    monkeypatch.setattr(
        "tierstore.backends.local.backend.LocalUpload", None
    )  # it has, until its commit
    for key in ("new/folder/first", "new/folder/second"):
        backend.create(key, b"x", if_absent=True, durable=False)
        assert (tmp_path / key).read_bytes() == b"x"
    backend.flush()
    backend.close()


# -- direct I/O ------------------------------------------------------------------------------


@pytest.fixture
def fd(tmp_path: Path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def aligned(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size + 4096))


@pytest.mark.parametrize("skew", [0, 1, 512, 4095])
@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 70_000, BLOCK_SIZE + 4097])
def test_direct_writes(fd, skew, size):
    data = noise(8192 + size)
    memory = aligned(size + skew)[skew : skew + size]
    memory[:] = data[8192:]
    assert set_direct(fd, on=True)
    write_at(fd, memory, 8192, final=True)
    assert is_direct(fd)
    write_at(fd, memoryview(data)[:8192], 0, final=False)
    assert is_direct(fd)
    os.ftruncate(fd, 8192 + size)
    assert Path(f"/proc/self/fd/{fd}").read_bytes() == data


@pytest.mark.parametrize(("offset", "size", "final"), [(100, 4096, False), (0, 100, False)])
def test_writes_that_cannot_be_padded_are_buffered(fd, offset, size, final):
    os.pwrite(fd, b"\xaa" * 8192, 0)
    set_direct(fd, on=True)
    write_at(fd, memoryview(noise(size)), offset, final=final)
    assert not is_direct(fd)
    wanted = bytearray(b"\xaa" * 8192)
    wanted[offset : offset + size] = noise(size)
    assert Path(f"/proc/self/fd/{fd}").read_bytes() == wanted


@pytest.mark.parametrize("skew", [0, 1, 40, 4095])
@pytest.mark.parametrize("offset", [0, 1, 40, 4095, 4096, 10_000])
@pytest.mark.parametrize("size", [1, 4096, 9000, BLOCK_SIZE + 5000])
def test_direct_reads(fd, skew, offset, size):
    data = noise(BLOCK_SIZE + 16_001)
    os.pwrite(fd, data, 0)
    set_direct(fd, on=True)
    memory = aligned(size + skew + 10)
    into = memory[skew : skew + size]
    assert read_at(fd, [into], offset) == min(size, len(data) - offset)
    assert into[: len(data) - offset] == data[offset : offset + size]
    assert bytes(memory[skew + size : skew + size + 10]) == bytes(10)
    assert read_at(fd, [into], len(data)) == 0


@pytest.mark.parametrize("skew", [0, 64, 4095])
@pytest.mark.parametrize("offset", [0, 64, 4096])
def test_direct_reads_into_many_buffers(fd, skew, offset):
    data = noise(BLOCK_SIZE + 50_001)
    os.pwrite(fd, data, 0)
    set_direct(fd, on=True)
    memory = aligned(BLOCK_SIZE + 60_000)[skew:]
    sizes = [1, 5000, 4096, 20_000, 0, BLOCK_SIZE - 9000, 77]
    into, at = [], 0
    for size in sizes:
        into.append(memory[at : at + size])
        at += size + 3  # gaps that must stay as they are
    assert read_at(fd, into, offset) == sum(sizes)
    assert b"".join(into) == data[offset : offset + sum(sizes)]
    assert not any(memory[1:4])
    rest = [memory[:10_000], memory[10_000:30_000]]
    assert read_at(fd, rest, len(data) - 15_000) == 15_000
    assert memory[:15_000] == data[-15_000:]


def test_falls_back_where_direct_is_refused(fd, monkeypatch):
    """As overlays and old tmpfs do, at the first request."""
    real_write, real_read, refused = os.pwrite, os.preadv, []

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if is_direct(fd):
            refused.append("write")
            raise OSError(errno.EINVAL, "no O_DIRECT")
        return real_write(fd, data, offset)

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if is_direct(fd):
            refused.append("read")
            raise OSError(errno.EINVAL, "no O_DIRECT")
        return real_read(fd, buffers, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "preadv", preadv)
    data = noise(10_001)
    set_direct(fd, on=True)
    write_at(fd, memoryview(data), 0, final=True)
    set_direct(fd, on=True)
    into = bytearray(len(data))
    assert read_at(fd, [memoryview(into)], 0) == len(data)
    assert into == data
    assert refused == ["write", "read"]


def test_short_writes_are_continued(fd, monkeypatch):
    real, sizes = os.pwrite, []

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        sizes.append(real(fd, data[: len(data) // 2 + 1], offset))
        return sizes[-1]

    monkeypatch.setattr(os, "pwrite", pwrite)
    data = noise(100_001)
    write_at(fd, memoryview(data), 0, final=True)
    assert Path(f"/proc/self/fd/{fd}").read_bytes() == data
    assert len(sizes) > 2


def test_a_short_write_does_not_pad_over_the_neighbour(monkeypatch):
    """On tmpfs, which takes O_DIRECT but asks for no alignment."""
    real, sizes = os.pwrite, []

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        sizes.append(real(fd, data[: 100 if offset == 0 else None], offset))
        return sizes[-1]

    monkeypatch.setattr(os, "pwrite", pwrite)
    with tempfile.NamedTemporaryFile(dir="/dev/shm", buffering=0) as file:
        file.write(b"\xaa" * 16384)
        set_direct(file.fileno(), on=True)
        write_at(file.fileno(), memoryview(noise(8192)), 0, final=False)
        assert Path(file.name).read_bytes() == noise(8192) + b"\xaa" * 8192
    assert sizes[0] == 100


def test_direct_always_says_where_it_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tierstore.backends.local.upload.set_direct", lambda fd, on: False)
    backend = open_local(f"file://{tmp_path}", LocalOptions(direct="always"))
    with pytest.raises(UnsupportedError, match="O_DIRECT"):
        backend.upload("x", 5)
    assert list((tmp_path / ".tierstore-tmp").iterdir()) == []


def test_aligned_requests_are_not_copied(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(direct_io, "_bounce", lambda: pytest.fail("a copy was made"))
    backend = open_local(f"file://{tmp_path}", LocalOptions(direct="always"))
    memory = aligned(2 * BLOCK_SIZE)[: 2 * BLOCK_SIZE]
    np.frombuffer(memory, np.uint8)[:] = 7
    upload = backend.upload("x", len(memory))
    upload.write(0, memory, crc32c(memory))
    upload.commit()
    into = aligned(BLOCK_SIZE)[:BLOCK_SIZE]
    backend.read_into("x", BLOCK_SIZE, into)
    assert into == memory[BLOCK_SIZE:]


def test_is_cached(fd):
    os.pwrite(fd, noise(BLOCK_SIZE), 0)
    os.fsync(fd)
    assert is_cached(fd, 0, BLOCK_SIZE)
    assert is_cached(fd, 4097, 100)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    kind = os.statvfs(f"/proc/self/fd/{fd}")
    if kind.f_fsid == os.statvfs("/dev/shm").f_fsid:
        pytest.skip("the temporary folder is in memory")
    assert not is_cached(fd, 0, BLOCK_SIZE)
    os.pread(fd, 4096, 0)
    os.posix_fadvise(fd, BLOCK_SIZE // 2, 0, os.POSIX_FADV_DONTNEED)
    assert not is_cached(fd, 0, BLOCK_SIZE)


def test_what_was_cut_short_is_not_cached(fd):
    os.pwrite(fd, noise(BLOCK_SIZE), 0)
    os.ftruncate(fd, 4096)
    assert not is_cached(fd, 0, BLOCK_SIZE)
    os.ftruncate(fd, 0)
    assert not is_cached(fd, 8192, BLOCK_SIZE)


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EIO, StorageError),
        (errno.EACCES, AccessError),
        (errno.EROFS, AccessError),
        (errno.ENOSPC, OutOfSpaceError),
        (errno.EDQUOT, OutOfSpaceError),
        (errno.EMFILE, TransientError),
        (errno.ESTALE, TransientError),
        (errno.ENAMETOOLONG, InvalidKeyError),
        (errno.ELOOP, StorageError),
    ],
)
def test_what_errors_mean(tmp_path: Path, code, kind):
    with pytest.raises(kind) as caught, translated("file:///t", "k", str(tmp_path), 5):
        raise OSError(code, os.strerror(code))
    assert type(caught.value) is kind
    assert os.strerror(code) in str(caught.value) or kind is InvalidKeyError
    assert "k" in str(caught.value)


def test_a_disk_that_fails_to_read(tmp_path: Path, monkeypatch):
    backend = open_local(f"file://{tmp_path}")
    backend.create("x", b"xyz")

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", preadv)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(StorageError, match=r"x: Input/output error \(the disk failed"):
        read(backend, "x", 0, 3)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch):
    if os.geteuid() == 0:
        (tmp_path / "root").write_bytes(b"a file where the root should be")
        with pytest.raises(UnsupportedError):
            open_local(f"file://{tmp_path}/root").create("x", b"")
        return
    tmp_path.chmod(0o500)
    with pytest.raises(AccessError, match="owner"):
        open_local(f"file://{tmp_path}").create("x", b"")
