"""Files that are put together while they are written: literal bytes and tensors, one after another.

Every conversion is this. An import writes segments whose tensors lie in foreign files; an export
writes foreign files whose tensors lie in segments. Only the part that is being sent is in memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

from tierstore.backend import Backend
from tierstore.image.layout import Chunk
from tierstore.transfer.part import Crcs
from tierstore.transfer.source import AlignedBuffers
from tierstore.transfer.write import FileWrite, write_files

MEMORY = 128 * 1024**2
"""Bytes of all parts that are in memory at a time, unless one part alone is larger."""


class HasChunk(Protocol):
    """A tensor, or a box of one, whose bytes can be had."""

    @property
    def chunk(self) -> Chunk:
        """What it is."""
        ...


T = TypeVar("T", bound=HasChunk)


@dataclass(frozen=True, slots=True)
class Slice(Generic[T]):
    """Some bytes of a tensor, counted in row-major order, and where they shall go."""

    item: T
    begin: int
    into: memoryview


Fill = Callable[[Sequence[Slice[T]]], None]
"""Fills every slice's memory; called from several threads."""


@dataclass(frozen=True, slots=True, eq=False)
class FilePlan(Generic[T]):
    """One file to write: its name below the target, and what it consists of."""

    name: str
    pieces: Sequence[bytes | T]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each piece."""
        return [len(p) if isinstance(p, bytes) else p.chunk.nbytes for p in self.pieces]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(self.sizes)


def write_plans(
    backend: Backend,
    plans: Sequence[FilePlan[T]],
    fill: Fill[T],
    *,
    crcs: Sequence[Crcs | None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Write files, reading each part right before it is sent; see `write_files`.

    Args:
        backend: where to.
        plans: the files; their names are keys.
        fill: gets at the tensors' bytes.
        crcs: for each file the CRC32C of its blocks, where they are known.
        progress: told the bytes of every part that was sent, from several threads.

    Returns:
        The CRC32C of every block, for each file.
    """
    capabilities = backend.capabilities
    width = capabilities.concurrency
    largest = max((capabilities.part_size_for(plan.size) for plan in plans), default=1)
    buffers = AlignedBuffers(capabilities.part_size, max(1, min(width, MEMORY // largest)))
    known = crcs or [None] * len(plans)
    writes = [
        FileWrite(plan.name, plan.size, _Assembled(plan, buffers, fill), crc)
        for plan, crc in zip(plans, known, strict=True)
    ]
    with ThreadPoolExecutor(width, thread_name_prefix="tierstore-convert") as pool:
        return write_files(backend, writes, pool=pool, progress=progress)


class _Assembled(Generic[T]):
    """A `BlockSource` of a plan."""

    def __init__(self, plan: FilePlan[T], buffers: AlignedBuffers, fill: Fill[T]) -> None:
        self._pieces = plan.pieces
        self._ends = list(accumulate(plan.sizes))
        self._buffers = buffers
        self._fill = fill

    @contextmanager
    def view(self, offset: int, length: int) -> Iterator[memoryview]:
        """See `BlockSource.view`."""
        with self._buffers.take(length) as part:
            slices = []
            at, end = offset, offset + length
            index = bisect_right(self._ends, at)
            while at < end:
                piece = self._pieces[index]
                stop = min(end, self._ends[index])
                target = part[at - offset : stop - offset]
                start = self._ends[index - 1] if index else 0
                if isinstance(piece, bytes):
                    target[:] = piece[at - start : stop - start]
                elif target.nbytes:
                    slices.append(Slice(piece, at - start, target))
                at, index = stop, index + 1
            self._fill(slices)
            yield part
