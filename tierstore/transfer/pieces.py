"""Files that are put together while they are written: literal bytes and tensors, without gaps.

Conversions and `dcp.save` write such files. Only the part that is being sent is in memory, and not
even that where all of it lies side by side in memory that somebody has.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, NamedTuple, Protocol, TypeVar

from tierstore.blocks import copy
from tierstore.errors import CheckpointError
from tierstore.image.layout import Chunk, ImageLayout
from tierstore.transfer.source import AlignedBuffers


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


class Stretch(NamedTuple, Generic[T]):
    """Some bytes of a tensor, counted in row-major order: at least one."""

    item: T
    begin: int
    length: int


Fill = Callable[[Sequence[Slice[T]]], None]
"""Fills every slice's memory; called from several threads."""
Lend = Callable[[Sequence[Stretch[T]]], memoryview | None]
"""Returns the bytes of stretches if they lie side by side in memory."""
Sent = Callable[[Sequence[Stretch[T]]], None]
"""Told what has been sent; not if that failed."""


def sizes_of(pieces: Sequence[bytes | HasChunk]) -> list[int]:
    """Return the bytes of each piece of a file."""
    return [len(p) if isinstance(p, bytes) else p.chunk.nbytes for p in pieces]


def segment_pieces(layout: ImageLayout, items: Sequence[T]) -> list[list[bytes | T]]:
    """Return what each segment of a layout consists of: its header, then its tensors.

    Args:
        layout: where each tensor lies.
        items: the tensors, parallel to `layout.placements`.

    Raises:
        CheckpointError: they do not fill a segment as its header says.
    """
    rows: list[list[tuple[int, T]]] = [[] for _ in layout.segments]
    for item, place in zip(items, layout.placements, strict=True):
        rows[place.segment].append((place.offset, item))
    files: list[list[bytes | T]] = []
    for segment, row in zip(layout.segments, rows, strict=True):
        row.sort(key=lambda placed: (placed[0], placed[1].chunk.nbytes))  # empty ones come first
        files.append([segment.header, *(item for _, item in row)])
        if sum(sizes_of(files[-1])) != segment.size:
            raise CheckpointError(f"{segment.name} was not laid out as its header says")
    return files


class PiecedSource(Generic[T]):
    """The bytes of one file; see `tierstore.transfer.source.BlockSource`.

    Args:
        pieces: what it consists of, in order.
        buffers: where parts are put together.
        fill: gets at the tensors' bytes, at all of one part at once.
        lend: asked first.
        sent: told afterwards.
    """

    def __init__(
        self,
        pieces: Sequence[bytes | T],
        buffers: AlignedBuffers,
        fill: Fill[T],
        *,
        lend: Lend[T] = lambda _: None,
        sent: Sent[T] = lambda _: None,
    ) -> None:
        self._pieces = pieces
        self._ends = list(accumulate(sizes_of(pieces)))
        self._buffers = buffers
        self._fill, self._lend, self._sent = fill, lend, sent

    @contextmanager
    def view(self, offset: int, length: int) -> Iterator[memoryview]:
        """See `BlockSource.view`."""
        found = list(self._found(offset, length))
        tensors = [Stretch(p, at, size) for p, at, size in found if not isinstance(p, bytes)]
        whole = self._lend(tensors) if tensors and len(tensors) == len(found) else None
        if whole is not None:
            yield whole
        else:
            with self._buffers.take(length) as part:
                self._gather(found, part)
                yield part
        self._sent(tensors)

    def _found(self, offset: int, length: int) -> Iterator[tuple[bytes | T, int, int]]:
        """Yield what a range consists of: piece, first byte in it, bytes."""
        at, end = offset, offset + length
        index = bisect_right(self._ends, at)
        while at < end:
            stop = min(end, self._ends[index])
            start = self._ends[index - 1] if index else 0
            if stop > at:
                yield self._pieces[index], at - start, stop - at
            at, index = stop, index + 1

    def _gather(self, found: Sequence[tuple[bytes | T, int, int]], part: memoryview) -> None:
        slices = []
        for piece, begin, length in found:
            target, part = part[:length], part[length:]
            if isinstance(piece, bytes):
                copy(target, memoryview(piece)[begin : begin + length])
            else:
                slices.append(Slice(piece, begin, target))
        self._fill(slices)
