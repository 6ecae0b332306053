"""The states that comparisons save."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.mlperf_layout import shards
from tierstore.model.workload import SHAPES as MLPERF

if TYPE_CHECKING:
    import torch  # seconds, which only those who save have to wait for

SHAPES: dict[str, tuple[int, tuple[int, ...]]] = {
    "300 tensors": (300, (874, 1024)),
    "10,000 tensors": (10_000, (26, 1024)),
    "1 tensor": (1, (262_144, 1024)),
}
"""Scenario -> how many float32 tensors of which shape: about 1 GiB each."""


def make(scenario: str, *, rank: int = 0, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Return the state of one rank, filled with numbers that do not compress.

    Args:
        scenario: a key of `SHAPES`, or of MLPerf's.
        rank: seeds the content and names the tensors.
        scale: share of the full size, in (0, 1].
    """
    import torch

    if scenario in MLPERF:
        return _mlperf(scenario, rank, scale)
    count, (rows, columns) = SHAPES[scenario]
    rows = max(1, int(rows * scale))
    generator = torch.Generator().manual_seed(rank)
    return {
        f"rank{rank}.layer{index:05d}.weight": torch.empty(rows, columns).uniform_(
            generator=generator
        )
        for index in range(count)
    }


def _mlperf(shape: str, rank: int, scale: float) -> dict[str, torch.Tensor]:
    """Return one rank's part in the published layout, every tensor cut to its share."""
    import torch

    generator = torch.Generator().manual_seed(rank)
    state = {}
    for name, (count, dtype) in shards(MLPERF[shape], rank).items():
        tensor = torch.empty(max(1, round(count * scale)), dtype=getattr(torch, dtype))
        state[f"rank{rank}.{name}"] = tensor.uniform_(generator=generator)
    return state


def digests(state: dict[str, torch.Tensor]) -> list[int]:
    """Return the CRC32C of every tensor, to prove after a load that it is the one saved."""
    import torch

    from tierstore.blocks import crc32c

    return [crc32c(t.view(-1).view(torch.uint8).numpy().data) for t in _values(state)]


def clear(state: dict[str, torch.Tensor]) -> None:
    """Fill every tensor with zeros."""
    for tensor in _values(state):
        tensor.zero_()


def size(state: dict[str, torch.Tensor]) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.nbytes for tensor in _values(state))


def _values(state: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    return iter(state.values())
