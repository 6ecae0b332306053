"""A folder whose writer is killed, whose disk is full or whose disk fails."""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.instants import NEW, OLD, OPERATIONS, at_call, carry_out
from tests.disks import small_disk
from tierstore.backends.local import upload as local_upload
from tierstore.backends.local.backend import LocalBackend, LocalOptions, open_local
from tierstore.blocks import BLOCK_SIZE, crc32c
from tierstore.errors import OutOfSpaceError, StorageError, TierstoreError

MIB = 1024 * 1024


def unfinished(root: Path) -> list[Path]:
    return list((root / ".tierstore-tmp").glob("*"))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def fill(backend: LocalBackend, size: int) -> None:
    """Upload zeros to "r/x"; the upload stays open."""
    upload = backend.upload("r/x", size)
    data = bytes(BLOCK_SIZE)
    for offset in range(0, size, BLOCK_SIZE):
        part = data[: size - offset]
        upload.write(offset, part, crc32c(part))


def assert_old_or_new(root: Path, old: bytes | None) -> bool:
    """Check that the object is whole; return whether it is the new one."""
    path = root / "r/x"
    found = path.read_bytes() if path.exists() else None
    assert found in (old, NEW)
    listed = [(item.key, item.size) for item in open_local(f"file://{root}").list("")]
    assert listed == ([] if found is None else [("r/x", len(found))])
    return found == NEW


@pytest.fixture(scope="module")
def victim() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.crash.instants"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_every_instant(victim, tmp_path: Path, operation):
    appeared = []
    for n in itertools.count(1):
        root = tmp_path / str(n)
        old = None if "absent" in operation else OLD
        if old is not None:
            open_local(f"file://{root}").create("r/x", old)
        victim.stdin.write(f"{root} {operation} {n}\n")
        victim.stdin.flush()
        answer = victim.stdout.readline().strip()
        appeared.append(assert_old_or_new(root, old))
        if answer == "done":
            break
        assert answer == "killed"
        carry_out(str(root), operation)  # the next life succeeds and cleans up
        assert assert_old_or_new(root, old)
        assert unfinished(root) == []
    assert appeared == sorted(appeared)  # never takes back what was visible
    assert appeared.count(False) > 10
    assert appeared.count(True) > 1


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_failing_at_every_call(tmp_path: Path, operation, code):
    """SQLite's method: the n-th call fails, for every n until none is left to fail."""

    def fail(name: str) -> None:
        raise OSError(code, os.strerror(code), name)

    for n in itertools.count(1):
        root = tmp_path / str(n)
        old = None if "absent" in operation else OLD
        if old is not None:
            open_local(f"file://{root}").create("r/x", old)
        before = descriptors()
        failed = None
        with at_call(n, fail) as calls:
            try:
                carry_out(str(root), operation)
            except TierstoreError as error:
                failed = error
        new = assert_old_or_new(root, old)
        assert new or failed, calls
        if len(calls) < n:
            break
        if calls[n - 1] not in ("close", "unlink"):
            assert descriptors() == before, calls
            assert unfinished(root) == [], calls
        carry_out(str(root), operation)
        assert assert_old_or_new(root, old)
    assert failed is None


_LOOP = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from tierstore.backends.local.backend import open_local
from tierstore.blocks import crc32c
backend = open_local("file://" + sys.argv[1])
part = 4096 * 64
with ThreadPoolExecutor(4) as pool:
    for version in range(int(sys.argv[2]), 1 << 30):
        data = version.to_bytes(8, "little") * (part // 2)
        upload = backend.upload("r/x", len(data))
        def send(offset):
            view = memoryview(data)[offset:offset + part]
            upload.write(offset, view, crc32c(view))
        list(pool.map(send, range(0, len(data), part)))
        upload.commit(crc32c=crc32c(data))
        print(version, flush=True)
"""


def test_killed_at_random(tmp_path: Path):
    """What was acknowledged is there, or the next version, whole."""
    chance = random.Random(3)
    last = 0
    for _ in range(6):
        command = [sys.executable, "-c", _LOOP, str(tmp_path), str(last + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            acknowledged = int(process.stdout.readline())
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
            lines = [line for line in process.stdout if line.endswith("\n")]
        acknowledged = max([acknowledged, *map(int, lines)])
        data = (tmp_path / "r/x").read_bytes()
        last = int.from_bytes(data[:8], "little")
        assert last in (acknowledged, acknowledged + 1)
        assert data == data[:8] * (4096 * 32)
    open_local(f"file://{tmp_path}").create("y", b"")
    assert unfinished(tmp_path) == []


@pytest.fixture
def full_soon(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    with small_disk(tmp_path, 8):
        yield tmp_path


def test_a_full_disk(full_soon: Path):
    backend = open_local(f"file://{full_soon}")
    backend.create("filler", bytes(6 * MIB))
    with pytest.raises(OutOfSpaceError, match=r"r/x.*4,194,304 bytes needed, [12],\d+,\d+ free"):
        backend.upload("r/x", 4 * MIB)
    with pytest.raises(OutOfSpaceError, match="free"):
        backend.create("r/x", bytes(3 * MIB))
    assert unfinished(full_soon) == []
    assert backend.create("r/small", b"x").size == 1
    backend.delete(["filler"])
    backend.upload("r/x", 4 * MIB).abort()


def test_a_disk_that_fills_while_writing(full_soon: Path, monkeypatch):
    """As where space cannot be reserved."""
    monkeypatch.setattr(local_upload, "reserve", lambda fd, size: None)
    backend = open_local(f"file://{full_soon}")
    with pytest.raises(OutOfSpaceError, match="r/x"):
        fill(backend, 12 * MIB)
    backend.close()
    assert unfinished(full_soon) == []
    assert list(backend.list("")) == []


@pytest.fixture
def small_files() -> Iterator[None]:
    """A file-size limit of 1 MiB and a bit; Python ignores SIGXFSZ, so it is an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB + 100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("direct", ["auto", "never"])
@pytest.mark.parametrize("reserving", [True, False])
def test_a_file_size_limit(tmp_path: Path, small_files, monkeypatch, direct, reserving):
    if not reserving:
        monkeypatch.setattr(local_upload, "reserve", lambda fd, size: None)
    backend = LocalBackend(str(tmp_path), LocalOptions(direct=direct))
    with pytest.raises(OutOfSpaceError, match="ulimit -f"):
        backend.create("r/x", bytes(2 * MIB))
    with pytest.raises(OutOfSpaceError, match="ulimit -f"):
        fill(backend, 2 * MIB)
    backend.close()
    assert unfinished(tmp_path) == []
    assert list(backend.list("")) == []
    backend.create("fits", bytes(MIB + 100))
    upload = backend.upload("fits too", MIB + 100)
    upload.write(0, bytes(MIB + 100), crc32c(bytes(MIB + 100)))
    upload.commit()


def test_after_a_failed_fsync_the_file_is_thrown_away(tmp_path: Path, monkeypatch):
    """Linux drops the pages that could not be written: a second fsync would lie."""
    backend = open_local(f"file://{tmp_path}")
    backend.create("r/x", OLD)
    upload = backend.upload("r/x", 3)
    upload.write(0, b"new", crc32c(b"new"))

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="the disk is broken"):
            upload.commit()
    assert unfinished(tmp_path) == []
    with pytest.raises(StorageError, match="over"):
        upload.commit()
    assert (tmp_path / "r/x").read_bytes() == OLD
