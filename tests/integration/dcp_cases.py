"""What the ranks do in test_dcp; see tests.ranks."""

from __future__ import annotations

import gc
import multiprocessing.process
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import _async_process_executor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor

from tests import layouts
from tests.ranks import resources
from tierstore.errors import OutOfSpaceError, TierstoreError
from tierstore.wrappers import open_tier
from tierstore.wrappers.faults import Fault, Faulty
from tierstore_torch import Checkpointer, TierStorageReader, TierStorageWriter, cause
from tierstore_torch.dcp import ladder as dcp_ladder
from tierstore_torch.dcp.stage import close_staging, process_staging

VALUES = {"step": 7, "schedule": {"warmup": (1, 2.5), "done": False}}


def state_of(state: layouts.State) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(state.model),
        "optim": get_optimizer_state_dict(state.model, state.optimizer),
        **VALUES,
    }


def save_layouts(url: str) -> None:
    """Save the known numbers in every layout, each as a run of its own."""
    for layout in layouts.LAYOUTS:
        state = layouts.build(layout)
        layouts.fill(state, 7)
        writer = TierStorageWriter(url, checkpoint_id=f"{layout}/7")
        dcp.save(state_of(state), storage_writer=writer)


def load_layouts(url: str) -> list[str]:
    """Load what save_layouts saved, each layout into the next one as well; return what differs."""
    wrong = []
    for index, layout in enumerate(layouts.LAYOUTS):
        for into in (layout, layouts.LAYOUTS[index - 1]):
            state = layouts.build(into)
            layouts.take_a_step(state.optimizer)
            fresh = state_of(state) | {"step": 0, "schedule": {"warmup": None, "done": None}}
            reader = TierStorageReader(url, checkpoint_id=layout)
            dcp.load(fresh, storage_reader=reader)
            set_model_state_dict(state.model, fresh["model"])
            set_optimizer_state_dict(state.model, state.optimizer, fresh["optim"])
            if {key: fresh[key] for key in VALUES} != VALUES:
                wrong.append(f"{layout}: {fresh}")
            wrong += [f"{layout} into {into}: {name}" for name in differences(state)]
    return wrong


def load_after_save(url: str) -> list[str]:
    save_layouts(url)
    dist.barrier()
    return load_layouts(url)


def differences(state: layouts.State) -> list[str]:
    return [
        name
        for name, tensor in layouts.tensors(state).items()
        if not torch.equal(layouts.local(tensor), layouts.expected(f"{name} 7", tensor))
    ]


def interop(url: str) -> list[str]:
    """Write with Checkpointer and read with dcp, and the other way round."""
    wrong = []
    for layout in layouts.LAYOUTS:
        state = layouts.build(layout)
        layouts.fill(state, 7)
        with Checkpointer(url, run=f"c-{layout}") as ckpt:
            ckpt.save(7, state_of(state)).wait()
        writer = TierStorageWriter(url, checkpoint_id=f"d-{layout}/7")
        dcp.save(state_of(state), storage_writer=writer)
        dist.barrier()
        for run in (f"c-{layout}", f"d-{layout}"):
            other = layouts.build(layout)
            layouts.take_a_step(other.optimizer)
            fresh = state_of(other) | {"step": 0}
            if run.startswith("c-"):
                dcp.load(fresh, storage_reader=TierStorageReader(url, checkpoint_id=run))
            else:
                with Checkpointer(url, run=run) as ckpt:
                    ckpt.restore(fresh)
            set_model_state_dict(other.model, fresh["model"])
            set_optimizer_state_dict(other.model, other.optimizer, fresh["optim"])
            wrong += [f"{run}: {name}" for name in differences(other)]
            if fresh["step"] != 7:
                wrong.append(f"{run}: step {fresh['step']}")
    return wrong


def sharded(rows: int = 8) -> torch.Tensor:
    mesh = DeviceMesh("cpu", list(range(dist.get_world_size())))
    whole = torch.arange(rows * 3, dtype=torch.float32).reshape(rows, 3)
    return distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)


def loaded(url: str, name: str) -> tuple[float, Any]:
    """Load what `steps` saved; return the first number and the value."""
    state: dict[str, Any] = {"w": sharded(), "list": [torch.zeros(2)], "v": {"nested": None}}
    with torch.no_grad():
        state["w"].mul_(0)
    dcp.load(state, storage_reader=TierStorageReader(url, checkpoint_id=name, resume=False))
    whole = state["w"].full_tensor()
    base = torch.arange(24, dtype=torch.float32).reshape(8, 3)
    assert torch.equal(whole - whole[0, 0], base)
    assert state["list"][0].tolist() == [float(whole[0, 0])] * 2
    return float(whole[0, 0]), state["v"]


def state_at(step: int) -> dict[str, Any]:
    w = sharded()
    with torch.no_grad():
        w.add_(step)
    return {"w": w, "list": [torch.full((2,), float(step))], "v": {"nested": [step, "x"]}}


@contextmanager
def children_allowed() -> Iterator[None]:
    """Let this daemonic worker have DCP's save process as a child, and end that afterwards."""
    config = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    config["daemon"] = False
    try:
        yield
    finally:
        _async_process_executor._CHECKPOINT_PROCESS = None
        config["daemon"] = True


def async_steps(url: str, run: str, mode: str, count: int) -> list[Any]:
    """Save some steps in the background, changing the tensors at once; return what loads."""
    kind = AsyncCheckpointerType(mode)
    states = []
    with children_allowed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(1, count + 1):
            state = state_at(step)
            planner = DefaultSavePlanner(enable_plan_caching=step > 1)
            future = dcp.async_save(
                state,
                checkpoint_id=f"{run}/{step}",
                storage_writer=TierStorageWriter(url),
                planner=planner,
                async_checkpointer_type=kind,
            )
            with torch.no_grad():
                state["w"].fill_(-1)
                state["list"][0].fill_(-1)
            state["v"]["nested"][0] = -1
            states.append(future)
            future.result()
    images = len(process_staging()._pool._slots)
    close_staging()
    _forget_plans()
    dist.barrier()
    return [images, *(loaded(url, f"{run}/{step}") for step in range(1, count + 1))]


def cached_steps(url: str) -> list[Any]:
    """Save steps with cached plans, one of them failing and tried again; return what loads."""
    _forget_plans()
    for step in (1, 2):
        _cached_save(url, step)
    broken = _broken_on(1, Fault("write", key="safetensors", error=OutOfSpaceError("full")))
    with broken:
        try:
            _cached_save(url, 3)
        except CheckpointException as failed:
            error = cause(failed)
    assert isinstance(error, OutOfSpaceError)
    _cached_save(url, 3)
    _forget_plans()
    dist.barrier()
    return [loaded(url, f"cached/{step}") for step in (1, 2, 3)]


def _cached_save(url: str, step: int) -> None:
    writer = TierStorageWriter(url, checkpoint_id=f"cached/{step}")
    planner = DefaultSavePlanner(enable_plan_caching=True)
    dcp.save(state_at(step), storage_writer=writer, planner=planner)
    for plan in SavePlanner._cached_final_save_plan.values():
        assert plan.storage_data is None


def _forget_plans() -> None:
    for cache in ("save_plan", "final_save_plan", "all_plans", "global_plan", "metadata"):
        getattr(SavePlanner, f"_cached_{cache}").clear()


@contextmanager
def _broken_on(rank: int, *faults: Fault) -> Iterator[None]:
    def opened(tier: Any) -> Any:
        backend = open_tier(tier)
        return Faulty(backend, *faults) if dist.get_rank() == rank else backend

    dcp_ladder.open_tier = opened
    try:
        yield
    finally:
        dcp_ladder.open_tier = open_tier


def failing_save(url: str, rank: int, operation: str, key: str) -> tuple[str, str, list[int]]:
    """Save while one rank's tier refuses; return the error that every rank got, and who failed."""
    fault = Fault(operation, key=key, times=99, error=OutOfSpaceError("no room", url="file:///x"))
    with _broken_on(rank, fault):
        try:
            writer = TierStorageWriter(url, checkpoint_id="failing/1")
            dcp.save(state_at(1), storage_writer=writer)
        except CheckpointException as failed:
            error = cause(failed)
            notes = " ".join(getattr(error, "__notes__", []))
            return type(error).__name__, notes, list(failed.failures)
    return "none", "", []


def save_step(url: str, name: str) -> None:
    dcp.save(
        state_at(int(name.rpartition("/")[2])),
        storage_writer=TierStorageWriter(url, checkpoint_id=name),
    )


class _Rankless(TierStorageWriter):
    """As DCP was before it told a writer its rank, and as some of its users' subclasses are."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        super().set_up_storage_writer(is_coordinator)


def rankless(url: str) -> list[Any]:
    """Save by writers that are not told their rank, with cached plans too; return what loads."""
    _forget_plans()
    for step in (1, 2):
        writer = _Rankless(url, checkpoint_id=f"rankless/{step}")
        planner = DefaultSavePlanner(enable_plan_caching=True)
        dcp.save(state_at(step), storage_writer=writer, planner=planner)
    _forget_plans()
    return [loaded(url, f"rankless/{step}") for step in (1, 2)]


def failing_load(url: str, rank: int) -> tuple[str, list[int]]:
    """Load while one rank cannot list the tier; return the error, and who failed."""
    fault = Fault("list", times=99, error=OutOfSpaceError("odd"))
    with _broken_on(rank, fault):
        try:
            loaded(url, "failing")
        except CheckpointException as failed:
            return type(cause(failed)).__name__, list(failed.failures)
    return "none", []


def failing_stage(url: str, mode: str) -> list[tuple[str, bool]]:
    """One rank cannot stage: every rank's future fails, and the next save succeeds."""
    outcome = []
    with children_allowed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in (1, 2):
            state = state_at(step)
            if step == 1 and dist.get_rank() == 1:
                state["list"][0] = torch.eye(2).to_sparse()
            future = dcp.async_save(
                state,
                storage_writer=TierStorageWriter(url, checkpoint_id=f"staged/{step}"),
                async_checkpointer_type=AsyncCheckpointerType(mode),
            )
            error = future.exception()
            outcome.append((type(cause(error)).__name__ if error else "", error is None))
        # The failed save's future is still held: its image must not block the next one.
    close_staging()
    return outcome


def refused_without_collectives(url: str) -> str:
    try:
        dcp.save(
            state_at(1),
            storage_writer=TierStorageWriter(url, checkpoint_id="alone/1"),
            use_collectives=False,
        )
    except TierstoreError as error:
        return str(error)
    return ""


def subgroup(url: str) -> tuple[float, Any] | None:
    """Save and load with two of three ranks."""
    group = dist.new_group([1, 2])
    if dist.get_rank() == 0:
        return None
    state = {"w": torch.full((4,), 5.0), "v": 1}
    writer = TierStorageWriter(url, checkpoint_id="sub/1")
    dcp.save(state, storage_writer=writer, process_group=group)
    fresh = {"w": torch.zeros(4), "v": 0}
    reader = TierStorageReader(url, checkpoint_id="sub")
    dcp.load(fresh, storage_reader=reader, process_group=group)
    return float(fresh["w"].sum()), fresh["v"]


def disagreeing(url: str) -> str:
    """Rank 1 lists a step that rank 0 does not see yet."""
    name = "failing" if dist.get_rank() else "failing/1"
    try:
        loaded(url, name)
    except CheckpointException as failed:
        return str(cause(failed))
    return ""


def per_rank_names(url: str) -> list[int]:
    """Every rank saves something of its own."""
    rank = dist.get_rank()
    state = {f"rank{rank}": {"seed": 100 + rank, "rng": torch.full((3,), rank)}}
    dcp.save(state, storage_writer=TierStorageWriter(url, checkpoint_id="own/1"))
    fresh = {f"rank{rank}": {"seed": 0, "rng": torch.zeros(3, dtype=torch.int64)}}
    dcp.load(fresh, storage_reader=TierStorageReader(url, checkpoint_id="own/1"))
    return [fresh[f"rank{rank}"]["seed"], int(fresh[f"rank{rank}"]["rng"][0])]


def die_while_saving(url: str) -> None:
    """Rank 1 is killed before its fragment; the others get an error from DCP, not a checkpoint."""
    if dist.get_rank() != 1:
        save_step(url, "killed/1")
        return

    def kill(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with _broken_on(1, Fault("create", key="fragments", action=kill)):
        save_step(url, "killed/1")


def growth(url: str, saves: int) -> tuple[int, int, int]:
    """Save often in the background; return how KiB, descriptors and threads grew."""
    state = {"w": torch.zeros(2**20), "v": 1}

    def save(step: int) -> None:
        writer = TierStorageWriter(url, checkpoint_id=f"growth/{step}")
        dcp.async_save(state, storage_writer=writer).result()

    for step in range(1, 6):
        save(step)
    gc.collect()
    before = resources()
    for step in range(6, 6 + saves):
        save(step)
    gc.collect()
    after = resources()
    close_staging()
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]
