"""What the ranks do in test_checkpointer_ranks; see tests.ranks."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from tests.patience import PATIENCE
from tests.ranks import resources
from tests.shards import until
from tierstore.config import Config, TierConfig
from tierstore.errors import CheckpointError, OutOfSpaceError, TierstoreError
from tierstore_torch import Checkpointer, per_rank
from tierstore_torch.state.flatten import PerRank


def outcome(action: Any) -> str:
    """Return the error's class and text, or the result's text."""
    try:
        return str(action())
    except TierstoreError as error:
        return f"{type(error).__name__}: {error}"


def _conflicting(kind: str) -> dict[str, Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    states: dict[str, Any] = {
        "value": lambda: {"rng": rank},
        "tensor": lambda: {"rng": torch.full((3,), rank)},
        "shape": lambda: {"w": torch.ones(3 + rank)},
        "kind": lambda: {"w": torch.ones(3) if rank else 3},
        "partial": lambda: {"w": DTensor.from_local(torch.ones(2), mesh, [Partial()])},
        "hole": lambda: (
            {"w": distribute_tensor(torch.ones(5), mesh, [Shard(0)], src_data_rank=None)}
            if rank == 0
            else {}
        ),
        "meta": lambda: {"w": torch.empty(2, device="meta" if rank == 1 else "cpu")},
        "raises": lambda: {"w": _Raises() if rank == 1 else torch.ones(1)},
        "mesh": lambda: {"w": _own_mesh(rank, float(rank))},
    }
    state: dict[str, Any] = states[kind]()
    return state


class _Raises:
    def state_dict(self) -> dict[str, Any]:
        raise ValueError("no state today")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def _own_mesh(rank: int, fill: float) -> DTensor:
    """A DTensor over a mesh that only this rank is in, as a pipeline stage has."""
    meshes = [DeviceMesh("cpu", [r]) for r in range(dist.get_world_size())]
    return distribute_tensor(
        torch.full((4,), fill), meshes[rank], [Replicate()], src_data_rank=None
    )


def conflict(url: str, kind: str) -> tuple[str, str]:
    """Try to save what cannot be saved, then something that can."""
    with Checkpointer(url, run="run") as checkpointer:
        error = outcome(lambda: checkpointer.save(1, _conflicting(kind)))
        good = checkpointer.save(1, {"w": torch.ones(3)})
        good.wait()
        return error, str(good.status()["local"].state)


def diverging(url: str, kind: str) -> list[str]:
    """What is equal at the first save differs at a later one, on ranks that share it."""
    rank = dist.get_rank()
    own: dict[str, Any] = {"a": torch.ones(4000), "epoch": 1}
    if rank:  # of three ranks two share this
        own["b"] = {"step": torch.zeros(()), "rng": 0}
    texts = []
    with Checkpointer(url, run="run") as checkpointer:
        for step in (1, 2, 3):
            differs = step == 2 and rank == dist.get_world_size() - 1
            if kind == "value":
                own["epoch"] = step + differs
            elif rank and kind == "tensor of some":
                own["b"]["step"].fill_(step + differs)
            elif rank:
                own["b"]["rng"] = step + differs
            texts.append(outcome(lambda at=step: checkpointer.save(at, own).wait()))
    return texts


def becomes_unsavable(url: str) -> list[str]:
    """What the ranks share can no longer be encoded on one of them, for one save."""
    state: dict[str, Any] = {"a": torch.ones(4), "note": object, "lr": 0.1}
    texts = []
    with Checkpointer(url, run="run") as checkpointer:
        for step in (1, 2, 3):
            fails = step == 2 and dist.get_rank() == 1
            state["note"] = threading.Lock() if fails else object
            texts.append(outcome(lambda at=step: checkpointer.save(at, state).wait()))
    return texts


def different_steps(url: str) -> str:
    with Checkpointer(url, run="run") as checkpointer:
        return outcome(lambda: checkpointer.save(10 + dist.get_rank(), {"w": torch.ones(1)}))


def one_rank_changes(url: str) -> list[int | None]:
    """Only rank 1's structure changes, from one save to the next."""
    rank = dist.get_rank()
    with Checkpointer(url, run="run") as checkpointer:
        for step in range(4):
            state = {f"only {rank}": torch.full((2 + step * rank,), float(step))}
            checkpointer.save(step, state).wait()
        steps = []
        for step in range(4):
            state = {f"only {rank}": torch.zeros(2 + step * rank)}
            steps.append(checkpointer.restore(state, step=step))
            assert state[f"only {rank}"].unique().tolist() == [step]
    return steps


def pipeline(url: str, save: bool) -> list[str]:
    """Ranks hold different layers, one is shared, one is on a mesh of two of three ranks."""
    rank = dist.get_rank()
    pair = DeviceMesh("cpu", [0, 1])
    fill = 1.0 if save else 0.0
    state: dict[str, Any] = {
        f"layer{rank}": torch.full((3,), fill * rank),
        "shared": torch.full((5,), fill),
    }
    if rank < 2:
        state["pair"] = distribute_tensor(
            torch.full((5, 2), fill * 3), pair, [Shard(0)], src_data_rank=None
        )
    state["mine"] = per_rank({"seed": torch.tensor(rank * fill), "count": rank * int(fill)})
    with Checkpointer(url, run="run") as checkpointer:
        if save:
            done = checkpointer.save(1, state)
            done.wait()
            return [str(done.bytes)]
        checkpointer.restore(state)
    wrong = []
    if state[f"layer{rank}"].tolist() != [rank] * 3 or state["shared"].tolist() != [1] * 5:
        wrong.append("plain")
    if rank < 2 and state["pair"].to_local().unique().tolist() != [3]:
        wrong.append("pair")
    mine = state["mine"].value
    if (mine["seed"].item(), mine["count"]) != (rank, rank):
        wrong.append(f"mine {mine}")
    return wrong


def replicas(url: str) -> int:
    """Every rank has the same plain tensors; return the bytes that this one wrote."""
    state = {f"w{i}": torch.full((1000,), float(i)) for i in range(8)}
    with Checkpointer(url, run="run") as checkpointer:
        save = checkpointer.save(1, state)
        save.wait()
        return save.bytes


def sigterm(url: str) -> tuple[int, bool, int | None]:
    """Rank 1 is told to stop at step 3; all save and leave together."""
    state = {"w": torch.zeros(10), "step": 0}
    with Checkpointer(url, run="run", sigterm_deadline=PATIENCE) as checkpointer:
        assert checkpointer.time_left is None
        step = 0
        while step < 10:
            step += 1
            state["w"].fill_(step)
            if dist.get_rank() == 1 and step == 3:
                signal.raise_signal(signal.SIGTERM)
            if checkpointer.stop_requested():
                save = checkpointer.save(step, state)
                left = checkpointer.time_left
                assert left is not None
                assert 0 < left <= PATIENCE
                save.wait(timeout=left)
                break
        restored = checkpointer.restore(state)
    return step, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, restored


def save_steps(url: str, steps: list[int]) -> None:
    with Checkpointer(url, run="run") as checkpointer:
        for step in steps:
            checkpointer.save(step, _halves(float(step))).wait()


def _halves(fill: float) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {"w": distribute_tensor(torch.full((4000,), fill), mesh, [Shard(0)], src_data_rank=None)}


def restore_damaged(url: str) -> tuple[str, str, list[float]]:
    """Only one rank meets the damage; all must end alike."""
    state = _halves(0.0)
    with Checkpointer(url, run="run") as checkpointer:
        strict = outcome(lambda: checkpointer.restore(state))
        older = outcome(lambda: checkpointer.restore(state, allow_older=True))
    return strict.split(":")[0], older, state["w"].to_local().unique().tolist()


def missing_on_one(url: str) -> str:
    state = _halves(0.0)
    if dist.get_rank() == 1:
        state["x"] = torch.zeros(1)
    with Checkpointer(url, run="run") as checkpointer:
        return outcome(lambda: checkpointer.restore(state))


def subgroup(url: str) -> list[Any]:
    """Two of three ranks save in a group of their own; the third is not needed."""
    group = dist.new_group([1, 2])
    if dist.get_rank() == 0:
        return []
    state = {"w": torch.full((3,), 5.0), "own": per_rank(dist.get_rank())}
    with Checkpointer(url, run="run", process_group=group) as checkpointer:
        checkpointer.save(1, state).wait()
        state["w"].zero_()
        return [checkpointer.restore(state), state["w"].tolist(), state["own"].value]


def leaks(url: str) -> tuple[int, int, int]:
    """What opening and closing leaves behind, per process."""
    state = _halves(1.0)
    for round_ in range(4):
        with Checkpointer(url, run="run") as checkpointer:
            checkpointer.save(round_, state).wait()
        if round_ == 1:
            before = resources()
    after = resources()
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


def dies_while_saving(url: str) -> str:
    """Rank 1 dies once its second save is staged; the others are told."""
    checkpointer = Checkpointer(url, run="run")
    checkpointer.save(1, _halves(1.0)).wait()
    for lane in checkpointer._saver._lanes.values():
        lane._commit_timeout = 3.0
    if dist.get_rank() == 1:
        checkpointer._saver.submit = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    save = checkpointer.save(2, _halves(2.0))
    text = outcome(save.wait)
    checkpointer.close()
    return text


def dies_while_restoring(url: str) -> str:
    """Rank 1 is gone when the others want to agree."""
    checkpointer = Checkpointer(url, run="run")
    state = _halves(0.0)
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    text = outcome(lambda: checkpointer.restore(state))
    checkpointer.close()
    return text


def restore_halves(url: str) -> tuple[int | None, list[float]]:
    state = _halves(0.0)
    with Checkpointer(url, run="run") as checkpointer:
        step = checkpointer.restore(state)
    return step, state["w"].to_local().unique().tolist()


def memory_runs_out_on_one(url: str) -> list[str]:
    """Rank 1 gets no staging image once; the other rank must get its own back."""
    with Checkpointer(url, run="run") as checkpointer:
        texts = []
        for step, fails in ((1, True), (2, False), (3, True), (4, False)):
            real = checkpointer._saver.acquire
            if fails and dist.get_rank() == 1:
                checkpointer._saver.acquire = _no_memory
            texts.append(outcome(lambda at=step: checkpointer.save(at, _halves(1.0)).wait()))
            checkpointer._saver.acquire = real
    return texts


def one_cannot_copy(folder: str) -> list[str]:
    """Rank 1 fails once in its copy: which try and which tiers come next is counted alike."""
    tiers = [
        TierConfig(name, f"file://{folder}/{name}", every=n) for name, n in (("a", 1), ("b", 2))
    ]
    with Checkpointer(Config(tuple(tiers)), run="run") as checkpointer:
        checkpointer.save(1, _halves(1.0)).wait()
        for lane in checkpointer._saver._lanes.values():
            lane._commit_timeout = 0.0  # nobody waits for what will not come
        shard = checkpointer._shard
        assert shard is not None
        if dist.get_rank() == 1:
            shard.staged.stage = _cannot_copy  # type: ignore[method-assign]
        outcomes = [outcome(lambda: checkpointer.save(2, _halves(2.0)).wait())]
        vars(shard.staged).pop("stage", None)
        for lane in checkpointer._saver._lanes.values():
            lane._commit_timeout = PATIENCE
        saves = [checkpointer.save(step, _halves(3.0)) for step in (2, 3)]
        for save in saves:
            save.wait()
        reached = [[str(status.state) for status in save.status().values()] for save in saves]
        attempts = [str(save.attempt) for save in saves]
        return [*outcomes, *map("{}: {}".format, attempts, reached)]


def _cannot_copy(_: object) -> None:
    raise CheckpointError("no copy today")


def one_is_behind(folder: str) -> tuple[list[tuple[int, str]], dict[str, str]]:
    """Rank 1 alone is behind with tier b: no rank sends it there, and all catch up."""
    tiers = [TierConfig(name, f"file://{folder}/{name}") for name in ("a", "b")]
    with Checkpointer(Config(tuple(tiers)), run="run") as checkpointer:
        saver = checkpointer._saver
        checkpointer.save(1, _halves(1.0)).wait()
        if dist.get_rank() == 1:
            saver.behind = lambda: ("b",)  # type: ignore[method-assign]
        save = checkpointer.save(2, _halves(2.0))
        save.wait("a")
        until(lambda: not save.failed)
        save.wait()
        failures = [(failure.attempt.step, failure.tier) for failure in saver.failures]
        return failures, {name: str(status.state) for name, status in save.status().items()}


def forked_child(url: str) -> str:
    """A rank forks a child that wants a Checkpointer of its own."""
    with Checkpointer(url, run="run") as checkpointer:
        checkpointer.save(1, _halves(1.0)).wait()
        return in_child(lambda: Checkpointer(url, run="run"))


def in_child(work: Callable[[], object]) -> str:
    """Return what `work` gives in a forked child, or its error, as text."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with os.fdopen(writing, "w") as pipe:
            pipe.write(outcome(work))
        os._exit(0)
    os.close(writing)
    hung = threading.Timer(PATIENCE, os.kill, [pid, signal.SIGKILL])
    hung.start()
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    hung.cancel()
    os.waitpid(pid, 0)
    return text


def _no_memory(size: int, *, timeout: float, **_others: object) -> Any:
    raise OutOfSpaceError(f"no {size} bytes")


def under_modes(url: str) -> list[str]:
    """Save and restore under one mode after the other."""
    state = {"w": torch.zeros(5), "n": 0, "own": per_rank(dist.get_rank())}
    texts = []
    with Checkpointer(url, run="run") as checkpointer:
        modes = [torch.device("meta"), torch.inference_mode(), nullcontext()]
        for step, mode in enumerate(modes):
            state["w"].fill_(step)
            with mode:
                checkpointer.save(step, state).wait()
                state["w"].fill_(-1)
                texts.append(f"{checkpointer.restore(state)} {float(state['w'][0])}")
    return texts


def fresh_sharded_optimizers(url: str) -> list[str]:
    """Restore FSDP2 optimizers that have not stepped; return those that go on otherwise."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    makers: dict[str, Any] = {
        "adamw": torch.optim.AdamW,
        "adagrad": torch.optim.Adagrad,
        "some": lambda p: torch.optim.AdamW([*p][2:]),
        "wrapped": lambda p: _Wrapped(torch.optim.AdamW(p)),
    }

    def training(kind: str, *, steps: int) -> tuple[torch.nn.Module, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 3))
        fully_shard(model, mesh=mesh)
        optimizer = makers[kind](model.parameters())
        for _ in range(steps):
            step(model, optimizer)
        return model, optimizer

    def step(model: torch.nn.Module, optimizer: Any) -> float:
        loss = model(torch.ones(2, 3)).square().sum()
        loss.backward()
        optimizer.step()
        model.zero_grad()
        return loss.item()

    wrong = []
    for kind in makers:
        first, second = training(kind, steps=2), training(kind, steps=0)
        with Checkpointer(url, run=kind) as checkpointer:
            checkpointer.save(1, dict(zip("mo", first, strict=True))).wait()
            checkpointer.restore(dict(zip("mo", second, strict=True)))
        if [step(*first) for _ in range(3)] != [step(*second) for _ in range(3)]:
            wrong.append(kind)
    return wrong


class _Wrapped:
    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base
        self.step, self.state_dict = base.step, base.state_dict

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state)


def own_parts(url: str, saved: list[Any], here: list[Any], *, save: bool) -> tuple[str, str, Any]:
    """Save, or restore, values of which each rank may have something of its own.

    Returns what a strict restore says, what the log says of another, and what is there then.
    """
    rank = dist.get_rank()
    with Checkpointer(url, run="run") as checkpointer:
        if save:
            checkpointer.save(1, {"w": 1, **_own(saved[rank])}).wait()
            return "", "", None
        state: dict[str, Any] = {"w": 0, **_own(here[rank])}
        strict = outcome(lambda: checkpointer.restore(state))
        records: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("tierstore_torch.restore")
        logger.addHandler(handler)
        try:
            checkpointer.restore(state, strict=False)
        finally:
            logger.removeHandler(handler)
        return strict, "\n".join(records), state["own"].value if "own" in state else None


def _own(part: Any) -> dict[str, Any]:
    return {} if part is None else {"own": per_rank(part)}


def lone_surrogates(url: str) -> list[str]:
    """One rank's key cannot be stored; both are told, and can save after that."""
    key = "x\ud800" if dist.get_rank() else "x"
    with Checkpointer(url, run="run") as checkpointer:
        return [
            outcome(lambda: checkpointer.save(1, {key: torch.ones(1)}).wait()),
            outcome(lambda: checkpointer.save(1, {"x": torch.ones(1)}).wait()),
        ]


def stateless_rank(url: str) -> list[Any]:
    """Rank 1 has nothing to save, and nothing to restore; then it does."""
    empty = dist.get_rank() == 1
    here = {} if empty else {"w": torch.zeros(3)}
    with Checkpointer(url, run="run") as checkpointer:
        checkpointer.save(1, {} if empty else {"w": torch.full((3,), 5.0)}).wait()
        step = checkpointer.restore(here)
    return [step, float(here["w"][0]) if here else 0.0]


def arrays_of_ranks(url: str) -> list[str]:
    """An array that all have, one that differs, and one for each rank."""
    rank = dist.get_rank()
    shared, differing = np.arange(5000.0), np.full(5000, rank)

    def trip(run: str, array: Any) -> bool:
        with Checkpointer(url, run=run) as checkpointer:
            checkpointer.save(1, {"a": array}).wait()
            here = {"a": per_rank(None) if isinstance(array, PerRank) else None}
            checkpointer.restore(here)
        (left, right) = (getattr(a, "value", a) for a in (array, here["a"]))
        return bool((left == right).all())

    return [
        outcome(lambda: trip("shared", shared)),
        outcome(lambda: trip("differing", differing)),
        outcome(lambda: trip("own", per_rank(differing))),
    ]
