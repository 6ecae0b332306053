"""Reading wanted bytes: only the covering blocks, verified, from the first tier that has them."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest

from tierstore.backend import Backend
from tierstore.backends.local.backend import LocalBackend
from tierstore.backends.memory import MemoryBackend
from tierstore.blocks import BLOCK_SIZE, block_count, block_crcs
from tierstore.checkpoint.fragment import FileEntry
from tierstore.errors import (
    AccessError,
    CorruptBlockError,
    DeadlineError,
    FormatError,
    NotFoundError,
    UnreachableError,
)
from tierstore.keys import Attempt, RunKeys
from tierstore.transfer.read import ReadReport, Replica, Want, fetch
from tierstore.transfer.requests import even_size
from tierstore.transfer.verify import verify_files
from tierstore.wrappers.faults import Fault, Faulty

pytestmark = pytest.mark.usefixtures("no_leaks")

KEYS = RunKeys("r").attempt(Attempt(1, 1, 1), "0" * 16)
NAMES = ("00000-000.safetensors", "00000-001.safetensors")
CONTENTS = {
    NAMES[0]: random.Random(1).randbytes(7 * BLOCK_SIZE + 999),
    NAMES[1]: random.Random(2).randbytes(BLOCK_SIZE // 2),
}
FILES = {
    name: FileEntry(name, len(content), block_crcs(content)) for name, content in CONTENTS.items()
}


def fill(backend: Backend) -> Backend:
    for name, content in CONTENTS.items():
        backend.create(KEYS.segment(name), content)
    return backend


@pytest.fixture
def good(tmp_path: Path) -> Backend:
    return fill(MemoryBackend(f"memory://{tmp_path.name}"))


@pytest.fixture
def local(tmp_path: Path) -> Backend:
    return fill(LocalBackend(str(tmp_path / "tier")))


def replica(backend: Backend, tier: str = "first") -> Replica:
    return Replica(tier, backend, KEYS)


def read(ranges: list[tuple[str, int, int]], *replicas: Replica, sinks: bool = False) -> ReadReport:
    """Fetch ranges, compare every byte, and return the report."""
    got: list[bytearray] = [bytearray(length) for _, _, length in ranges]

    def sink(index: int, view: memoryview) -> None:
        got[index] = bytearray(view)

    wants = [
        Want(name, offset, length, sink=lambda view, index=index: sink(index, view))
        if sinks
        else Want(name, offset, length, into=memoryview(got[index]))
        for index, (name, offset, length) in enumerate(ranges)
    ]
    report = fetch(wants, FILES, replicas)
    for (name, offset, length), found in zip(ranges, got, strict=True):
        assert found == CONTENTS[name][offset : offset + length]
    assert report.bytes_wanted == sum(length for _, _, length in ranges)
    return report


def flip(backend: Backend, name: str, at: int) -> None:
    content = bytearray(CONTENTS[name])
    content[at] ^= 1
    backend.create(KEYS.segment(name), bytes(content))


RANGES = {
    "nothing": [],
    "empty": [(NAMES[0], 5, 0)],
    "one byte": [(NAMES[0], 2 * BLOCK_SIZE, 1)],
    "across an edge": [(NAMES[0], BLOCK_SIZE - 1, 2)],
    "whole files": [(name, 0, len(content)) for name, content in CONTENTS.items()],
    "large, unaligned": [(NAMES[0], 4096, 6 * BLOCK_SIZE)],
    "the short last block": [(NAMES[0], 7 * BLOCK_SIZE, 999)],
    "overlapping": [(NAMES[0], 0, 3 * BLOCK_SIZE), (NAMES[0], BLOCK_SIZE, BLOCK_SIZE)],
    "three in one block, one of them in another": [
        (NAMES[0], 10, 3 * BLOCK_SIZE),
        (NAMES[0], 5 * BLOCK_SIZE, 9),
        (NAMES[0], 2 * BLOCK_SIZE + 5, 100),
        (NAMES[0], 4 * BLOCK_SIZE - 1, BLOCK_SIZE),
    ],
    "the same twice": [(NAMES[0], 0, BLOCK_SIZE)] * 2,
    "small and scattered": [(NAMES[0], at, 1000) for at in range(0, 7 * BLOCK_SIZE, 100_000)],
    "small and dense, backwards": [
        (NAMES[0], at, 65_536) for at in reversed(range(0, 2 * BLOCK_SIZE, 65_536))
    ],
}


@pytest.mark.parametrize("sinks", [False, True], ids=["into", "sink"])
@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES.keys())
def test_every_kind_of_want(
    good: Backend, local: Backend, ranges: list[tuple[str, int, int]], *, sinks: bool
) -> None:
    for backend in (good, local):
        report = read(ranges, replica(backend), sinks=sinks)
        blocks = {
            (name, block)
            for name, offset, length in ranges
            for block in range(offset // BLOCK_SIZE, block_count(offset + length))
            if length
        }
        most = len(blocks) * BLOCK_SIZE
        assert report.bytes_read <= most
        assert not report.damaged


def test_random_wants_against_the_bytes_themselves(local: Backend) -> None:
    rng = random.Random(3)
    for _ in range(20):
        ranges = []
        for _ in range(rng.randrange(1, 60)):
            name = rng.choice(NAMES)
            offset = rng.randrange(len(CONTENTS[name]))
            longest = rng.choice([100, 10**5, 10**8])
            length = min(rng.randrange(longest), len(CONTENTS[name]) - offset)
            ranges.append((name, offset, length))
        read(ranges, replica(local), sinks=rng.random() < 0.5)


def test_a_4_mib_slice_reads_two_blocks(good: Backend) -> None:
    assert read([(NAMES[0], 5000, BLOCK_SIZE)], replica(good)).bytes_read == 2 * BLOCK_SIZE


def test_a_flipped_byte_comes_from_the_next_tier(
    good: Backend, local: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    flip(good, NAMES[0], 3 * BLOCK_SIZE + 7)
    with caplog.at_level(logging.WARNING):
        report = read(RANGES["whole files"], replica(good), replica(local, "second"))
    assert [(d.tier, d.block) for d in report.damaged] == [("first", 3)]
    assert "CRC32C" in report.damaged[0].outcome
    assert "block 3 on tier first" in caplog.text


def test_a_truncated_file_comes_from_the_next_tier_from_where_it_ends(
    good: Backend, local: Backend
) -> None:
    good.create(KEYS.segment(NAMES[0]), CONTENTS[NAMES[0]][: 5 * BLOCK_SIZE + 3])
    for ranges in (RANGES["whole files"], RANGES["small and scattered"]):
        report = read(ranges, replica(good), replica(local, "second"))
        damaged = {(d.tier, d.block) for d in report.damaged}
        assert ("first", 5) in damaged
        assert damaged <= {("first", n) for n in (5, 6, 7)}


def test_damage_on_every_tier_names_file_block_and_tiers(good: Backend, local: Backend) -> None:
    flip(good, NAMES[0], 2 * BLOCK_SIZE)
    local.create(KEYS.segment(NAMES[0]), CONTENTS[NAMES[0]][:BLOCK_SIZE])
    with pytest.raises(CorruptBlockError) as caught:
        read([(NAMES[0], 2 * BLOCK_SIZE + 5, 10)], replica(good), replica(local, "second"))
    assert (caught.value.file, caught.value.block) == (NAMES[0], 2)
    text = str(caught.value)
    assert "first: CRC32C" in text
    assert "second: " in text
    assert "are wanted" in text or "bytes" in text


def test_a_byte_flipped_on_its_way_is_read_again(good: Backend) -> None:
    faulty = Faulty(good, Fault("read_into", flip=100))
    report = read([(NAMES[0], 0, BLOCK_SIZE)], replica(faulty))
    assert [(d.tier, d.block) for d in report.damaged] == [("first", 0)]
    assert report.requests == 2


@pytest.mark.parametrize(
    "error", [UnreachableError("no route"), AccessError("expired"), DeadlineError("stalled")]
)
def test_a_tier_that_cannot_be_reached_is_asked_only_by_who_is_in_flight(
    good: Backend, local: Backend, error: Exception
) -> None:
    faulty = Faulty(good, Fault("read_into", times=10**6, error=error))
    ranges = [(NAMES[0], block * BLOCK_SIZE, BLOCK_SIZE) for block in range(7)]
    read(ranges, replica(faulty), replica(local, "second"))
    assert 0 < len(faulty.calls) <= good.capabilities.concurrency
    with pytest.raises(type(error), match=str(error)):
        read(ranges, replica(faulty))


def test_not_found_anywhere_is_not_found(good: Backend, local: Backend) -> None:
    good.delete([KEYS.segment(NAMES[1])])
    read([(NAMES[1], 0, 10)], replica(good), replica(local, "second"))
    local.delete([KEYS.segment(NAMES[1])])
    with pytest.raises(NotFoundError):
        read([(NAMES[1], 0, 10)], replica(good), replica(local, "second"))


def test_a_fault_at_any_read_is_made_good_by_the_next_tier(good: Backend, local: Backend) -> None:
    ranges = RANGES["whole files"] + RANGES["small and scattered"]
    for nth in range(1, 99):
        for fault in (
            Fault("read_into", nth=nth, flip=50),
            Fault("read_into", nth=nth, error=UnreachableError("reset")),
        ):
            faulty = Faulty(good, fault)
            report = read(ranges, replica(faulty), replica(local, "second"))
            assert bool(report.damaged) == (nth <= len(faulty.calls))
        if nth > len(faulty.calls):
            break
    assert nth > 5


def test_wants_that_fit_no_file_or_no_memory_are_refused(good: Backend) -> None:
    short = memoryview(bytearray(10))
    for offset, length in ((len(CONTENTS[NAMES[1]]) - 5, 10), (-1, 10)):
        with pytest.raises(FormatError, match="are wanted of a file"):
            fetch([Want(NAMES[1], offset, length, into=short)], FILES, [replica(good)])
    with pytest.raises(FormatError, match="does not have this file"):
        fetch([Want("x", 0, 10, into=short)], FILES, [replica(good)])
    with pytest.raises(ValueError, match="10 writable bytes for 11"):
        Want(NAMES[0], 0, 11, into=short)
    with pytest.raises(ValueError, match="read-only"):
        Want(NAMES[0], 0, 10, into=short.toreadonly())
    with pytest.raises(ValueError, match="either"):
        Want(NAMES[0], 0, 10)


@pytest.mark.parametrize(
    ("wanted", "size"),
    [(0, 1), (1, 1), (8, 1), (9, 2), (8 * 16, 16), (8 * 16 + 1, 9), (8 * 16 * 5 + 7, 14)],
)
def test_requests_of_one_size_keep_all_workers_busy_to_the_end(wanted: int, size: int) -> None:
    assert even_size(wanted * BLOCK_SIZE, 16 * BLOCK_SIZE, 8) == size * BLOCK_SIZE


def test_an_error_of_a_sink_ends_the_fetch(good: Backend) -> None:
    def sink(view: memoryview) -> None:
        raise RuntimeError(f"no room for {len(view)} bytes")

    with pytest.raises(RuntimeError, match="no room for 7 bytes"):
        fetch([Want(NAMES[0], 3, 7, sink=sink)], FILES, [replica(good)])


def test_verify_names_every_bad_block_and_goes_on(good: Backend) -> None:
    assert [check.damage for check in verify_files(replica(good), FILES.values())] == [(), ()]
    damaged = bytearray(CONTENTS[NAMES[0]])
    damaged[5] ^= 1
    damaged[4 * BLOCK_SIZE] ^= 1
    good.create(KEYS.segment(NAMES[0]), bytes(damaged[: 6 * BLOCK_SIZE]))
    good.delete([KEYS.segment(NAMES[1])])
    done: list[int] = []
    first, second = verify_files(replica(good), FILES.values(), progress=done.append)
    assert [found.block for found in first.damage] == [0, 4, 6, 7]
    assert second.damage[0].outcome.endswith("no such object")
    assert sum(done) == len(CONTENTS[NAMES[0]])
    good.create(KEYS.segment(NAMES[0]), CONTENTS[NAMES[0]] + b"more")
    (check,) = verify_files(replica(good), [FILES[NAMES[0]]])
    assert [found.outcome for found in check.damage] == ["4 bytes too many"]
