"""A run of a stored tensor's bytes, in row-major order, however the tensor was sharded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tierstore.checkpoint.manifest import Tensor
from tierstore.image.dtypes import item_size
from tierstore.transfer.requests import Want

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""(first element, element behind the last) in each dimension."""

_Bytes = npt.NDArray[np.uint8]


def boxes(shape: Sequence[int], begin: int, end: int) -> Iterator[Box]:
    """Cut the elements from `begin` to `end`, counted in row-major order, into boxes, in order.

    There are at most two a dimension. Behind its first longer side each has a tensor's full sides,
    so in any part of the tensor that it crosses, what they share is one run.
    """
    if begin >= end:
        return
    if not shape:
        yield (), ()
        return
    rest = shape[1:]
    row = prod(rest)
    whole_from, whole_to = -(-begin // row), end // row
    if whole_from > whole_to:  # within one row
        yield from _in_row(whole_to, rest, begin - whole_to * row, end - whole_to * row)
        return
    if begin < whole_from * row:
        yield from _in_row(whole_from - 1, rest, begin - (whole_from - 1) * row, row)
    if whole_from < whole_to:
        yield (whole_from, *(0 for _ in rest)), (whole_to, *rest)
    yield from _in_row(whole_to, rest, 0, end - whole_to * row)


def _in_row(index: int, rest: Sequence[int], begin: int, end: int) -> Iterator[Box]:
    for low, high in boxes(rest, begin, end):
        yield (index, *low), (index + 1, *high)


def range_wants(
    tensor: Tensor, files: Sequence[str], begin: int, into: memoryview
) -> Iterator[Want]:
    """Yield the reads that fill `into` with the bytes of a tensor from `begin` on.

    Args:
        tensor: the stored tensor.
        files: the names of the manifest's files, in its order.
        begin: the first byte, counted in the tensor's row-major order.
        into: what is filled.
    """
    if tensor.only_place is not None:
        file, offset = tensor.only_place
        yield Want(files[file], offset + begin, into.nbytes, into=into)
        return
    width = item_size(tensor.dtype)  # bytes are one dimension more: a range may cut an element
    count = len(tensor.files)
    low_edges = np.column_stack([tensor.offsets, np.zeros(count, np.int64)])
    sizes = np.column_stack([tensor.sizes, np.full(count, width)])
    at = 0
    for low, high in boxes((*tensor.shape, width), begin, begin + into.nbytes):
        lengths = tuple(b - a for a, b in zip(low, high, strict=True))
        target = np.frombuffer(into, np.uint8, prod(lengths), at).reshape(lengths)
        at += prod(lengths)
        lows = np.maximum(low_edges, low)
        highs = np.minimum(low_edges + sizes, high)
        for index in np.flatnonzero((highs > lows).all(axis=1)).tolist():
            part = target[_slices(lows[index] - low, highs[index] - low)]
            first = np.ravel_multi_index((lows[index] - low_edges[index]).tolist(), sizes[index])
            offset = int(tensor.byte_offsets[index]) + int(first)
            yield _want(files[int(tensor.files[index])], offset, part)


def _slices(low: Any, high: Any) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))


def _want(file: str, offset: int, part: _Bytes) -> Want:
    if part.flags.c_contiguous:
        return Want(file, offset, part.nbytes, into=part.reshape(-1).data)
    return Want(file, offset, part.nbytes, sink=_copier(part))


def _copier(part: _Bytes) -> Callable[[memoryview], None]:
    def copy(data: memoryview) -> None:
        part[...] = np.frombuffer(data, np.uint8).reshape(part.shape)

    return copy
