"""The contract of uploads in parts."""

from __future__ import annotations

import pytest

from tierstore.backend import Backend, Upload
from tierstore.blocks import crc32c, parts
from tierstore.errors import (
    AlreadyExistsError,
    DamagedInTransitError,
    NotFoundError,
    StorageError,
    TruncatedFileError,
)
from tierstore.testing.contract_base import Hooks, noise, part_size, read, together


def _send(upload: Upload, data: bytes, ranges: list[tuple[int, int]]) -> None:
    view = memoryview(data)
    for offset, length in ranges:
        part = view[offset : offset + length]
        upload.write(offset, part, crc32c(part))


class UploadContract(Hooks):
    """Large objects: whole and visible at commit, or not at all."""

    @pytest.fixture
    def part(self, backend: Backend) -> int:
        """Bytes of a part."""
        return part_size(backend)

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_001])
    def test_one_part(self, backend: Backend, size: int) -> None:
        data = noise(size)
        upload = backend.upload("u/x", size)
        assert isinstance(upload, Upload)
        if size:
            upload.write(0, data, crc32c(data))
        info = upload.commit(crc32c=crc32c(data))
        assert (info.key, info.size) == ("u/x", size)
        assert info.crc32c in (None, crc32c(data))
        assert backend.stat("u/x").size == size
        assert self.raw_get("u/x") == data
        assert list(self.raw_uploads()) == []

    @pytest.mark.parametrize("tail", [0, 1, 4096, 12_345])
    def test_many_parts(self, backend: Backend, part: int, tail: int) -> None:
        data = noise(2 * part + tail)
        ranges = list(parts(len(data), part))
        upload = backend.upload("u/x", len(data))
        if backend.capabilities.parallel_parts:
            ranges.reverse()
        _send(upload, data, ranges)
        assert upload.commit(crc32c=crc32c(data)).size == len(data)
        assert self.raw_get("u/x") == data
        assert read(backend, "u/x", part - 5, 10) == data[part - 5 : part + 5]

    def test_parts_from_threads(self, backend: Backend, part: int) -> None:
        if not backend.capabilities.parallel_parts:
            pytest.skip("no parallel_parts")
        data = noise(3 * part + 5)
        ranges = list(parts(len(data), part))
        upload = backend.upload("u/x", len(data))
        sent = together(len(ranges), lambda i: _send(upload, data, [ranges[i]]))
        assert sent == [None] * 4
        upload.commit(crc32c=crc32c(data))
        assert self.raw_get("u/x") == data

    def test_memory_of_any_kind(self, backend: Backend, part: int) -> None:
        data = noise(part + 100)
        odd = memoryview(bytearray(b"?" + data))[1:]  # not aligned, writable
        upload = backend.upload("u/x", len(data))
        upload.write(0, odd[:part], crc32c(odd[:part]))
        upload.write(part, data[part:], crc32c(data[part:]))
        upload.commit(crc32c=crc32c(data))
        assert self.raw_get("u/x") == data

    def test_invisible_before_commit(self, backend: Backend, part: int) -> None:
        data = noise(part + 7)
        upload = backend.upload("u/x", len(data))
        _send(upload, data, list(parts(len(data), part)))
        with pytest.raises(NotFoundError):
            backend.stat("u/x")
        assert list(backend.list("")) == []
        assert list(backend.list("", delimiter=True)) == []
        upload.commit()
        assert [item.key for item in backend.list("")] == ["u/x"]

    def test_old_content_stays_until_commit(self, backend: Backend) -> None:
        backend.create("u/x", b"old")
        upload = backend.upload("u/x", 6)
        upload.write(0, b"newest", crc32c(b"newest"))
        assert self.raw_get("u/x") == b"old"
        upload.commit()
        assert self.raw_get("u/x") == b"newest"

    @pytest.mark.parametrize("missing", [0, 1, 2])
    def test_a_missing_part_is_refused(self, backend: Backend, part: int, missing: int) -> None:
        data = noise(2 * part + 7)
        ranges = list(parts(len(data), part))
        del ranges[missing]
        upload = backend.upload("u/x", len(data))
        _send(upload, data, ranges)
        with pytest.raises(TruncatedFileError, match="u/x"):
            upload.commit()
        upload.abort()
        assert self.raw_list() == []
        assert list(self.raw_uploads()) == []

    def test_damage_on_the_way_is_refused(self, backend: Backend) -> None:
        good, bad = b"what was meant", b"what has come!"
        upload = backend.upload("u/x", len(good))
        with pytest.raises(DamagedInTransitError):
            if backend.capabilities.server_checksum:
                upload.write(0, bad, crc32c(good))
            else:
                upload.write(0, bad, crc32c(bad))
            upload.commit(crc32c=crc32c(good))
        upload.abort()
        assert self.raw_list() == []

    def test_a_store_that_checks_needs_no_reading_back(self, backend: Backend) -> None:
        can = backend.capabilities
        assert not (can.server_checksum and can.needs_read_back)

    def test_a_damaged_part_can_be_sent_again(self, backend: Backend) -> None:
        if not backend.capabilities.server_checksum:
            pytest.skip("no server_checksum")
        upload = backend.upload("u/x", 4)
        with pytest.raises(DamagedInTransitError):
            upload.write(0, b"baad", crc32c(b"good"))
        upload.write(0, b"good", crc32c(b"good"))
        upload.commit(crc32c=crc32c(b"good"))
        assert self.raw_get("u/x") == b"good"

    def test_a_part_may_be_written_again(self, backend: Backend, part: int) -> None:
        data, other = noise(part + 9), noise(part, seed=1)
        upload = backend.upload("u/x", len(data))
        upload.write(0, other, crc32c(other))
        _send(upload, data, list(parts(len(data), part)))
        assert upload.done == [(0, part), (part, 9)]
        upload.commit(crc32c=crc32c(data))
        assert self.raw_get("u/x") == data

    def test_a_part_outside_is_refused(self, backend: Backend) -> None:
        upload = backend.upload("u/x", 10)
        for offset in (-1, 5, 10):
            with pytest.raises(ValueError, match="10"):
                upload.write(offset, b"sixsix", crc32c(b"sixsix"))
        upload.abort()

    def test_commit_may_be_repeated(self, backend: Backend) -> None:
        upload = backend.upload("u/x", 1)
        upload.write(0, b"x", crc32c(b"x"))
        first = upload.commit(if_absent=True)
        assert upload.commit(if_absent=True) == first
        upload.abort()
        assert self.raw_get("u/x") == b"x"

    def test_if_absent(self, backend: Backend) -> None:
        for data in (b"first", b"first"):  # the same again is the same
            upload = backend.upload("u/x", 5)
            upload.write(0, data, crc32c(data))
            assert upload.commit(if_absent=True, crc32c=crc32c(data)).size == 5
        for other in (b"other", b"a longer one"):
            upload = backend.upload("u/x", len(other))
            upload.write(0, other, crc32c(other))
            with pytest.raises(AlreadyExistsError):
                upload.commit(if_absent=True, crc32c=crc32c(other))
            upload.abort()
        assert self.raw_get("u/x") == b"first"
        assert list(self.raw_uploads()) == []

    def test_if_absent_has_one_winner(self, backend: Backend) -> None:
        if not backend.capabilities.atomic_create:
            pytest.skip("no atomic_create")

        def work(index: int) -> int:
            data = f"writer {index}".encode()
            upload = backend.upload("u/x", len(data))
            try:
                upload.write(0, data, crc32c(data))
                upload.commit(if_absent=True, crc32c=crc32c(data))
            finally:
                upload.abort()
            return index

        results = together(8, work)
        winners = [result for result in results if not isinstance(result, Exception)]
        assert len(winners) == 1, results
        assert sum(isinstance(result, AlreadyExistsError) for result in results) == 7, results
        assert self.raw_get("u/x") == f"writer {winners[0]}".encode()
        assert list(self.raw_uploads()) == []

    def test_abort_leaves_nothing(self, backend: Backend, part: int) -> None:
        data = noise(part + 1)
        begun = backend.upload("u/x", len(data))
        begun.abort()
        upload = backend.upload("u/x", len(data))
        _send(upload, data, [(0, part)])
        upload.abort()
        upload.abort()
        assert self.raw_list() == []
        assert list(self.raw_uploads()) == []
        with pytest.raises(StorageError):
            upload.write(part, data[part:], crc32c(data[part:]))
        with pytest.raises((StorageError, TruncatedFileError)):
            upload.commit()
        assert self.raw_list() == []
        assert list(self.raw_uploads()) == []

    def test_parts_may_be_read_back_before_the_commit(self, backend: Backend, part: int) -> None:
        data = noise(part + 9)
        upload = backend.upload("u/x", len(data))
        for offset, length in ((part, 9), (0, part)) if backend.capabilities.parallel_parts else ():
            piece = data[offset : offset + length]
            upload.write(offset, piece, crc32c(piece))
            into = memoryview(bytearray(b"\1") * length)
            if upload.read_back(offset, into):
                assert into == piece
            else:
                assert into == b"\1" * length
        upload.abort()

    def test_uploads_of_one_key_do_not_mix(self, backend: Backend) -> None:
        one, two = backend.upload("u/x", 3), backend.upload("u/x", 5)
        one.write(0, b"one", crc32c(b"one"))
        two.write(0, b"two__", crc32c(b"two__"))
        one.commit()
        assert self.raw_get("u/x") == b"one"
        two.commit()
        assert self.raw_get("u/x") == b"two__"

    @pytest.mark.parametrize("tail", [0, 1, 4096, 12_345])
    def test_of_unknown_size(self, backend: Backend, part: int, tail: int) -> None:
        data = noise(2 * part + tail)
        upload = backend.upload("u/x")
        assert upload.token == ""
        _send(upload, data, list(parts(len(data), part)))
        assert upload.done[:2] == [(0, part), (part, part)]
        with pytest.raises(NotFoundError):
            backend.stat("u/x")
        info = upload.commit(crc32c=crc32c(data))
        assert (info.key, info.size) == ("u/x", len(data))
        assert backend.stat("u/x").size == len(data)
        assert self.raw_get("u/x") == data
        assert list(self.raw_uploads()) == []

    @pytest.mark.parametrize("size", [0, 1, 4095, 4097])
    def test_of_unknown_size_with_a_part_at_most(self, backend: Backend, size: int) -> None:
        data = noise(size)
        upload = backend.upload("u/x")
        _send(upload, data, [(0, size)] if size else [])
        info = upload.commit(if_absent=True, crc32c=crc32c(data))
        assert upload.commit(if_absent=True) == info
        assert info.size == size
        assert self.raw_get("u/x") == data
        assert list(self.raw_uploads()) == []

    def test_of_unknown_size_from_threads(self, backend: Backend, part: int) -> None:
        if not backend.capabilities.parallel_parts:
            pytest.skip("no parallel_parts")
        data = noise(3 * part + 5)
        ranges = list(parts(len(data), part))
        upload = backend.upload("u/x")
        _send(upload, data, ranges[-1:])  # the last may be the first
        assert together(3, lambda i: _send(upload, data, [ranges[i]])) == [None] * 3
        upload.commit(crc32c=crc32c(data))
        assert self.raw_get("u/x") == data

    @pytest.mark.parametrize("missing", [0, 1])
    def test_of_unknown_size_a_missing_part_is_refused(
        self, backend: Backend, part: int, missing: int
    ) -> None:
        data = noise(2 * part + 7)
        ranges = list(parts(len(data), part))
        left = ranges.pop(missing)
        upload = backend.upload("u/x")
        _send(upload, data, ranges)
        with pytest.raises(TruncatedFileError, match="u/x"):
            upload.commit()
        _send(upload, data, [left])
        upload.commit(crc32c=crc32c(data))
        assert self.raw_get("u/x") == data

    def test_of_unknown_size_the_whole_is_checked(self, backend: Backend, part: int) -> None:
        """It alone tells of a last part that was never written."""
        data = noise(part + 7)
        for written in ([], [(0, part)]):
            upload = backend.upload("u/x")
            _send(upload, data, written)
            with pytest.raises(DamagedInTransitError):
                upload.commit(crc32c=crc32c(data))
            upload.abort()
        assert self.raw_list() == []
        assert list(self.raw_uploads()) == []

    def test_of_unknown_size_nothing_comes_behind_the_last_part(
        self, backend: Backend, part: int
    ) -> None:
        upload = backend.upload("u/x")
        _send(upload, noise(7), [(0, 7)])
        with pytest.raises((ValueError, TruncatedFileError)):
            upload.write(part, b"behind", crc32c(b"behind"))
            upload.commit()
        upload.abort()
        assert self.raw_list() == []
        assert list(self.raw_uploads()) == []

    def test_of_unknown_size_if_absent(self, backend: Backend) -> None:
        for data in (b"", b""), (b"first", b"first"):  # the same again is the same
            for each in data:
                upload = backend.upload("u/x" if each else "u/empty")
                _send(upload, each, [(0, len(each))] if each else [])
                assert upload.commit(if_absent=True).size == len(each)
        for key, other in (("u/x", b"other"), ("u/x", b""), ("u/empty", b"x")):
            upload = backend.upload(key)
            _send(upload, other, [(0, len(other))] if other else [])
            with pytest.raises(AlreadyExistsError):
                upload.commit(if_absent=True)
            upload.abort()
        assert (self.raw_get("u/x"), self.raw_get("u/empty")) == (b"first", b"")
        assert list(self.raw_uploads()) == []

    @pytest.mark.parametrize("written", [0, 1])
    def test_of_unknown_size_abort_leaves_nothing(
        self, backend: Backend, part: int, written: int
    ) -> None:
        upload = backend.upload("u/x")
        _send(upload, noise(part), [(0, part)] * written)
        upload.abort()
        upload.abort()
        with pytest.raises((StorageError, TruncatedFileError)):
            upload.commit()
        assert self.raw_list() == []
        assert list(self.raw_uploads()) == []

    def test_resume(self, backend: Backend, part: int) -> None:
        if not backend.capabilities.resumable_upload:
            pytest.skip("no resumable_upload")
        data = noise(part + 9)
        begun = backend.upload("u/x", len(data))
        _send(begun, data, [(0, part)])
        other = self.open()
        try:
            upload = other.upload("u/x", len(data), resume=begun.token)
            assert upload.done == [(0, part)]
            _send(upload, data, [(part, 9)])
            upload.commit(crc32c=crc32c(data))
        finally:
            other.close()
        assert self.raw_get("u/x") == data
        assert list(self.raw_uploads()) == []
