"""Blocks: the unit of checking, caching, resuming and slice reading.

A stored file is a row of 4 MiB blocks, the last one shorter. Each block has one CRC32C
(Castagnoli; RFC 3720, section 12.1), taken once while its bytes are in the processor's cache. The
CRC of a part or of a whole file is combined from its blocks' CRCs, never by reading again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_SIZE = 4 * 1024 * 1024
"""Bytes in a block."""

ALIGNMENT = 4096
"""Bytes to which images, segments' data and direct I/O are aligned."""

Buffer = bytes | bytearray | memoryview
"""What the data path hands around: contiguous bytes, never copied."""


@cache
def _awscrt() -> tuple[Callable[[Buffer, int], int], Callable[[int, int, int], int]]:
    from awscrt import checksums  # imported late: 60 ms

    return checksums.crc32c, checksums.combine_crc32c


def crc32c(data: Buffer, previous: int = 0) -> int:
    """Return the CRC32C of `data`, continuing from `previous`. Releases the GIL."""
    return _awscrt()[0](data, previous)


def crc32c_of(buffers: Iterable[Buffer]) -> int:
    """Return the CRC32C of several buffers, one behind the other."""
    total = 0
    for buffer in buffers:
        total = crc32c(buffer, total)
    return total


def cut(buffers: Iterable[memoryview], start: int, length: int) -> Iterator[memoryview]:
    """Yield what lies in `length` bytes from `start` of buffers that are one behind the other."""
    for buffer in buffers:
        if length <= 0:
            return
        if start < buffer.nbytes:
            part = buffer[start : start + length]
            length -= part.nbytes
            start = 0
            yield part
        else:
            start -= buffer.nbytes


def copy(target: memoryview, source: memoryview) -> None:
    """Copy `source` into `target`, of the same length. Releases the GIL, as a slice would not."""
    import numpy as np

    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def crc32c_read(read: Callable[[int, memoryview], None], size: int, step: int = BLOCK_SIZE) -> int:
    """Return the CRC32C of an object, which is read for that.

    Args:
        read: fills a buffer with the object's bytes from an offset on.
        size: bytes of the object.
        step: bytes that are read at once.
    """
    buffer, crc = memoryview(bytearray(min(step, size))), 0
    for offset in range(0, size, step):
        view = buffer[: size - offset]
        read(offset, view)
        crc = crc32c(view, crc)
    return crc


def combine(parts: Iterable[tuple[int, int]]) -> int:
    """Return the CRC32C of neighbours, one behind the other, from the CRC32C and size of each."""
    total = 0
    for crc, size in parts:
        total = _awscrt()[1](total, crc, size)
    return total


def combine_parts(parts: Mapping[int, tuple[int, int]]) -> tuple[int, int]:
    """Return up to where a file's parts lie without a gap, and the CRC32C of that.

    Args:
        parts: by offset the size and the CRC32C of each.
    """
    at, held = 0, []
    for offset, (size, crc) in sorted(parts.items()):
        if offset != at:
            break
        held.append((crc, size))
        at += size
    return at, combine(held)


def block_count(size: int) -> int:
    """Return how many blocks a file of `size` bytes has; none when it is empty."""
    return -(-size // BLOCK_SIZE)


def block_range(index: int, size: int) -> tuple[int, int]:
    """Return the offset and the length of block `index` of a file of `size` bytes."""
    offset = index * BLOCK_SIZE
    return offset, min(BLOCK_SIZE, size - offset)


def blocks_covering(offset: int, length: int) -> range:
    """Return the indices of the blocks that hold `length` bytes from `offset`."""
    if length <= 0:
        return range(0)
    return range(offset // BLOCK_SIZE, block_count(offset + length))


def block_crcs(data: Buffer) -> list[int]:
    """Return the CRC32C of every block of a whole file held in memory."""
    view = memoryview(data)
    if 0 < len(view) <= BLOCK_SIZE:  # of a small object, which costs Python more than memory
        return [crc32c(view)]
    return [crc32c(view[at : at + BLOCK_SIZE]) for at in range(0, len(view), BLOCK_SIZE)]


def combine_blocks(crcs: Sequence[int], size: int) -> int:
    """Return the CRC32C of `size` bytes that start on a block boundary.

    Args:
        crcs: the CRCs of the blocks, in order; as many as `size` needs.
        size: bytes covered; only the last block may be short.
    """
    if len(crcs) == 1:
        return int(crcs[0])
    return combine((crc, block_range(index, size)[1]) for index, crc in enumerate(crcs))


def parts(size: int, part_size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the parts of a file; `part_size` is a whole number of blocks."""
    if part_size <= 0 or part_size % BLOCK_SIZE:
        raise ValueError(f"a part is a whole number of {BLOCK_SIZE} byte blocks, not {part_size}")
    for offset in range(0, size, part_size):
        yield offset, min(part_size, size - offset)
