"""Segments whose bytes are still in the tensors that a planner hands out.

Nothing is staged for a `dcp.save`, which blocks anyway: a part of a file that lies in one stretch
of memory (inside a large tensor, or anywhere in a staged image) is lent as it is, any other is put
together in a small buffer.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from tierstore.errors import PlanError
from tierstore.image.layout import Chunk, ImageLayout
from tierstore.transfer.source import AlignedBuffers
from tierstore_torch import torch_private
from tierstore_torch.state.items import byte_view, check_numbers, dtype_name, is_storable


@dataclass(slots=True)
class Piece:
    """One chunk in a file.

    Attributes:
        offset: where its bytes start in the file.
        chunk: what it is.
        resolve: returns the tensor; called again if all its bytes are asked for again.
    """

    offset: int
    chunk: Chunk
    resolve: Callable[[], torch.Tensor]
    _memory: torch.Tensor | None = None
    _left: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def end(self) -> int:
        """Where its bytes end in the file."""
        return self.offset + self.chunk.nbytes

    def memory(self) -> torch.Tensor:
        """Return its bytes as a flat tensor on the CPU."""
        with self._lock:
            if self._memory is None:
                self._memory = self._resolved()
                self._left = self.chunk.nbytes
            return self._memory

    def used(self, length: int) -> None:
        """Count bytes that were sent; after the last a copy made for sending is dropped."""
        with self._lock:
            self._left -= length
            if self._left <= 0:
                self._memory = None

    @torch.no_grad()
    def _resolved(self) -> torch.Tensor:
        tensor = self.resolve().detach()
        chunk = self.chunk
        if not is_storable(tensor):
            raise PlanError(
                f"{chunk.name}: a {type(tensor).__name__} of layout {tensor.layout} has no plain "
                "bytes to save",
                hint="save its dense parts as tensors of their own",
            )
        if dtype_name(tensor.dtype) != chunk.dtype or tuple(tensor.shape) != chunk.sizes:
            raise PlanError(
                f"{chunk.name}: the plan says {chunk.dtype} of shape {chunk.sizes}, the state dict "
                f"holds {dtype_name(tensor.dtype)} of shape {tuple(tensor.shape)}",
                hint="plan caching does not notice a new dtype: save once without it",
            )
        check_numbers(chunk.name, tensor)
        plain = torch_private.copyable(tensor.resolve_conj().resolve_neg()).cpu().contiguous()
        return plain.view(-1).view(torch.uint8)


class GatherSource:
    """The bytes of one segment; see `tierstore.transfer.source.BlockSource`.

    Args:
        header: the file's first bytes.
        pieces: what follows, without gaps, in order.
        buffers: where parts are put together.
    """

    def __init__(self, header: bytes, pieces: Sequence[Piece], buffers: AlignedBuffers) -> None:
        self._header = header
        self._pieces = pieces
        self._starts = [piece.offset for piece in pieces]
        self._buffers = buffers

    @contextmanager
    def view(self, offset: int, length: int) -> Iterator[memoryview]:
        """Lend `length` bytes from `offset`."""
        end = offset + length
        inside = self._inside(offset, end)
        if (whole := self._stretch(inside, offset, end)) is not None:
            yield whole
        else:
            with self._buffers.take(length) as part:
                self._gather(inside, offset, np.frombuffer(part, np.uint8))
                yield part
        for piece in inside:
            piece.used(min(end, piece.end) - max(offset, piece.offset))

    def _inside(self, offset: int, end: int) -> Sequence[Piece]:
        first = max(0, bisect_right(self._starts, offset) - 1)
        last = bisect_right(self._starts, end - 1)
        return [p for p in self._pieces[first:last] if p.end > offset and p.chunk.nbytes]

    def _stretch(self, pieces: Sequence[Piece], offset: int, end: int) -> memoryview | None:
        """Return the bytes if they lie side by side in one tensor's storage."""
        if not pieces or offset < pieces[0].offset:
            return None
        tensors = [piece.memory() for piece in pieces]
        at = tensors[0].data_ptr()
        storage = tensors[0].untyped_storage()
        for tensor in tensors:
            if tensor.data_ptr() != at or tensor.untyped_storage().data_ptr() != storage.data_ptr():
                return None
            at += tensor.numel()
        start = tensors[0].storage_offset() + offset - pieces[0].offset
        stretch = torch.empty(0, dtype=torch.uint8, device="cpu")
        stretch.set_(storage, start, (end - offset,), (1,))
        return byte_view(stretch)

    def _gather(self, pieces: Sequence[Piece], offset: int, part: npt.NDArray[np.uint8]) -> None:
        if offset < len(self._header):
            head = np.frombuffer(self._header, np.uint8)[offset : offset + len(part)]
            np.copyto(part[: len(head)], head)
        end = offset + len(part)
        for piece in pieces:
            low, high = max(offset, piece.offset), min(end, piece.end)
            source = piece.memory().numpy()
            np.copyto(  # releases the GIL
                part[low - offset : high - offset],
                source[low - piece.offset : high - piece.offset],
            )


def gather_sources(
    layout: ImageLayout,
    chunks: Sequence[Chunk],
    resolvers: Sequence[Callable[[], torch.Tensor]],
    buffers: AlignedBuffers,
) -> list[GatherSource]:
    """Return the source of each segment of a layout.

    Args:
        layout: of `chunks`.
        chunks: what to save.
        resolvers: parallel to `chunks`; each returns its tensor.
        buffers: as large as the largest part that will be asked for.
    """
    pieces: list[list[Piece]] = [[] for _ in layout.segments]
    for chunk, place, resolve in zip(chunks, layout.placements, resolvers, strict=True):
        pieces[place.segment].append(Piece(place.offset, chunk, resolve))
    for row in pieces:
        row.sort(key=lambda piece: (piece.offset, piece.chunk.nbytes))
    return [
        GatherSource(segment.header, row, buffers)
        for segment, row in zip(layout.segments, pieces, strict=True)
    ]
