"""CRC32Cs of blocks, combined, and of objects that are read for it."""

from __future__ import annotations

import random

import pytest

from tierstore.blocks import (
    BLOCK_SIZE,
    block_crcs,
    combine,
    combine_blocks,
    combine_parts,
    crc32c,
    crc32c_read,
)

DATA = random.Random(3).randbytes(2 * BLOCK_SIZE + 5)


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE + 5])
def test_of_blocks_the_whole_is_combined(size: int) -> None:
    data = DATA[:size]
    crcs = block_crcs(data)
    assert crcs == [crc32c(data[at : at + BLOCK_SIZE]) for at in range(0, size, BLOCK_SIZE)]
    assert combine_blocks(crcs, size) == crc32c(data)


def test_neighbours_of_any_size_are_combined() -> None:
    pieces = [b"", DATA[:7], DATA[7:100], b"", DATA[100:101]]
    assert combine([]) == 0
    assert combine((crc32c(piece), len(piece)) for piece in pieces) == crc32c(DATA[:101])


def test_parts_count_up_to_the_first_gap() -> None:
    parts = {5: (3, crc32c(b"efg")), 0: (5, crc32c(b"abcde")), 9: (1, crc32c(b"x"))}
    assert combine_parts(parts) == (8, crc32c(b"abcdeefg"))
    del parts[0]
    assert combine_parts(parts) == (0, 0)


@pytest.mark.parametrize("size", [0, 1, 100, 101])
def test_what_is_read_for_it_is_read_in_steps(size: int) -> None:
    asked: list[tuple[int, int]] = []

    def read(offset: int, buffer: memoryview) -> None:
        asked.append((offset, len(buffer)))
        buffer[:] = DATA[offset : offset + len(buffer)]

    assert crc32c_read(read, size, 50) == crc32c(DATA[:size])
    assert sum(length for _, length in asked) == size
    assert all(length <= 50 for _, length in asked)
