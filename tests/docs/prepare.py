"""The checkpoints that the pages look at, saved by real ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tierstore_torch import Checkpointer, per_rank


def save(url: str) -> None:
    """Two ranks save steps 100 to 300, go back to 200 and save 250."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 6)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(8)).sum().backward()
    optimizer.step()
    state = {"model": model, "optimizer": optimizer, "step": 0, "rng": per_rank(dist.get_rank())}
    with Checkpointer(url, run="llama-8b") as ckpt:
        for step in (100, 200, 300):
            state["step"] = step
            ckpt.save(step, state).wait()
        ckpt.restore(state, step=200)
        state["step"] = 250
        ckpt.save(250, state).wait()
