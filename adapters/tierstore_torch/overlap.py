"""Which stored bytes fill a tensor: from the chunks of any saving world to any part of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from tierstore.blocks import BLOCK_SIZE
from tierstore.checkpoint.fragment import FileEntry
from tierstore.checkpoint.manifest import Tensor
from tierstore.errors import PlanError
from tierstore.image.layout import Chunk
from tierstore.transfer.read import Want
from tierstore_torch import private
from tierstore_torch.items import byte_view, dtype_name

PIECE_BYTES = 32 * 1024**2
"""Bytes that a read through a buffer may span; memory in use is this times the threads."""

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """A box inside a stored chunk.

    Attributes:
        chunk: sizes of the chunk, which is stored in row-major order.
        start: the box's first element in the chunk.
        sizes: of the box.
    """

    chunk: Sizes
    start: Sizes
    sizes: Sizes

    @property
    def strides(self) -> Sizes:
        """Elements from one index to the next, for each dimension of the chunk."""
        return tuple(prod(self.chunk[axis + 1 :]) for axis in range(len(self.chunk)))

    @property
    def first(self) -> int:
        """Elements of the chunk before the box."""
        return sum(a * b for a, b in zip(self.start, self.strides, strict=True))

    @property
    def span(self) -> int:
        """Elements of the chunk from the first to the last of the box, both included."""
        return 1 + sum((n - 1) * s for n, s in zip(self.sizes, self.strides, strict=True))

    @property
    def elements(self) -> int:
        """Elements of the box."""
        return prod(self.sizes)

    @property
    def contiguous(self) -> bool:
        """Whether the box is one run of elements."""
        return self.span == self.elements

    def pieces(self, itemsize: int) -> Iterator[Region]:
        """Cut the box until each piece is small enough to be read with what lies between."""
        useful, span = self.elements * itemsize, self.span * itemsize
        dense = 2 * useful >= span or span <= 2 * BLOCK_SIZE
        if span <= PIECE_BYTES and dense:
            yield self
            return
        axis = next(axis for axis, size in enumerate(self.sizes) if size > 1)
        half = self.sizes[axis] // 2
        for begin, size in ((0, half), (half, self.sizes[axis] - half)):
            start = (*self.start[:axis], self.start[axis] + begin, *self.start[axis + 1 :])
            sizes = (*self.sizes[:axis], size, *self.sizes[axis + 1 :])
            yield from Region(self.chunk, start, sizes).pieces(itemsize)


def wants(
    saved: Tensor, files: Sequence[FileEntry], chunk: Chunk, target: torch.Tensor
) -> Iterator[Want]:
    """Yield the reads that fill `target`.

    Runs of bytes go straight into its memory if that is CPU memory of the stored dtype;
    everything else goes through bounded buffers and a converting copy.

    Args:
        saved: the stored tensor.
        files: the manifest's files.
        chunk: which part of the tensor `target` is.
        target: a tensor of `chunk.sizes` elements of any device, dtype and stride; written from
            several threads until the reads are done.

    Raises:
        PlanError: numbers would be lost: the saved dtype is complex, or has no conversion.
    """
    stored: torch.dtype = getattr(torch, saved.dtype)
    _check_conversion(saved.name, stored, target.dtype)
    offsets, sizes = np.asarray(chunk.offsets, np.int64), np.asarray(chunk.sizes, np.int64)
    low = np.maximum(saved.offsets, offsets)
    high = np.minimum(saved.offsets + saved.sizes, offsets + sizes)
    for index in np.flatnonzero((high > low).all(axis=1)).tolist():
        region = Region(
            tuple(saved.sizes[index].tolist()),
            tuple((low[index] - saved.offsets[index]).tolist()),
            tuple((high[index] - low[index]).tolist()),
        )
        at = tuple((low[index] - offsets).tolist())
        file = files[int(saved.files[index])].name
        yield from _region_wants(
            _Source(file, int(saved.byte_offsets[index]), stored), region, target, at
        )


@dataclass(frozen=True, slots=True)
class _Source:
    file: str
    offset: int  # of the chunk, bytes
    dtype: torch.dtype


def _region_wants(
    source: _Source, region: Region, target: torch.Tensor, at: Sizes
) -> Iterator[Want]:
    """Read one box into `target` from element `at` on."""
    itemsize = source.dtype.itemsize
    box = _part(target, at, region.sizes)
    if region.contiguous and _is_direct(box, source.dtype):
        into = byte_view(box)
        yield Want(source.file, source.offset + region.first * itemsize, into.nbytes, into=into)
        return
    for piece in region.pieces(itemsize):
        inner = tuple(a - b for a, b in zip(piece.start, region.start, strict=True))
        yield Want(
            source.file,
            source.offset + piece.first * itemsize,
            piece.span * itemsize,
            sink=_copier(source.dtype, piece, _part(box, inner, piece.sizes)),
        )


def _copier(
    dtype: torch.dtype, piece: Region, target: torch.Tensor
) -> Callable[[memoryview], None]:
    def copy(data: memoryview) -> None:
        flat = torch.frombuffer(data, dtype=torch.uint8).view(dtype)
        source = private.copyable(flat).as_strided(piece.sizes, piece.strides)
        with torch.no_grad():
            private.copyable(target).copy_(source)

    return copy


def _part(tensor: torch.Tensor, start: Sizes, sizes: Sizes) -> torch.Tensor:
    if tuple(tensor.shape) == sizes:
        return tensor
    return tensor[tuple(slice(a, a + n) for a, n in zip(start, sizes, strict=True))]


def _is_direct(box: torch.Tensor, dtype: torch.dtype) -> bool:
    plain: Any = box
    return (
        box.dtype == dtype
        and box.device.type == "cpu"
        and box.is_contiguous()
        and not plain.is_conj()
        and not plain.is_neg()
    )


def _check_conversion(name: str, stored: torch.dtype, target: torch.dtype) -> None:
    if stored == target:
        return
    numbers = stored.is_floating_point or stored.is_complex or stored in _INTEGERS
    fits = target.is_floating_point or target.is_complex or target in _INTEGERS
    if not (numbers and fits) or (stored.is_complex and not target.is_complex):
        raise PlanError(
            f"{name}: a {dtype_name(stored)} was saved, which a {dtype_name(target)} cannot hold"
        )


_INTEGERS = frozenset(
    getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
)
