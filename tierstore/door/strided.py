"""Which reads fill an array with evenly spaced elements of a stored tensor.

What is one run of a file and of the array is received in place. The rest comes in pieces of at most
PIECE bytes of the file, out of which the elements are copied. No piece spans a gap of a block or
more: a block that holds nothing wanted is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tierstore.blocks import BLOCK_SIZE
from tierstore.image.dtypes import item_size
from tierstore.transfer.requests import Want

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tierstore.checkpoint.fragment import FileEntry
    from tierstore.checkpoint.manifest import Tensor

PIECE = 2 * BLOCK_SIZE
"""Bytes of a file that one piece spans at most."""


def strided_wants(
    tensor: Tensor,
    files: Mapping[int, FileEntry],
    starts: Sequence[int],
    steps: Sequence[int],
    into: NDArray[Any],
) -> Iterator[Want]:
    """Yield the reads that fill an array.

    Args:
        tensor: the stored tensor, in any number of chunks.
        files: those that it lies in, by their index in the manifest.
        starts: per dimension, the first element.
        steps: per dimension, from one element to the next; 1 or more.
        into: what is filled, of any strides. Its elements are of the tensor's size, or bytes; then
            it has one more, last dimension, of those of an element.
    """
    if not into.size:
        return
    start, step = np.asarray(starts, np.int64), np.asarray(steps, np.int64)
    low, sizes = tensor.offsets, tensor.sizes
    if into.ndim > len(tensor.shape):
        low = np.column_stack([low, np.zeros(len(low), np.int64)])
        sizes = np.column_stack([sizes, np.full(len(low), item_size(tensor.dtype))])
    # The indices in `into` of what lies in each chunk: from the first inside to the first behind.
    first = np.maximum(-((start - low) // step), 0)
    last = np.minimum(-((start - low - sizes) // step), into.shape)
    for chunk in np.flatnonzero((first < last).all(axis=1)).tolist():
        edges = zip(first[chunk].tolist(), last[chunk].tolist(), strict=True)
        inside: tuple[Any, ...] = (*(slice(a, b) for a, b in edges), ...)
        part = into[inside]
        strides = _strides(sizes[chunk].tolist(), into.itemsize)
        origin = (start + first[chunk] * step - low[chunk]).tolist()
        offset = sum(at * stride for at, stride in zip(origin, strides, strict=True))
        apart = [n * stride for n, stride in zip(steps, strides, strict=True)]
        file = files[int(tensor.files[chunk])].name
        yield from _part(file, int(tensor.byte_offsets[chunk]) + offset, part, apart)


def _strides(sizes: Sequence[int], width: int) -> list[int]:
    """Return the bytes from one element of a chunk to the next, per dimension."""
    strides = [width] * len(sizes)
    for axis in range(len(sizes) - 1, 0, -1):
        strides[axis - 1] = strides[axis] * sizes[axis]
    return strides


def _part(file: str, offset: int, part: NDArray[Any], strides: Sequence[int]) -> Iterator[Want]:
    """Yield the reads that fill a part whose elements lie so many bytes apart in a file."""
    if part.flags.c_contiguous and _is_run(part, strides):
        memory = part.reshape(-1).view(np.uint8)
        yield Want(file, offset, part.nbytes, into=memory.data)
        return
    axes = [axis for axis, length in enumerate(part.shape) if length > 1]
    span = part.itemsize + sum((part.shape[axis] - 1) * strides[axis] for axis in axes)
    if span <= PIECE and all(strides[axis] <= BLOCK_SIZE for axis in axes):
        yield Want(file, offset, span, sink=_copier(part, strides))
        return
    axis = axes[0]
    rows = max(1, PIECE // strides[axis]) if strides[axis] <= BLOCK_SIZE else 1
    for at in range(0, part.shape[axis], rows):
        some = part[(slice(None),) * axis + (slice(at, at + rows),)]
        yield from _part(file, offset + at * strides[axis], some, strides)


def _is_run(part: NDArray[Any], strides: Sequence[int]) -> bool:
    """Whether the elements of a part lie in the file one behind the other."""
    expected = part.itemsize
    for length, stride in zip(reversed(part.shape), reversed(strides), strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True


def _copier(part: NDArray[Any], strides: Sequence[int]) -> Callable[[memoryview], None]:
    def copy(data: memoryview) -> None:
        np.copyto(part, np.ndarray(part.shape, part.dtype, data, strides=strides))

    return copy
