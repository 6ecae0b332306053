"""A real HDFS that fails in real ways, under a tier as a ladder opens it."""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import HdfsRoot
from tests.shards import assert_restores, launch, stage, until
from tierstore.backend import Backend
from tierstore.blocks import crc32c
from tierstore.config import Policy, TierConfig
from tierstore.errors import AccessError, OutOfSpaceError, TransientError
from tierstore.keys import Attempt
from tierstore.ladder.find import choose
from tierstore.ladder.save import Saver
from tierstore.ladder.tiers import OpenTier
from tierstore.testing.contract_base import noise
from tierstore.testing.servers import HdfsServer
from tierstore.wrappers import open_tier

pytestmark = [pytest.mark.hdfs, pytest.mark.slow]

MIB = 1 << 20
PART = 4 * MIB
DATA = noise(8 * PART + 77)
FIRST = Attempt(1, 1, 1)
ROWS = 12_000  # 47 MiB


@pytest.fixture
def server(hdfs_root: HdfsRoot) -> Iterator[HdfsServer]:
    """The session's HDFS, whose daemons are all running and ready again afterwards."""
    yield hdfs_root.server
    for daemon in (hdfs_root.server.namenode, *hdfs_root.server.datanodes):
        daemon.start()
    hdfs_root.server.wait_ready()


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def tier(
    opened: contextlib.ExitStack, root: HdfsRoot, *, retry: float = 40.0, **options: Any
) -> OpenTier:
    """Open the folder with small parts, so that there are many, and a ladder's wrappers."""
    config = TierConfig(
        "hdfs",
        root.url,
        options={"part_size": PART, "read_size": PART, "stall_timeout": 10.0, **options},
        policy=Policy(retry_seconds=retry),
    )
    return OpenTier(config, opened.enter_context(contextlib.closing(open_tier(config))))


def put(root: HdfsRoot) -> None:
    """Write `k` along the second path, and wait until both datanodes have it."""
    root.write("k", DATA)

    def replicated() -> bool:
        found = root.server.client().json("GET", f"{root.path}/k", "GET_BLOCK_LOCATIONS")
        return all(len(b["locations"]) == 2 for b in found["LocatedBlocks"]["locatedBlocks"])

    until(replicated, seconds=30)  # one that was just restarted may have been left out at first


def send(
    backend: Backend, between: Callable[[], None] | None = None, data: memoryview | bytes = DATA
) -> None:
    """Upload `k`, doing something after the first part."""
    upload = backend.upload("k", len(data))
    for offset in range(0, len(data), PART):
        part = memoryview(data)[offset : offset + PART]
        upload.write(offset, part, crc32c(part))
        if between and not offset:
            between()
    upload.commit(crc32c=crc32c(data))


def whole(backend: Backend, between: Callable[[], None] | None = None) -> bytes:
    """Read `k` part by part, doing something after the first."""
    into = bytearray(len(DATA))
    for offset in range(0, len(DATA), PART):
        backend.read_into("k", offset, memoryview(into)[offset : offset + PART])
        if between and not offset:
            between()
    return bytes(into)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_datanode_killed_during_a_write(
    hdfs_root: HdfsRoot, server: HdfsServer, opened: contextlib.ExitStack, victim: int
) -> None:
    backend = tier(opened, hdfs_root).backend
    send(backend, server.datanodes[victim].kill)
    assert not server.datanodes[victim].running
    assert hdfs_root.keys() == ["k"]
    assert whole(backend) == DATA


@pytest.mark.parametrize("victim", [0, 1])
def test_a_datanode_killed_during_a_read(
    hdfs_root: HdfsRoot, server: HdfsServer, opened: contextlib.ExitStack, victim: int
) -> None:
    put(hdfs_root)
    # No wrapper repeats: another replica's datanode is asked within the request.
    backend = tier(opened, hdfs_root, retry=0.0).backend
    assert whole(backend, server.datanodes[victim].kill) == DATA


def test_a_paused_datanode_is_left_out_of_a_read(
    hdfs_root: HdfsRoot, server: HdfsServer, opened: contextlib.ExitStack
) -> None:
    put(hdfs_root)
    backend = tier(opened, hdfs_root, retry=0.0, stall_timeout=1.0).backend
    try:
        assert whole(backend, server.datanodes[0].pause) == DATA
    finally:
        server.datanodes[0].resume()


def test_the_namenode_restarted_during_a_save(
    hdfs_root: HdfsRoot, server: HdfsServer, opened: contextlib.ExitStack
) -> None:
    hdfs = tier(opened, hdfs_root)
    restart = threading.Thread(target=server.namenode.restart)
    shard, image = stage(FIRST, launch(), rows=ROWS)
    with contextlib.closing(Saver([hdfs], "run", commit_timeout=60)) as saver:
        handle = saver.submit(shard, image)
        until(
            lambda: any("tierstore-" in key for key in hdfs_root.keys(""))
        )  # parts are being sent
        restart.start()
        until(lambda: handle.done, seconds=90)
    restart.join()
    assert handle.failed == {}
    assert hdfs.backend.snapshot().retries, "the restart was not noticed"
    server.wait_ready()
    assert_restores(choose([hdfs], "run"), FIRST, ROWS)


def test_safe_mode_is_waited_out(
    hdfs_root: HdfsRoot, server: HdfsServer, opened: contextlib.ExitStack
) -> None:
    backend, hasty = tier(opened, hdfs_root).backend, tier(opened, hdfs_root, retry=0.5).backend
    server.safe_mode(on=True)
    leave = threading.Timer(2.0, lambda: server.safe_mode(on=False))
    try:
        with pytest.raises(TransientError, match="safe mode"):
            hasty.create("k", b"x")
        leave.start()
        backend.create("k", b"x")
    finally:
        leave.cancel()
        leave.join() if leave.is_alive() else None
        server.safe_mode(on=False)
    assert hdfs_root.read("k") == b"x"


@pytest.mark.parametrize("quota", [{"space": 4 * PART}, {"names": 3}], ids=["space", "names"])
def test_an_exceeded_quota_is_not_repeated(
    hdfs_root: HdfsRoot, opened: contextlib.ExitStack, quota: dict[str, int]
) -> None:
    backend = tier(opened, hdfs_root, block_size=PART).backend
    hdfs_root.server.set_quota(hdfs_root.path, **quota)
    begun = time.monotonic()
    with pytest.raises(OutOfSpaceError, match="quota"):
        send(backend)
    assert time.monotonic() - begun < 15
    assert not backend.snapshot().retries
    hdfs_root.server.set_quota(hdfs_root.path)


def test_rights_are_refused_at_once(hdfs_root: HdfsRoot, opened: contextlib.ExitStack) -> None:
    put(hdfs_root)
    client = hdfs_root.server.client()
    client.set_permission(f"{hdfs_root.path}/k", 0o600)
    stranger = tier(opened, hdfs_root, user="stranger").backend
    for work in (
        lambda: send(stranger),
        lambda: stranger.create("l", b"x", if_absent=True),
        lambda: whole(stranger),
        lambda: stranger.delete(["k"]),
    ):
        with pytest.raises(AccessError, match="user=stranger"):
            work()
    assert not stranger.snapshot().retries
    assert hdfs_root.read("k") == DATA


def test_a_damaged_replica_is_read_from_the_other(
    hdfs_root: HdfsRoot, opened: contextlib.ExitStack
) -> None:
    put(hdfs_root)
    backend, server = tier(opened, hdfs_root, retry=0.0).backend, hdfs_root.server
    _flip(server, f"{hdfs_root.path}/k", 0)
    for _ in range(4):  # the namenode chooses among the replicas
        assert whole(backend) == DATA


def test_bytes_damaged_in_every_replica_are_not_handed_out(
    hdfs_root: HdfsRoot, opened: contextlib.ExitStack
) -> None:
    put(hdfs_root)
    backend, server = tier(opened, hdfs_root, retry=0.0).backend, hdfs_root.server
    for datanode in (0, 1):
        _flip(server, f"{hdfs_root.path}/k", datanode)
    with pytest.raises(TransientError):
        whole(backend)


def _flip(server: HdfsServer, path: str, datanode: int) -> None:
    """Change a byte of a file's block on a datanode's disk."""
    (block,) = server.blocks(path, datanode)
    with block.open("r+b") as file:
        file.seek(PART + 5)
        byte = file.read(1)[0]
        file.seek(PART + 5)
        file.write(bytes([byte ^ 1]))


def test_many_small_files(hdfs_root: HdfsRoot, opened: contextlib.ExitStack) -> None:
    backend = tier(opened, hdfs_root).backend
    names = [f"d/{number:04d}" for number in range(1100)]  # more than one page of a listing
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: backend.create(name, name.encode()), names))
    assert [info.key for info in backend.list("d/")] == names
    for name in names[::100]:
        assert hdfs_root.read(name) == name.encode()
    backend.delete(names)
    assert hdfs_root.keys() == []


def _anonymous() -> int:
    """Return this process's resident memory that is no file's, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


class Peak:
    """The most anonymous memory beyond the start, watched from a thread."""

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._start = _anonymous()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.bytes = max(self.bytes, _anonymous() - self._start)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_five_gib_in_little_memory(
    hdfs_root: HdfsRoot, opened: contextlib.ExitStack, tmp_path: Path
) -> None:
    """A sparse file with a stamp in each MiB is the image: its pages are the file's, not ours."""
    size, part, read = 5 << 30, 64 * MIB, 32 * MIB
    with (tmp_path / "image").open("w+b") as file:
        file.truncate(size)
        image = memoryview(mmap.mmap(file.fileno(), size))
    np.frombuffer(image, "<u8")[:: MIB // 8] = np.arange(1, (size >> 20) + 1, dtype="<u8")
    backend = tier(opened, hdfs_root, part_size=part, read_size=read, replication=1).backend
    lanes = [memoryview(bytearray(b"\1") * read) for _ in range(4)]  # what a reader brings itself
    with Peak() as peak, ThreadPoolExecutor(4) as pool:
        upload = backend.upload("big", size)
        parts = [image[at : at + part] for at in range(0, size, part)]
        list(pool.map(lambda p: upload.write(p[0] * part, p[1], crc32c(p[1])), enumerate(parts)))
        upload.commit(crc32c=crc32c(image))

        def lane(number: int) -> None:
            for at in range(number * read, size, 4 * read):
                backend.read_into("big", at, lanes[number])
                assert lanes[number] == image[at : at + read], f"other bytes at {at}"

        list(pool.map(lane, range(4)))
    assert peak.bytes <= 64 * MIB, f"{peak.bytes / MIB:.0f} MiB beyond the image"
