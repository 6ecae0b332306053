"""What the ranks do in test_checkpointer_load; see tests.ranks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.integration.checkpointer_cases import outcome
from tests.states import differences
from tierstore.config import Config, TierConfig
from tierstore_torch import Checkpointer, per_rank


def _groups(model: nn.Module) -> torch.optim.AdamW:
    """AdamW with two groups, of which the second has another rate and no decay."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    return torch.optim.AdamW(
        [{"params": weights}, {"params": biases, "lr": 0.5, "weight_decay": 0.0}], lr=0.125
    )


def _model(kind: str) -> nn.Module:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model, mesh=mesh)
        return model
    return nn.parallel.DistributedDataParallel(model)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.full((2, 6), 1.0 + dist.get_rank())).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def _whole(state: Any) -> Any:
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: _whole(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_whole(value) for value in state]
    return state


def save_trained(url: str, kind: str) -> list[str]:
    """Train, save, and return what a load returns differently."""
    model = _model(kind)
    optimizer = _groups(model)
    for _ in range(3):
        _step(model, optimizer)
    rank = dist.get_rank()
    state = {"model": model, "optimizer": optimizer, "rng": per_rank({"seed": rank}), "step": 3}
    with Checkpointer(url, run="r") as ckpt:
        ckpt.save(3, state).wait()
        loaded = ckpt.load()
    wanted = {
        "model": dict(_whole(dict(model.state_dict()))),
        "optimizer": _whole(optimizer.state_dict()),
        "step": 3,
    }
    own = loaded.pop("rng")
    found = list(differences(wanted, loaded))
    if (type(own).__name__, own.value) != ("PerRank", {"seed": rank}):
        found.append(f"rng: {own}")
    if list(loaded["optimizer"]["state"]) != [0, 1, 2, 3]:
        found.append(f"keys: {list(loaded['optimizer']['state'])}")
    return found


def load_and_train_on(url: str) -> list[str]:
    """Load on ranks of another number without FSDP: it takes the state, and trains on."""
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = _groups(plain)
    with Checkpointer(url, run="r") as ckpt:
        loaded = ckpt.load()
        plain.load_state_dict(
            {key.removeprefix("module."): value for key, value in loaded["model"].items()}
        )
        optimizer.load_state_dict(loaded["optimizer"])
        found = list(differences(loaded["optimizer"], optimizer.state_dict()))
        _step(plain, optimizer)
        if optimizer.state_dict()["state"][0]["step"] != 4:
            found.append("it did not go on")
    return found


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("tierstore_torch.load")
    log.addHandler(handler)
    try:
        yield texts
    finally:
        log.removeHandler(handler)


def save_own(url: str) -> None:
    rank = dist.get_rank()
    with Checkpointer(url, run="r") as ckpt:
        ckpt.save(1, {"w": torch.ones(2), "own": per_rank({"r": rank})}).wait()


def load_own(url: str) -> tuple[Any, list[str]]:
    with Checkpointer(url, run="r") as ckpt, _logged() as texts:
        state = ckpt.load()
    return state.get("own") and state["own"].value, texts


def load_damaged(url: str) -> list[str]:
    """One rank cannot read: no rank gets anything, and with `allow_older` all the older one."""
    with Checkpointer(url, run="r") as ckpt:
        return [outcome(ckpt.load), outcome(lambda: ckpt.load(allow_older=True)["step"])]


def list_and_delete(url: str) -> list[Any]:
    """What all ranks see of steps while some go."""
    with Checkpointer(url, run="r") as ckpt:
        for step in (1, 2, 3):
            ckpt.save(step, {"w": torch.full((4,), step), "step": step}).wait()
        seen = [[row.step for row in ckpt.steps()]]
        ckpt.delete(2, grace=0)
        seen.append([row.step for row in ckpt.steps()])
        seen.append(outcome(lambda: ckpt.delete(2, grace=0)).partition(":")[0])
        ckpt.delete(3, grace=0)
        seen.append(ckpt.load()["step"])
        return seen


def delete_on_each_nodes_disk(folder: str) -> tuple[list[str], list[str]]:
    """Every rank is a node of its own, with a disk of its own, over a tier that all share."""
    rank = dist.get_rank()
    own = Path(folder) / f"node{rank}"
    tiers = (
        TierConfig("nvme", own.as_uri()),
        TierConfig("shared", (Path(folder) / "shared").as_uri()),
    )
    with Checkpointer(Config(tiers), run="r") as ckpt:
        for step in (1, 2):
            ckpt.save(step, {"w": torch.ones(3), "own": per_rank(torch.full((2,), rank))}).wait()
        dist.barrier()
        ckpt.delete(1, grace=0)
        steps = [str(row.step) for row in ckpt.steps()]
    left = sorted(path.name[:12] for path in (own / "runs/r/data").iterdir() if any(path.iterdir()))
    return steps, left


def save_lists_and_tuples(url: str) -> Any:
    """One rank has a list where the other has a tuple: of a shard, a value and a replica."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
    sharded = distribute_tensor(torch.arange(6.0), mesh, [Shard(0)], src_data_rank=None)
    kind = (list, tuple)[rank]
    with Checkpointer(url, run="r") as ckpt:
        for step in (1, 2):
            ckpt.save(step, {"x": kind([sharded, 3, torch.ones(2)])}).wait()
        return ckpt.load()["x"]
