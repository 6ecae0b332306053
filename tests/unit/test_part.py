"""Moving one part: checked before it is sent, read back where the store needs it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tierstore.backend import Backend, Capabilities, Upload
from tierstore.backends.local.backend import LocalBackend, LocalOptions
from tierstore.backends.memory import MemoryBackend
from tierstore.blocks import BLOCK_SIZE, block_crcs, crc32c
from tierstore.errors import IntegrityError
from tierstore.transfer.part import Wrong, crc_at, move, reads_back, wrong, wrong_at
from tierstore.transfer.source import AlignedBuffers, MemorySource, RevokedError, StoredSource
from tierstore.wrappers.faults import Fault, Faulty

DATA = random.Random(7).randbytes(2 * BLOCK_SIZE + 99)
CRCS = block_crcs(DATA)
BUFFERS = AlignedBuffers(len(DATA), 2)


def blame(bad: Wrong) -> IntegrityError:
    return IntegrityError(f"block {bad.block}: {bad}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryBackend]:
    memory = MemoryBackend(f"memory://{tmp_path.name}")
    yield memory
    memory.close()


@pytest.mark.parametrize(
    ("capabilities", "save", "migration"),
    [
        (Capabilities(), True, True),  # the weakest: nothing is known of it
        (Capabilities(needs_read_back=False), False, True),  # such as a disk
        (Capabilities(needs_read_back=False, server_checksum=True), False, False),
    ],
)
def test_when_what_was_written_is_read_back(
    capabilities: Capabilities, *, save: bool, migration: bool
) -> None:
    assert reads_back(capabilities, verify=False) is save
    assert reads_back(capabilities, verify=True) is migration


def test_a_folder_without_fsync_does_not_say_that_it_is_durable(tmp_path: Path) -> None:
    assert LocalBackend(str(tmp_path)).capabilities.durable_on_commit
    hasty = LocalBackend(str(tmp_path), LocalOptions(fsync=False)).capabilities
    assert not hasty.durable_on_commit
    assert not hasty.needs_read_back


def test_a_part_arrives_and_its_crcs_are_told(store: MemoryBackend) -> None:
    upload = store.upload("x", len(DATA))
    source = MemorySource(memoryview(DATA))
    moved = move(upload, source, 0, len(DATA), known=CRCS, blame=blame)
    assert moved == (CRCS, crc32c(DATA), False)
    upload.commit(crc32c=moved.crc)
    memory = memoryview(bytearray(len(DATA)))
    assert crc_at(store, "x", 0, memory) == crc32c(DATA)
    assert bytes(memory) == DATA


@pytest.mark.parametrize("known", [None, []], ids=["none", "empty"])
def test_without_known_crcs_the_source_is_believed(
    store: MemoryBackend, known: list[int] | None
) -> None:
    upload, source = store.upload("x", len(DATA)), MemorySource(memoryview(DATA))
    assert move(upload, source, 0, len(DATA), known=known, blame=blame).crcs == CRCS
    upload.abort()


def test_a_wrong_block_is_not_sent(store: MemoryBackend) -> None:
    faulty = Faulty(store)
    known = [*CRCS[:2], CRCS[2] ^ 1]
    source, offset = MemorySource(memoryview(DATA)), 2 * BLOCK_SIZE
    upload = faulty.upload("x", len(DATA))
    with pytest.raises(IntegrityError, match=f"block 2: CRC32C {CRCS[2]:08x} instead of"):
        move(upload, source, offset, 99, known=known, blame=blame)
    assert not [call for call in faulty.calls if call.operation == "write"]
    upload.abort()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_part_is_proven_by_what_the_store_gives_back(
    store: MemoryBackend, *, damaged: bool
) -> None:
    faults = [Fault("read_into", flip=5)] if damaged else []
    upload = Faulty(store, *faults).upload("x", len(DATA))
    source = MemorySource(memoryview(DATA))
    moved = move(upload, source, 0, len(DATA), known=None, blame=blame, back=BUFFERS)
    assert moved.proven is not damaged
    upload.abort()


def test_a_store_that_cannot_be_read_before_the_commit_proves_nothing(
    store: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload: Upload = store.upload("x", len(DATA))
    monkeypatch.setattr(upload, "read_back", lambda _offset, _buffer: False, raising=False)
    source = MemorySource(memoryview(DATA))
    assert not move(upload, source, 0, len(DATA), known=None, blame=blame, back=BUFFERS).proven
    upload.abort()


def test_a_part_whose_memory_was_wanted_elsewhere_is_sent_again(store: MemoryBackend) -> None:
    views: list[int] = []

    class Revoked:
        @contextmanager
        def view(self, offset: int, length: int) -> Iterator[memoryview]:
            views.append(offset)
            with MemorySource(memoryview(DATA)).view(offset, length) as part:
                yield part
            if len(views) < 3:
                raise RevokedError

    upload = store.upload("x", len(DATA))
    move(upload, Revoked(), 0, len(DATA), known=CRCS, blame=blame)
    assert views == [0, 0, 0]
    upload.commit(crc32c=crc32c(DATA))


def test_a_stored_object_is_a_source(store: MemoryBackend) -> None:
    store.create("from", DATA)
    store.create("empty", b"")
    upload = store.upload("x", len(DATA))
    for offset, length in ((0, BLOCK_SIZE), (BLOCK_SIZE, BLOCK_SIZE + 99)):
        source = StoredSource(store, "from", BUFFERS)
        move(upload, source, offset, length, known=CRCS, blame=blame)
    upload.commit(crc32c=crc32c(DATA))
    with StoredSource(store, "empty", BUFFERS).view(0, 0) as part:
        assert not part.nbytes


def test_wrong_blocks_are_found_over_pieces_of_memory() -> None:
    memory = memoryview(bytearray(DATA))
    memory[BLOCK_SIZE + 3] ^= 1
    at = 0
    pieces = []
    for size in (100, BLOCK_SIZE, 1, len(DATA)):
        pieces.append(memory[at : at + size])
        at += size
    bad = [Wrong(1, block_crcs(memory)[1], CRCS[1])]
    assert wrong(pieces, 0, CRCS) == wrong([memory], 0, CRCS) == bad
    assert wrong([memory[BLOCK_SIZE:]], BLOCK_SIZE, CRCS) == bad
    assert not wrong([memory[2 * BLOCK_SIZE :]], 2 * BLOCK_SIZE, CRCS)


def test_what_a_store_holds_is_compared_block_by_block(store: Backend) -> None:
    store.create("x", DATA)
    memory = memoryview(bytearray(99))
    assert not wrong_at(store, "x", 2 * BLOCK_SIZE, memory, CRCS)
    assert wrong_at(store, "x", 2 * BLOCK_SIZE, memory, [0, 0, 1]) == [Wrong(2, CRCS[2], 1)]
