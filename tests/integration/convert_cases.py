"""What the ranks of test_convert do; see tests.ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tierstore_torch import Checkpointer, TierStorageReader


def whole() -> dict[str, torch.Tensor]:
    """The model's tensors as one process has them."""
    torch.manual_seed(5)
    return dict(_model().state_dict())


def _model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(9, 7), torch.nn.Linear(7, 3))


def _sharded() -> torch.nn.Module:
    model = _model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _same(model: torch.nn.Module) -> bool:
    found = model.state_dict()
    return all(
        torch.equal(value, found[name].full_tensor())
        for name, value in whole().items()
        if isinstance(found[name], DTensor)
    )


def load(url: str, run: str) -> tuple[int | None, int, bool, bool]:
    """Restore by `Checkpointer` and by DCP; return the step, a value, and whether all is right."""
    state = {"model": _sharded(), "step": 0}
    with Checkpointer(url, run=run) as checkpointer:
        step = checkpointer.restore(state)
    other = _sharded()
    plain = {"model": other.state_dict()}
    dcp.load(plain, storage_reader=TierStorageReader(url, checkpoint_id=run))
    return step, int(state["step"]), _same(state["model"]), _same(other)  # type: ignore[call-overload, arg-type]


def save(folder: str) -> None:
    """Save the sharded model by DCP's own writer."""
    model = _sharded()
    values = whole()
    for name, value in model.state_dict().items():
        if isinstance(value, DTensor):
            value.copy_(torch.distributed.tensor.distribute_tensor(values[name], value.device_mesh))
    dcp.save({"model": model.state_dict(), "step": 3}, checkpoint_id=folder)
