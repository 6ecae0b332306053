"""A part of a stored chunk, as reads that end in a tensor.

Bytes go straight into the tensor where the part is one run of the file and the tensor takes it as
it is (same dtype, contiguous, on the CPU). Otherwise they come in bounded pieces, each seen with
the chunk's strides and copied, so dtype, device and stride of the tensor do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from tierstore.image.dtypes import item_size
from tierstore.transfer.requests import Want
from tierstore_torch.state.items import byte_view, dtype_name

PIECE = 8 * 1024 * 1024
"""Bytes of the file that one piece spans at most."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def region_wants(
    file: str,
    offset: int,
    sizes: tuple[int, ...],
    dtype: str,
    start: tuple[int, ...],
    into: torch.Tensor,
) -> Iterator[Want]:
    """Yield the reads that fill a tensor from a part of a chunk.

    Args:
        file: the file's name in the manifest.
        offset: where the chunk starts in it, in bytes.
        sizes: the chunk's shape.
        dtype: the stored dtype, torch's name without "torch.".
        start: the part's first element in the chunk.
        into: what is filled, of the part's shape; any dtype, device and stride. It is filled from
            other threads, so what is queued for its GPU is waited for first.
    """
    if not into.numel():
        return
    if into.is_cuda:
        torch.cuda.synchronize(into.device)
    into = into.detach()
    width = item_size(dtype)
    strides = _strides(sizes)
    first = offset + width * _dot(start, strides)
    if takes_bytes(into, dtype) and _is_run(sizes, tuple(into.shape)):
        yield Want(file, first, into.numel() * width, into=byte_view(into))
        return
    for at, part in _pieces(into, strides, width):
        span = _span(tuple(part.shape), strides) * width
        sink = _Piece(part, dtype, strides)
        yield Want(file, first + width * at, span, sink=sink)


def _strides(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(sizes[axis + 1 :]) for axis in range(len(sizes)))


def _dot(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first of a part to its last."""
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _is_run(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a part of this shape is without gaps in a chunk of these sizes."""
    return _span(shape, _strides(sizes)) == prod(shape)


def takes_bytes(tensor: torch.Tensor, dtype: str) -> bool:
    """Whether the stored bytes of a tensor of this dtype can be put into `tensor` as they are."""
    return (
        tensor.is_cpu
        and dtype_name(tensor.dtype) == dtype
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _pieces(
    into: torch.Tensor, strides: tuple[int, ...], width: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Cut a tensor into parts that span at most PIECE bytes; yield (first element, part)."""
    shape = tuple(into.shape)
    if _span(shape, strides) * width <= PIECE:
        yield 0, into
        return
    axis = next(axis for axis, length in enumerate(shape) if length > 1)
    step = max(1, PIECE // (strides[axis] * width))
    for low in range(0, shape[axis], step):
        part = into.narrow(axis, low, min(step, shape[axis] - low))
        for at, piece in _pieces(part, strides, width):
            yield low * strides[axis] + at, piece


class _Piece:
    """Takes the bytes that a part spans and copies its elements out of them."""

    def __init__(self, part: torch.Tensor, dtype: str, strides: tuple[int, ...]) -> None:
        self._part = part
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._strides = strides

    def __call__(self, data: memoryview) -> None:
        bytes_ = torch.frombuffer(data, dtype=torch.uint8)
        part, dtype = self._part, self._dtype
        if part.dtype == dtype and not part.is_conj() and not part.is_neg():
            # As plain numbers: torch has no copy kernel for some types, and NaNs keep their bits.
            dtype = _BITS[dtype.itemsize]
            part = part.view(dtype)
        with torch.inference_mode(part.is_inference()), torch.no_grad():  # this thread has no mode
            part.copy_(bytes_.view(dtype).as_strided(part.shape, self._strides))
