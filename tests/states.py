"""A training state with every kind of tensor and value, and what differs between two states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

HELD = [
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    "float4_e2m1fn_x2",
]
"""What every format holds."""

TORCH_ONLY = ("complex32", "complex128", "bcomplex32")
"""What safetensors does not."""


def random(dtype: str, *shape: int) -> torch.Tensor:
    """Any bits, so NaNs and denormals too."""
    kind: torch.dtype = getattr(torch, dtype)
    *outer, last = shape
    size = (*outer, last * torch.empty(0, dtype=kind).element_size())
    high = 2 if dtype == "bool" else 256
    return torch.randint(0, high, size, dtype=torch.uint8).view(kind)


def tensors(dtypes: Sequence[str] = HELD) -> dict[str, torch.Tensor]:
    """Every dtype, and every way in which a tensor can lie in memory."""
    base = torch.randn(40, 30)
    return {
        **{f"dtypes.{dtype}": random(dtype, 3, 5) for dtype in dtypes},
        "scalar": torch.tensor(3.25, dtype=torch.bfloat16),
        "empty": torch.empty(0, 4),
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "part": base[3:9, 5:11],
        "expanded": torch.randn(4, 1).expand(4, 6),
        "conjugate": torch.randn(6, dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "larger": torch.randn(3000, 1001).t(),  # than a block
    }


def training(dtypes: Sequence[str] = HELD) -> dict[str, Any]:
    """A model, an optimizer and what else there is."""
    group = {"lr": 0.1, "betas": (0.9, 0.99), "params": [0, 1], "foreach": None}
    return {
        "model": tensors(dtypes),
        "optimizer": {
            "state": {0: {"exp_avg": torch.randn(3), "step": torch.tensor(4.0)}, 1: {"step": 7}},
            "param_groups": [group],
        },
        "step": 12,
        "seen": (1, (2, None), float("inf")),
        "nothing": {},
        "history": [torch.ones(2), {"loss": 0.5}],
    }


def differences(left: Any, right: Any, where: str = "") -> Iterator[str]:
    """Yield where two states differ, in a bit of a tensor or in the type of a value."""
    if isinstance(left, torch.Tensor):
        if not isinstance(right, torch.Tensor) or (left.dtype, left.shape) != (
            right.dtype,
            right.shape,
        ):
            yield f"{where}: {left.dtype} {left.shape}, {type(right)}"
        elif not torch.equal(bits(left), bits(right)):
            yield f"{where}: other bits"
    elif type(left) is not type(right):
        yield f"{where}: {type(left)}, {type(right)}"
    elif isinstance(left, dict):
        if {repr(key) for key in left} != {repr(key) for key in right}:
            yield f"{where}: keys {left.keys()}, {right.keys()}"
        for key in left.keys() & right.keys():
            yield from differences(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, (list, tuple)):
        if len(left) != len(right):
            yield f"{where}: {len(left)}, {len(right)} elements"
        for index, pair in enumerate(zip(left, right, strict=False)):
            yield from differences(*pair, f"{where}/{index}")
    elif left != right:
        yield f"{where}: {left!r}, {right!r}"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, in row-major order."""
    plain = tensor.detach().resolve_conj().contiguous()
    return plain.view(-1).view(torch.uint8)
