"""Which stored bytes fill a tensor: from the chunks of any saving world to any part of a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tierstore.checkpoint.manifest import Tensor
from tierstore.errors import PlanError
from tierstore.image.layout import Chunk
from tierstore.transfer.read import Want
from tierstore_torch.state.items import byte_view, dtype_name, dtype_named, is_plain
from tierstore_torch.state.regions import region_wants, takes_bytes

_INTEGERS = frozenset(
    getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
)


def whole_want(saved: Tensor, files: Sequence[str], value: Any) -> Want | None:
    """Return the one read that fills a plain tensor whose bytes lie side by side.

    Most tensors are such, and there may be many: this takes a third of the time of `wants`, which
    does all others, for which this returns None.

    Args:
        saved: the stored tensor.
        files: the names of the manifest's files, in its order.
        value: a leaf of the state, of any kind.
    """
    if (
        saved.only_place is None
        or not is_plain(value)
        or value.shape != saved.shape
        or not takes_bytes(value, saved.dtype)
        or not value.numel()
    ):
        return None
    file, offset = saved.only_place
    return Want(files[file], offset, value.nbytes, into=byte_view(value))


def wants(
    saved: Tensor, files: Sequence[str], chunk: Chunk, target: torch.Tensor
) -> Iterator[Want]:
    """Yield the reads that fill `target`.

    Args:
        saved: the stored tensor.
        files: the names of the manifest's files, in its order.
        chunk: which part of the tensor `target` is.
        target: a tensor of `chunk.sizes` elements of any device, dtype and stride; written from
            several threads until the reads are done.

    Raises:
        PlanError: `target` has a dtype that cannot hold the saved numbers.
    """
    _check_conversion(saved.name, dtype_named(saved.dtype), target.dtype)
    if saved.only_place is not None and saved.shape == chunk.sizes:  # faster than the search
        file, offset = saved.only_place
        origin = (0,) * len(saved.shape)
        yield from region_wants(files[file], offset, saved.shape, saved.dtype, origin, target)
        return
    offsets, sizes = np.asarray(chunk.offsets, np.int64), np.asarray(chunk.sizes, np.int64)
    low = np.maximum(saved.offsets, offsets)
    high = np.minimum(saved.offsets + saved.sizes, offsets + sizes)
    for index in np.flatnonzero((high > low).all(axis=1)).tolist():
        lengths = (high[index] - low[index]).tolist()
        at = (low[index] - offsets).tolist()
        part = target
        if tuple(lengths) != tuple(target.shape):
            part = target[tuple(slice(a, a + n) for a, n in zip(at, lengths, strict=True))]
        yield from region_wants(
            files[int(saved.files[index])],
            int(saved.byte_offsets[index]),
            tuple(saved.sizes[index].tolist()),
            saved.dtype,
            tuple((low[index] - saved.offsets[index]).tolist()),
            part,
        )


def _check_conversion(name: str, stored: torch.dtype, target: torch.dtype) -> None:
    if stored == target:
        return
    converts = _is_number(stored) and _is_number(target)
    if not converts or (stored.is_complex and not target.is_complex):
        raise PlanError(
            f"{name}: a {dtype_name(stored)} was saved, which a {dtype_name(target)} cannot hold"
        )


def _is_number(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex or dtype in _INTEGERS
