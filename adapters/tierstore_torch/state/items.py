"""One leaf of a state dict as chunks: which part of which global tensor this rank holds."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor, Partial
from torch.nn.parameter import is_lazy

from tierstore.errors import PlanError
from tierstore.image.layout import Chunk
from tierstore_torch import torch_private

_PLAIN = (torch.Tensor, torch.nn.Parameter)


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """Return torch's name without "torch.", as the manifest holds it."""
    return str(dtype).removeprefix("torch.")


@cache
def dtype_named(name: str) -> torch.dtype:
    """Return the dtype of a name in a manifest.

    Raises:
        PlanError: this torch has none of that name.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise PlanError(
            f"the checkpoint has tensors of {name}, which torch {torch.__version__} does not know",
            hint="use the torch that saved it, or leave these tensors out",
        )
    return dtype


def is_plain(value: Any) -> bool:
    """Whether a leaf is a tensor that is simply its own elements, on whatever device."""
    return (
        type(value) in _PLAIN
        and _is_dense(value)
        and not value.is_meta
        and torch_private.local_shards(value) is None
    )


def _is_dense(value: torch.Tensor) -> bool:
    return value.layout is torch.strided and not (value.is_quantized or value.is_nested)


def is_storable(value: Any) -> bool:
    """Whether `tensor_chunks` takes this leaf; sparse, quantised and nested tensors it does not."""
    if type(value) in _PLAIN and _is_dense(value):
        return True
    if not isinstance(value, torch.Tensor):
        return hasattr(value, "local_shards") and hasattr(value, "metadata")
    if isinstance(value, DTensor) or torch_private.local_shards(value) is not None:
        return True
    if is_lazy(value) or torch_private.is_fake(value):
        return True  # an error with its name
    return _is_dense(value) and not torch_private.is_wrapper(value)


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
    if is_plain(value):
        return [(_whole(name, value, path), local_tensor(value))]  # most are; half the time
    with torch.no_grad():
        return [
            (chunk, local)
            for chunk, local in _all_chunks(name, value, path)
            if local.numel() or not _elements(chunk.shape)
        ]


def local_tensor(value: torch.Tensor) -> torch.Tensor:
    """Return the elements that this rank holds, detached; call it under `torch.no_grad`."""
    if type(value) is torch.Tensor and not value.requires_grad:
        return value  # half a KiB less than an alias
    local = value.to_local() if isinstance(value, DTensor) else value
    return local.detach()


def byte_view(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, writable, without a copy."""
    return memoryview(cast("Any", tensor.detach().view(-1).view(torch.uint8).numpy()))


def _all_chunks(name: str, value: torch.Tensor, path: str) -> list[tuple[Chunk, torch.Tensor]]:
    _check(name, value)
    whole = _whole(name, value, path)
    shards = torch_private.local_shards(value)
    if shards is not None:
        shape = tuple(getattr(value, "global_shape", whole.shape))
        return [
            (Chunk(name, whole.dtype, shape, offsets, tuple(t.shape), path), t.detach())
            for offsets, t in shards
        ]
    local = local_tensor(value)
    if not _elements(whole.shape):
        empty = local if tuple(local.shape) == whole.shape else local.new_empty(whole.shape)
        return [(whole, empty)]
    if not isinstance(value, DTensor):
        return [(whole, local)]
    return _dtensor_chunks(whole, value, local)


def _dtensor_chunks(
    whole: Chunk, value: DTensor, local: torch.Tensor
) -> list[tuple[Chunk, torch.Tensor]]:
    boxes = torch_private.dtensor_boxes(value)
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


def _whole(name: str, value: torch.Tensor, path: str) -> Chunk:
    shape = _shared(tuple(value.shape))
    return Chunk(name, dtype_name(value.dtype), shape, _shared((0,) * len(shape)), shape, path)


@lru_cache(maxsize=4096)
def _shared(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Return the same tuple for equal ones: a state has many tensors and few shapes."""
    return numbers


def global_shape(name: str, value: Any) -> tuple[int, ...]:
    """Return the shape of the whole tensor that a leaf is, or is a part of.

    Raises:
        PlanError: it has none yet.
    """
    if is_lazy(value):
        raise PlanError(
            f"{name}: a lazy module's parameter has no shape before its first input",
            hint="run the module once before saving or restoring",
        )
    return tuple(getattr(value, "global_shape", None) or value.shape)


def check_numbers(name: str, value: torch.Tensor) -> None:
    """Check that a tensor has numbers, or room for them.

    Raises:
        PlanError: it has none.
    """
    if torch_private.is_fake(value):
        raise PlanError(
            f"{name}: a meta tensor has no numbers to save or to restore into",
            hint="materialise the module first, with to_empty(device=...)",
        )


def _check(name: str, value: torch.Tensor) -> None:
    global_shape(name, value)
    if isinstance(value, DTensor):
        if any(isinstance(placement, Partial) for placement in value.placements):
            raise PlanError(
                f"{name}: its placement {value.placements} is a sum that is still pending",
                hint="redistribute it to Replicate() or Shard(dim) before saving",
            )
        value = value.to_local()
    if isinstance(value, torch.Tensor):
        check_numbers(name, value)


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
