"""Segments whose bytes are still in the tensors that a planner hands out.

Nothing is staged for a `dcp.save`, which blocks anyway: a part of a file that lies in one stretch
of memory (inside a large tensor, or anywhere in a staged image) is lent as it is, any other is put
together in a small buffer (`tierstore.transfer.pieces`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tierstore.errors import PlanError
from tierstore.image.layout import Chunk, ImageLayout
from tierstore.transfer.pieces import PiecedSource, Slice, Stretch, segment_pieces
from tierstore.transfer.source import AlignedBuffers
from tierstore_torch import torch_private
from tierstore_torch.state.items import byte_view, check_numbers, dtype_name, is_storable


@dataclass(slots=True)
class Piece:
    """One chunk in a file.

    Attributes:
        chunk: what it is.
        resolve: returns the tensor; called again if all its bytes are asked for again.
    """

    chunk: Chunk
    resolve: Callable[[], torch.Tensor]
    _memory: torch.Tensor | None = None
    _left: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

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


def _fill(slices: Sequence[Slice[Piece]]) -> None:
    for part in slices:
        bytes_of = part.item.memory().numpy()
        into = np.frombuffer(part.into, np.uint8)
        np.copyto(into, bytes_of[part.begin : part.begin + len(into)])  # releases the GIL


def _lend(stretches: Sequence[Stretch[Piece]]) -> memoryview | None:
    """Return the bytes if they lie side by side in one tensor's storage."""
    tensors = [stretch.item.memory() for stretch in stretches]
    at = tensors[0].data_ptr()
    storage = tensors[0].untyped_storage()
    for tensor in tensors:
        if tensor.data_ptr() != at or tensor.untyped_storage().data_ptr() != storage.data_ptr():
            return None
        at += tensor.numel()
    start = tensors[0].storage_offset() + stretches[0].begin
    length = sum(stretch.length for stretch in stretches)
    whole = torch.empty(0, dtype=torch.uint8, device="cpu")
    whole.set_(storage, start, (length,), (1,))
    return byte_view(whole)


def _sent(stretches: Sequence[Stretch[Piece]]) -> None:
    for stretch in stretches:
        stretch.item.used(stretch.length)


def gather_sources(
    layout: ImageLayout,
    chunks: Sequence[Chunk],
    resolvers: Sequence[Callable[[], torch.Tensor]],
    buffers: AlignedBuffers,
) -> list[PiecedSource[Piece]]:
    """Return the source of each segment of a layout.

    Args:
        layout: of `chunks`.
        chunks: what to save.
        resolvers: parallel to `chunks`; each returns its tensor.
        buffers: as large as the largest part that will be asked for.
    """
    pieces = [Piece(chunk, resolve) for chunk, resolve in zip(chunks, resolvers, strict=True)]
    return [
        PiecedSource(row, buffers, _fill, lend=_lend, sent=_sent)
        for row in segment_pieces(layout, pieces)
    ]
