"""One leaf of a state dict as chunks: which part of which global tensor this rank holds."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor, Partial

from tierstore.errors import PlanError
from tierstore.image.layout import Chunk
from tierstore_torch import private

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def dtype_name(dtype: torch.dtype) -> str:
    """Return torch's name without "torch.", as the manifest holds it."""
    return str(dtype).removeprefix("torch.")


def is_storable(value: Any) -> bool:
    """Whether `tensor_chunks` takes this leaf; sparse, quantised and nested tensors it does not."""
    if (
        type(value) in _PLAIN
        and value.layout is torch.strided
        and not (value.is_quantized or value.is_nested)
    ):
        return True
    if not isinstance(value, torch.Tensor):
        return hasattr(value, "local_shards") and hasattr(value, "metadata")
    if isinstance(value, DTensor) or private.local_shards(value) is not None:
        return True
    plain = value.layout is torch.strided and not value.is_quantized and not value.is_nested
    return plain and (private.is_fake(value) or not private.is_wrapper(value))


def tensor_chunks(
    name: str, value: torch.Tensor, path: str = ""
) -> list[tuple[Chunk, torch.Tensor]]:
    """Return this rank's chunks of one tensor, each with a view of its local elements.

    A chunk without elements is dropped unless the whole tensor has none.

    Args:
        name: the tensor's name in the checkpoint.
        value: a tensor or DTensor of any device, stride and placement; or a ShardedTensor.
        path: JSON text of its typed path in the state dict; empty when only the name is known.

    Raises:
        PlanError: it has no numbers (meta), is a pending sum (Partial), or its local tensor does
            not have the shape that its placements say.
    """
    with torch.no_grad():
        return [
            (chunk, local)
            for chunk, local in _all_chunks(name, value, path)
            if local.numel() or not _elements(chunk.shape)
        ]


def local_tensor(value: torch.Tensor) -> torch.Tensor:
    """Return the elements that this rank holds, detached; call it under `torch.no_grad`."""
    local = value.to_local() if isinstance(value, DTensor) else value
    return local.detach()


def byte_view(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, writable, without a copy."""
    return memoryview(cast("Any", tensor.detach().view(-1).view(torch.uint8).numpy()))


def _all_chunks(name: str, value: torch.Tensor, path: str) -> list[tuple[Chunk, torch.Tensor]]:
    _check(name, value)
    shape = tuple(value.shape)
    dtype = dtype_name(value.dtype)
    shards = private.local_shards(value)
    if shards is not None:
        shape = tuple(getattr(value, "global_shape", shape))
        return [
            (Chunk(name, dtype, shape, offsets, tuple(t.shape), path), t.detach())
            for offsets, t in shards
        ]
    local = local_tensor(value)
    if not _elements(shape):
        empty = local if tuple(local.shape) == shape else local.new_empty(shape)
        return [(Chunk(name, dtype, shape, (0,) * len(shape), shape, path), empty)]
    if not isinstance(value, DTensor):
        return [(Chunk(name, dtype, shape, (0,) * len(shape), shape, path), local)]
    return _dtensor_chunks(Chunk(name, dtype, shape, (0,) * len(shape), shape, path), value, local)


def _dtensor_chunks(
    whole: Chunk, value: DTensor, local: torch.Tensor
) -> list[tuple[Chunk, torch.Tensor]]:
    boxes = private.dtensor_boxes(value)
    held = sum(_elements(sizes) for _, _, sizes in boxes)
    if boxes and held != local.numel():
        raise PlanError(
            f"{whole.name}: the local tensor has shape {tuple(local.shape)}, but its placements "
            f"{value.placements} give this rank {held} elements",
            hint="build it with DTensor.from_local(..., shape=, stride=) or distribute_tensor",
        )
    return [
        (
            Chunk(whole.name, whole.dtype, whole.shape, offsets, sizes, whole.path),
            local
            if len(boxes) == 1
            else local[tuple(slice(a, a + n) for a, n in zip(start, sizes, strict=True))],
        )
        for start, offsets, sizes in boxes
    ]


def _check(name: str, value: torch.Tensor) -> None:
    if isinstance(value, DTensor):
        if any(isinstance(placement, Partial) for placement in value.placements):
            raise PlanError(
                f"{name}: its placement {value.placements} is a sum that is still pending",
                hint="redistribute it to Replicate() or Shard(dim) before saving",
            )
        value = value.to_local()
    if isinstance(value, torch.Tensor) and private.is_fake(value):
        raise PlanError(
            f"{name}: a meta tensor has no numbers to save or to restore into",
            hint="materialise the module first, with to_empty(device=...)",
        )


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
