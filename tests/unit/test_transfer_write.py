"""Writing files to a tier: whole and checked, or not at all."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE
from tierstore.backend import Backend, Capabilities
from tierstore.backends.local.backend import LocalBackend
from tierstore.backends.memory import MemoryBackend
from tierstore.blocks import BLOCK_SIZE, block_crcs
from tierstore.errors import (
    CheckpointError,
    IntegrityError,
    OutOfSpaceError,
    TransientError,
    UnreachableError,
)
from tierstore.transfer.source import AlignedBuffers, Lease, MemorySource, RevokedError
from tierstore.transfer.write import FileWrite, write_files
from tierstore.wrappers.delegate import Delegate
from tierstore.wrappers.faults import Fault, Faulty

pytestmark = pytest.mark.usefixtures("no_leaks")

SIZES = [0, 1, 4096, BLOCK_SIZE, BLOCK_SIZE + 1, 5 * BLOCK_SIZE + 12345]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4, "tierstore-test") as executor:
        yield executor


@pytest.fixture(params=["memory", "local"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend(f"memory://{tmp_path.name}")
    return LocalBackend(str(tmp_path))


class With(Delegate):
    """A backend with other capabilities."""

    def __init__(self, inner: Backend, **changes: Any) -> None:
        super().__init__(inner)
        self._changes = changes

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, **self._changes)


def data(size: int, seed: int = 0) -> memoryview:
    return memoryview(random.Random(seed).randbytes(size))


def one(backend: Backend, content: memoryview, pool: ThreadPoolExecutor, **more: Any) -> list[int]:
    write = FileWrite("f", len(content), MemorySource(content), more.pop("crcs", None))
    return write_files(backend, [write], pool=pool, **more)[0]


def stored(backend: Backend, key: str) -> bytes:
    buffer = bytearray(backend.stat(key).size)
    backend.read_into(key, 0, memoryview(buffer))
    return bytes(buffer)


def test_files_of_every_size_arrive_and_their_block_crcs_come_back(
    backend: Backend, pool: ThreadPoolExecutor
) -> None:
    contents = [data(size, seed) for seed, size in enumerate(SIZES)]
    sent: list[int] = []
    crcs = write_files(
        backend,
        [FileWrite(f"d/{n}", len(each), MemorySource(each)) for n, each in enumerate(contents)],
        pool=pool,
        progress=sent.append,
    )
    assert crcs == [block_crcs(each) for each in contents]
    assert [stored(backend, f"d/{n}") for n in range(len(SIZES))] == contents
    assert sum(sent) == sum(SIZES)


@pytest.mark.parametrize("parallel", [True, False])
def test_parts_of_one_file_are_in_order_where_the_store_needs_it(
    tmp_path: Path, pool: ThreadPoolExecutor, *, parallel: bool
) -> None:
    offsets: list[int] = []
    inner = Faulty(
        MemoryBackend(f"memory://{tmp_path.name}"),
        Fault("write", times=99, action=lambda call: offsets.append(call.offset)),
    )
    content = data(9 * BLOCK_SIZE + 5)
    one(With(inner, parallel_parts=parallel, part_size=BLOCK_SIZE), content, pool)
    assert stored(inner, "f") == content
    assert len(offsets) == 10
    if not parallel:
        assert offsets == sorted(offsets)


def test_parts_grow_so_that_there_are_not_too_many(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    inner = Faulty(MemoryBackend(f"memory://{tmp_path.name}"))
    content = data(9 * BLOCK_SIZE)
    one(With(inner, part_size=BLOCK_SIZE, max_parts=3), content, pool)
    assert stored(inner, "f") == content
    assert sum(call.operation == "write" for call in inner.calls) == 3


def test_a_source_that_differs_from_its_known_crcs_is_never_passed_on(
    backend: Backend, pool: ThreadPoolExecutor
) -> None:
    content = data(3 * BLOCK_SIZE)
    crcs = block_crcs(content)
    assert one(backend, content, pool, crcs=crcs) == crcs
    backend.delete(["f"])
    damaged = bytearray(content)
    damaged[BLOCK_SIZE + 17] ^= 1
    with pytest.raises(IntegrityError, match="f: block 1 has CRC32C"):
        one(backend, memoryview(damaged), pool, crcs=crcs)
    assert not list(backend.list(""))


def test_a_file_is_read_back_where_the_store_needs_it(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    content = data(3 * BLOCK_SIZE + 1)
    faulty = Faulty(MemoryBackend(f"memory://{tmp_path.name}"), Fault("read_into", nth=2, flip=5))
    with pytest.raises(IntegrityError, match="instead of"):
        one(With(faulty, needs_read_back=True), content, pool)
    one(With(faulty, needs_read_back=True), content, pool)  # the fault was the second read only
    reads = [call for call in faulty.calls if call.operation == "read_into"]
    one(faulty, content, pool)  # the server checks: nothing is read back
    assert [call for call in faulty.calls if call.operation == "read_into"] == reads


@pytest.mark.parametrize("error", [UnreachableError("gone"), OutOfSpaceError("full")])
@pytest.mark.parametrize("operation", ["*", "write", "commit"])
def test_a_failure_at_any_request_leaves_no_upload_behind(
    tmp_path: Path, pool: ThreadPoolExecutor, operation: str, error: Exception
) -> None:
    content = data(5 * BLOCK_SIZE)
    files = [
        FileWrite("a", len(content), MemorySource(content)),
        FileWrite("b", 100, MemorySource(content)),
    ]
    failed = 0
    for nth in range(1, 99):
        memory = MemoryBackend(f"memory://{tmp_path.name}-{nth}-{operation}-{error}")
        # The answer to "upload" is the only handle on it, so it is not lost here.
        fault = Fault(operation, nth=nth, error=error, after=operation != "*")
        try:
            small = With(Faulty(memory, fault), part_size=BLOCK_SIZE)
            write_files(small, files, pool=pool)
        except type(error):
            failed += 1
            assert not memory._space.uploads
        else:
            break
    assert failed == {"*": 10, "write": 6, "commit": 2}[operation]
    assert stored(memory, "a") == content


def test_cancelling_stops_before_the_next_part_and_aborts(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    memory = MemoryBackend(f"memory://{tmp_path.name}")
    stop = threading.Event()
    sent: list[int] = []

    def progress(nbytes: int) -> None:
        sent.append(nbytes)
        stop.set()

    content = data(40 * BLOCK_SIZE)
    small = With(memory, part_size=BLOCK_SIZE)
    with pytest.raises(CheckpointError, match="f: the transfer was stopped"):
        one(small, content, pool, cancelled=stop.is_set, progress=progress)
    assert len(sent) <= memory.capabilities.concurrency
    assert not memory._space.uploads
    assert not list(memory.list(""))


def test_a_source_that_fails_is_an_error_like_any_other(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    class Broken:
        @contextmanager
        def view(self, offset: int, length: int) -> Iterator[memoryview]:
            raise TransientError(f"cannot read {length} bytes at {offset}")
            yield memoryview(b"")

    memory = MemoryBackend(f"memory://{tmp_path.name}")
    with pytest.raises(TransientError, match="cannot read"):
        write_files(memory, [FileWrite("f", 5, Broken())], pool=pool)
    assert not memory._space.uploads


class Image:
    """A staged image that counts its releases."""

    def __init__(self, content: bytes) -> None:
        self.buffer = memoryview(bytearray(content))
        self.released = 0

    def release(self) -> None:
        self.released += 1


def test_a_revoked_lease_waits_for_open_views_and_releases_once() -> None:
    image = Image(b"0123456789")
    lease = Lease(image)
    with lease.view(2, 3) as outer:
        lease.revoke()
        lease.revoke()
        assert (bytes(outer), image.released, lease.held) == (b"234", 0, False)
        with pytest.raises(RevokedError), lease.view(0, 1):
            pass
    assert image.released == 1
    lease.revoke()
    assert image.released == 1


def test_aligned_buffers_are_reused_and_bounded() -> None:
    buffers = AlignedBuffers(8192, 1)
    with buffers.take(100) as first:
        first[:3] = b"abc"
        assert len(first) == 100
        entered = threading.Event()

        def second() -> None:
            with buffers.take(8192) as again:
                assert bytes(again[:3]) == b"abc"  # the same memory
                entered.set()

        thread = threading.Thread(target=second, name="tierstore-test-second")
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(PATIENCE)
    thread.join()
