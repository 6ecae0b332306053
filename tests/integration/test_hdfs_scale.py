"""HDFS with many files, and with one that is large."""

from __future__ import annotations

import json
import mmap
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest

from tests.conftest import HdfsRoot
from tests.loopback import answer, read_request, serving
from tierstore.backend import Backend
from tierstore.blocks import crc32c
from tierstore.config import TierConfig
from tierstore.wrappers import open_tier
from tierstore_hdfs import open_hdfs

pytestmark = [pytest.mark.hdfs, pytest.mark.slow]
MIB = 1 << 20
CLOSE = "Connection: close\r\n"


@pytest.fixture
def backend(hdfs_root: HdfsRoot) -> Iterator[Backend]:
    tier = TierConfig("hdfs", hdfs_root.url, options={"replication": 1})
    with closing(open_tier(tier)) as backend:
        yield backend


def test_many_small_files(hdfs_root: HdfsRoot, backend: Backend) -> None:
    names = [f"d/{number:04d}" for number in range(100)]  # ten pages of a listing
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: backend.create(name, name.encode()), names))
    assert [info.key for info in backend.list("d/")] == names
    for name in names[::10]:
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


def test_more_than_two_gib_in_little_memory(backend: Backend, tmp_path: Path) -> None:
    """A sparse file with a stamp in each MiB is the image: its pages are the file's, not ours.

    It is one part longer than a signed 32-bit number reaches, which is where the lengths of Java's
    arrays and of what C takes as an int end. The next boundary is our own alone: see below.
    """
    part, read = backend.capabilities.part_size, 32 * MIB
    size = (1 << 31) + part
    assert backend.capabilities.part_size_for(size) == part
    with (tmp_path / "image").open("w+b") as file:
        file.truncate(size)
        image = memoryview(mmap.mmap(file.fileno(), size))
    np.frombuffer(image, "<u8")[:: MIB // 8] = np.arange(1, (size >> 20) + 1, dtype="<u8")
    # What a reader brings itself. Two memoryviews would be compared byte by byte: 15 times slower.
    lanes = [bytearray(b"\1") * read for _ in range(4)]
    with Peak() as peak, ThreadPoolExecutor(4) as pool:
        upload = backend.upload("big", size)
        parts = [image[at : at + part] for at in range(0, size, part)]
        list(pool.map(lambda p: upload.write(p[0] * part, p[1], crc32c(p[1])), enumerate(parts)))
        upload.commit(crc32c=crc32c(image))

        def lane(number: int) -> None:
            for at in range(number * read, size, 4 * read):
                backend.read_into("big", at, memoryview(lanes[number]))
                assert lanes[number] == image[at : at + read], f"other bytes at {at}"

        list(pool.map(lane, range(4)))
    assert peak.bytes <= 64 * MIB, f"{peak.bytes / MIB:.0f} MiB beyond the image"


def test_offsets_beyond_32_bits_are_asked_for_as_they_are() -> None:
    """Nothing is left of them on our side but digits of a query, and Java takes a long there."""
    asked: list[str] = []

    def serve(sock: socket.socket) -> None:
        line = read_request(sock)[0].split(b"\r\n")[0].decode()
        there = json.dumps({"Location": f"{url}/datanode"}).encode()
        if "op=OPEN" in line:
            asked.append(line.partition("?")[2])
        sock.sendall(answer(there if "op=OPEN" in line else b"bytes", headers=CLOSE))

    offsets = [2**31 - 1, 2**31, 2**32 - 1, 2**32, 5 << 30, 2**53 + 1]
    with serving(serve) as url:
        with closing(open_hdfs(url.replace("http", "hdfs") + "/t")) as backend:
            for offset in offsets:
                backend.read_into("big", offset, memoryview(bytearray(5)))
    queries = [dict(parse_qsl(query.partition(" ")[0])) for query in asked]
    assert [(q["offset"], q["length"]) for q in queries] == [(str(at), "5") for at in offsets]
