"""The bytes of a tensor in row-major order, a few at a time, whatever its strides are."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch

from tierstore.convert.ranges import boxes
from tierstore_torch import torch_private


def is_row_major(tensor: torch.Tensor) -> bool:
    """Whether a tensor's bytes lie in row-major order as they are."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def strided_reader(tensor: torch.Tensor) -> Callable[[int, memoryview], None]:
    """Return what reads the bytes of a tensor on the CPU, of any stride."""
    width = tensor.element_size()
    shape = tuple(tensor.shape)

    def read(begin: int, into: memoryview) -> None:
        end = begin + into.nbytes
        first, last = begin // width, -(-end // width)
        whole = begin % width == 0 and end % width == 0
        memory = into if whole else memoryview(bytearray((last - first) * width))
        target = torch.frombuffer(memory, dtype=torch.uint8)
        at = 0
        for low, high in boxes(shape, first, last):
            lengths = [b - a for a, b in zip(low, high, strict=True)]
            box = tensor[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            part = target[at : at + prod(lengths) * width].view(tensor.dtype).view(lengths)
            with torch.no_grad():
                torch_private.copyable(part).copy_(torch_private.copyable(box))
            at += prod(lengths) * width
        if not whole:
            into[:] = memory[begin - first * width : end - first * width]

    return read
