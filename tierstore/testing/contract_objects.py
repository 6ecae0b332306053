"""The contract of whole objects: create, stat, read, delete, close."""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tierstore.backend import Backend
from tierstore.blocks import BLOCK_SIZE, crc32c
from tierstore.errors import (
    AlreadyExistsError,
    InvalidKeyError,
    NotFoundError,
    StorageError,
    TruncatedFileError,
)
from tierstore.testing.contract_base import Hooks, noise, read, together

_PATIENCE = 60.0
_RANGES = [(0, 1), (1, 100), (4095, 2), (4096, 4096), (4097, 8191), (0, 20_000), (19_999, 1)]
_BAD_KEYS = ["", "/a", "a/", "a//b", ".", "a/../b", "a\x00b", "a\nb", "k" * 1025, "\ud800"]
_USES: list[Callable[[Backend, str], object]] = [
    lambda backend, key: backend.create(key, b"x"),
    lambda backend, key: backend.upload(key, 1),
    lambda backend, key: backend.stat(key),
    lambda backend, key: backend.read_into(key, 0, memoryview(bytearray(1))),
    lambda backend, key: backend.fetch(key, memoryview(bytearray(1))),
]


class ObjectContract(Hooks):
    """Small objects."""

    def test_is_a_backend(self, backend: Backend) -> None:
        assert isinstance(backend, Backend)
        assert backend.url
        assert "@" not in backend.url
        can = backend.capabilities
        assert can == backend.capabilities
        assert can.min_part <= can.part_size <= can.max_part
        assert can.part_size % BLOCK_SIZE == can.read_size % BLOCK_SIZE == 0
        assert can.concurrency >= 1

    def test_a_tag_changes_with_the_content(self, backend: Backend) -> None:
        tags = set()
        for data in (b"one", b"two"):  # of one size, within a second
            written = backend.create("a/x", data)
            (listed,) = backend.list("a/")
            assert written.tag == listed.tag == backend.stat("a/x").tag
            tags.add(listed.tag)
        assert tags == {""} or len(tags) == 2

    @pytest.mark.parametrize("size", [0, 1, 4096, 100_001])
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_create_stores_the_bytes(
        self, backend: Backend, size: int, kind: Callable[[bytes], bytes]
    ) -> None:
        data = noise(size)
        info = backend.create("runs/r/x", kind(data))
        assert (info.key, info.size) == ("runs/r/x", size)
        assert info.crc32c in (None, crc32c(data))
        assert self.raw_get("runs/r/x") == data
        assert self.raw_list() == ["runs/r/x"]

    @pytest.mark.parametrize("size", [0, 1, 4096, 100_001])
    def test_fetch_is_read_and_stat_in_one(self, backend: Backend, size: int) -> None:
        data = noise(size)
        created = backend.create("runs/r/x", data)
        into = memoryview(bytearray(b"\1") * size)
        told = backend.fetch("runs/r/x", into)
        assert into == data
        assert told == backend.stat("runs/r/x")
        assert (told.size, told.tag) == (size, created.tag)

    def test_fetch_wants_the_whole(self, backend: Backend) -> None:
        backend.create("x", b"four")
        for size in (0, 3, 5):
            with pytest.raises(TruncatedFileError):
                backend.fetch("x", memoryview(bytearray(size)))
        with pytest.raises(NotFoundError):
            backend.fetch("y", memoryview(bytearray(4)))
        assert read(backend, "x", 0, 4) == b"four"

    @pytest.mark.parametrize("if_absent", [True, False])
    def test_many_may_be_flushed_together(self, backend: Backend, *, if_absent: bool) -> None:
        backend.flush()
        wanted = {f"deep/{n % 3}/x{n}": noise(n * 100) for n in range(20)}
        for key, data in wanted.items():
            info = backend.create(key, data, if_absent=if_absent, durable=False)
            assert (info.key, info.size) == (key, len(data))
            assert read(backend, key, 0, len(data)) == data
            again = backend.create(key, data, if_absent=if_absent, durable=False)
            assert again.size == len(data)
        if if_absent:
            with pytest.raises(AlreadyExistsError):
                backend.create("deep/0/x0", b"other", if_absent=True, durable=False)
        backend.flush()
        backend.flush()
        assert {key: self.raw_get(key) for key in self.raw_list()} == wanted

    def test_stat_tells_what_create_told(self, backend: Backend) -> None:
        created = backend.create("a/x", b"hello")
        found = backend.stat("a/x")
        assert (found.key, found.size) == (created.key, created.size)
        assert found.crc32c in (None, crc32c(b"hello"))
        assert found.mtime >= 0

    def test_create_replaces(self, backend: Backend) -> None:
        backend.create("x", b"a longer old content")
        backend.create("x", b"new")
        assert self.raw_get("x") == b"new"
        assert backend.stat("x").size == 3

    def test_sees_what_others_stored(self, backend: Backend) -> None:
        self.raw_put("deep/er/x", b"theirs")
        assert backend.stat("deep/er/x").size == 6
        assert read(backend, "deep/er/x", 0, 6) == b"theirs"

    def test_if_absent_refuses_other_content(self, backend: Backend) -> None:
        backend.create("c/x", b"first", if_absent=True)
        for other in (b"other", b"longer than first", b""):
            with pytest.raises(AlreadyExistsError) as caught:
                backend.create("c/x", other, if_absent=True)
            assert caught.value.key == "c/x"
        assert self.raw_get("c/x") == b"first"

    @pytest.mark.parametrize("data", [b"", b"same"])
    def test_if_absent_may_be_repeated(self, backend: Backend, data: bytes) -> None:
        backend.create("c/x", data, if_absent=True)
        assert backend.create("c/x", data, if_absent=True).size == len(data)
        assert self.raw_get("c/x") == data

    def test_if_absent_has_one_winner(self, backend: Backend) -> None:
        if not backend.capabilities.atomic_create:
            pytest.skip("no atomic_create")
        results = together(
            16, lambda i: backend.create("c/x", f"writer {i}".encode(), if_absent=True)
        )
        winners = [i for i, result in enumerate(results) if not isinstance(result, Exception)]
        assert len(winners) == 1, results
        assert sum(isinstance(result, AlreadyExistsError) for result in results) == 15, results
        assert self.raw_get("c/x") == f"writer {winners[0]}".encode()

    def test_if_absent_lets_all_equal_writers_win(self, backend: Backend) -> None:
        if not backend.capabilities.atomic_create:
            pytest.skip("no atomic_create")
        results = together(8, lambda _: backend.create("c/x", b"same", if_absent=True))
        assert not [result for result in results if isinstance(result, Exception)]
        assert self.raw_get("c/x") == b"same"
        assert list(self.raw_uploads()) == []

    def test_readers_never_see_a_half(self, backend: Backend) -> None:
        contents = [bytes([value]) * 50_000 for value in range(12)]
        backend.create("x", contents[0])
        over, started = threading.Event(), threading.Barrier(4)

        def work(index: int) -> set[bytes]:
            if index == 0:
                started.wait()
                try:
                    for content in contents:
                        backend.create("x", content)
                finally:
                    over.set()
                return {contents[0]}
            started.wait()
            seen = {read(backend, "x", 0, 50_000)}
            while not over.is_set():
                seen.add(read(backend, "x", 0, 50_000))
            return seen

        for seen in together(4, work):
            assert not isinstance(seen, Exception), seen
            assert seen
            assert seen <= set(contents)

    @pytest.mark.parametrize(("offset", "length"), _RANGES)
    def test_reads_exactly_the_range(self, backend: Backend, offset: int, length: int) -> None:
        data = noise(20_000)
        self.raw_put("x", data)
        guarded = bytearray(b"\xaa" * (length + 20))
        backend.read_into("x", offset, memoryview(guarded)[10:-10])
        assert guarded[10:-10] == data[offset : offset + length]
        assert guarded[:10] == guarded[-10:] == b"\xaa" * 10

    @pytest.mark.parametrize("sizes", [(7, 0, 4096, 1), (1,) * 1100, (12_288, 3, 4096), (0, 0)])
    def test_a_range_is_scattered_over_buffers(
        self, backend: Backend, sizes: tuple[int, ...]
    ) -> None:
        data = noise(20_000)
        self.raw_put("x", data)
        buffers = [bytearray(size) for size in sizes]
        backend.read_into("x", 500, *[memoryview(each) for each in buffers])
        assert b"".join(buffers) == data[500 : 500 + sum(sizes)]
        with pytest.raises(TruncatedFileError, match="x"):
            backend.read_into("x", 19_999, memoryview(bytearray(2)))

    def test_reads_nothing(self, backend: Backend) -> None:
        self.raw_put("x", b"")
        backend.read_into("x", 0, memoryview(bytearray()))

    @pytest.mark.parametrize(("offset", "length"), [(0, 101), (99, 2), (100, 1), (5000, 10)])
    def test_a_short_object_is_an_error(self, backend: Backend, offset: int, length: int) -> None:
        self.raw_put("x", b"x" * 100)
        with pytest.raises(TruncatedFileError, match="x"):
            read(backend, "x", offset, length)

    def test_reads_from_many_threads(self, backend: Backend) -> None:
        data = noise(2 * BLOCK_SIZE + 77)
        self.raw_put("x", data)

        def work(index: int) -> bool:
            offset = index * 1_000_003 % BLOCK_SIZE
            return read(backend, "x", offset, BLOCK_SIZE) == data[offset : offset + BLOCK_SIZE]

        assert together(8, work) == [True] * 8

    @pytest.mark.parametrize("use", _USES[2:])
    def test_a_missing_object(
        self, backend: Backend, use: Callable[[Backend, str], object]
    ) -> None:
        self.raw_put("there/x", b"x")
        for key in ("missing", "there/y", "there", "there/x/y"):
            with pytest.raises(NotFoundError) as caught:
                use(backend, key)
            assert caught.value.key == key
            assert caught.value.url == backend.url

    def test_odd_keys(self, backend: Backend) -> None:
        for key in self.odd_keys:
            backend.create(key, key.encode())
        assert sorted(self.raw_list()) == sorted(self.odd_keys)
        for key in self.odd_keys:
            data = key.encode()
            assert self.raw_get(key) == data
            assert backend.stat(key).key == key
            assert read(backend, key, 0, len(data)) == data
        backend.delete(self.odd_keys)
        assert self.raw_list() == []

    @pytest.mark.parametrize("key", _BAD_KEYS)
    def test_illegal_keys_are_refused(self, backend: Backend, key: str) -> None:
        for use in _USES:
            with pytest.raises(InvalidKeyError):
                use(backend, key)
        assert self.raw_list() == []

    def test_delete(self, backend: Backend) -> None:
        for key in ("d/x", "d/y", "d/deep/z", "keep"):
            self.raw_put(key, b"x")
        backend.delete(key for key in ("d/x", "d/deep/z", "d/missing", "no/such"))
        assert sorted(self.raw_list()) == ["d/y", "keep"]
        backend.delete(["d/x"])
        backend.delete([])
        assert sorted(self.raw_list()) == ["d/y", "keep"]

    def test_create_while_the_neighbours_are_deleted(self, backend: Backend) -> None:
        def work(index: int) -> None:
            for round_ in range(20):
                key = f"shared/folder/{index}-{round_}"
                backend.create(key, b"x")
                backend.delete([key])

        assert together(4, work) == [None] * 4
        assert self.raw_list() == []

    def test_errors_can_be_pickled(self, backend: Backend) -> None:
        with pytest.raises(NotFoundError) as caught:
            backend.stat("missing")
        copy: StorageError = pickle.loads(pickle.dumps(caught.value))
        assert type(copy) is type(caught.value)
        assert str(copy) == str(caught.value)
        assert (copy.url, copy.key) == (backend.url, "missing")

    def test_two_opens_share_the_place(self, backend: Backend) -> None:
        other = self.open()
        try:
            backend.create("x", b"shared")
            assert read(other, "x", 0, 6) == b"shared"
        finally:
            other.close()

    def test_close_leaves_nothing(self) -> None:
        self.raw_put("warm", b"x")  # connections of the second path
        before = _held()
        backend = self.open()
        together(4, lambda i: backend.create(f"x{i}", b"x"))
        list(backend.list(""))
        backend.upload("y", 10)
        upload = backend.upload("y", 10)
        upload.write(0, b"0123456789", crc32c(b"0123456789"))
        upload.commit()
        backend.close()
        backend.close()
        deadline = time.monotonic() + _PATIENCE
        while (new := _held() - before) and time.monotonic() < deadline:
            time.sleep(0.02)  # a server in this process closes its side a moment later
        assert not new


def _held() -> Counter[str]:
    """Return how many of which files are open, and the threads of tierstore."""
    held = Counter(thread.name for thread in threading.enumerate() if "tierstore" in thread.name)
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own descriptor
            held[str(entry.readlink()).partition(":[")[0]] += 1
    return held
