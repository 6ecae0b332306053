"""Training states sharded in every usual way, with known numbers, for round trips."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from tierstore_torch import per_rank

LAYOUTS = ("fsdp", "hsdp", "tp", "fsdp_tp", "ddp")


class Net(nn.Module):
    """Sizes that no world size divides."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(13, 10)
        self.down = nn.Linear(10, 7)
        self.norm = nn.LayerNorm(7)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


@dataclass
class State:
    """A state to save or to restore into, and the numbers that belong there."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    dict: dict[str, Any]


def numbers(name: str, like: torch.Tensor) -> torch.Tensor:
    """The whole tensor of this name: the same on every rank and in every world."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.rand(like.shape, generator=generator).to(like.dtype)


def expected(name: str, like: torch.Tensor) -> torch.Tensor:
    """What this rank must hold of the tensor of this name."""
    whole = numbers(name, like)
    if not isinstance(like, DTensor):
        return whole
    spread = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return spread.to_local()


def local(tensor: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def build(layout: str) -> State:
    """Return a state over all ranks, with numbers that are not the expected ones."""
    size = dist.get_world_size()
    model = Net()
    half = 2 if size % 2 == 0 else 1
    if layout == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    elif layout == "hsdp":
        fully_shard(
            model,
            mesh=init_device_mesh("cpu", (half, size // half), mesh_dim_names=("copy", "shard")),
        )
    elif layout == "tp":
        _tensor_parallel(model, init_device_mesh("cpu", (size,)))
    elif layout == "fsdp_tp":
        mesh = init_device_mesh("cpu", (size // half, half), mesh_dim_names=("dp", "tp"))
        _tensor_parallel(model, mesh["tp"])
        fully_shard(model, mesh=mesh["dp"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    values = {
        "model": model,
        "optimizer": optimizer,
        "step": 0,
        "schedule": {"warmup": (), 3: None, "3": None, "empty": {}},
        "rng": per_rank({"torch": torch.zeros(5, dtype=torch.uint8)}),
    }
    return State(model, optimizer, values)


def take_a_step(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer make its state."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def fill(state: State, step: int) -> None:
    """Give a state the expected numbers, a stepped optimizer included."""
    take_a_step(state.optimizer)
    with torch.no_grad():
        for name, tensor in tensors(state).items():
            local(tensor).copy_(expected(f"{name} {step}", tensor))
    state.dict["step"] = step
    state.dict["schedule"].update({"warmup": (1, 2.5, {"x": b"y"}), 3: "int", "3": "str"})
    state.dict["rng"].value["torch"].fill_(dist.get_rank() + 1)


def differences(state: State, step: int, saved_by: int) -> list[str]:
    """Name what is not as `fill` made it, bit for bit."""
    wrong = [
        name
        for name, tensor in tensors(state).items()
        if not torch.equal(local(tensor), expected(f"{name} {step}", tensor))
    ]
    if state.dict["step"] != step:
        wrong.append("step")
    schedule = state.dict["schedule"]
    if schedule != {"warmup": (1, 2.5, {"x": b"y"}), 3: "int", "3": "str", "empty": {}}:
        wrong.append(f"schedule {schedule}")
    mark = dist.get_rank() + 1 if dist.get_rank() < saved_by else 0
    if state.dict["rng"].value["torch"].tolist() != [mark] * 5:
        wrong.append("rng")
    return wrong


def tensors(state: State) -> dict[str, torch.Tensor]:
    """Every tensor of model and optimizer by a name that is the same in every layout."""
    named = dict(state.model.named_parameters())
    found: dict[str, torch.Tensor] = {**named, **dict(state.model.named_buffers())}
    for name, parameter in named.items():
        for key, tensor in state.optimizer.state[parameter].items():
            found[f"{name}/{key}"] = tensor
    return found


def _tensor_parallel(model: nn.Module, mesh: Any) -> None:
    parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
