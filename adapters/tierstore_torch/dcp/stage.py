"""Staging for `dcp.async_save`: one copy into an image, and stand-ins for DCP to plan with.

The staged state dict has the shape of the original, with a stand-in for each tensor. The trainer's
image is free again when DCP lets go of the staged state dict, however the save ended: in DCP's
thread and process mode alike that is the one event that never fails to come.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import finalize

import torch
from torch.distributed.tensor import DTensor

from tierstore.errors import CheckpointError, PlanError, TierstoreError
from tierstore.image.layout import Chunk, plan_layout
from tierstore.image.pool import Image, StagingPool
from tierstore_torch import torch_private
from tierstore_torch.dcp.standin import OwnMemory, Refusal, StagedChunk, StandIn
from tierstore_torch.state.encoding import check_name, saveable
from tierstore_torch.state.items import is_storable, local_tensor, tensor_chunks
from tierstore_torch.state.staging import StagedPlan

IMAGES = 2
"""Staging images a process has at most: a second one only while a save still holds the first."""

_KEPT = 2  # plans remembered; a job alternates between few state dicts
_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes)
_STAND_INS = "tierstore_torch.stand_ins"

Leaf = tuple[str, torch.Tensor]
Signature = tuple[object, ...]


class Staged(dict[str, Any]):
    """A staged state dict; when it is let go of, its image is free."""


class Staging:
    """This process's staging memory and the plans it knows. Thread-safe."""

    def __init__(self) -> None:
        self._pool = StagingPool(limit=IMAGES)
        self._plans: list[_Plan] = []
        self._lock = threading.Lock()

    def stage(self, state: Mapping[str, Any], *, timeout: float, holder: str) -> Staged:
        """Copy a state dict; when it returns, the original may change.

        What fails here is raised by the planning of the save instead, where DCP tells every rank:
        an error that only this rank saw would leave the others waiting for it.

        Args:
            state: any nesting of dicts and lists.
            timeout: seconds to wait for a free image.
            holder: what is saved, for errors.
        """
        try:
            return self._stage(state, timeout, holder)
        except TierstoreError as error:
            return Staged({"tierstore": Refusal.of(error)})
        except Exception as error:
            failed = CheckpointError(f"staging failed: {type(error).__name__}: {error}")
            return Staged({"tierstore": Refusal.of(failed)})

    def close(self) -> None:
        """Give the memory back. Saves that are under way keep theirs."""
        self._pool.close()

    @torch.inference_mode(False)  # what is made here is used again, in whatever mode
    @torch.no_grad()
    def _stage(self, state: Mapping[str, Any], timeout: float, holder: str) -> Staged:
        leaves: list[Leaf] = []
        _walk(state, (), lambda path, value: leaves.append((".".join(path), value)), _ignore)
        plan = self._plan(leaves)
        image = self._pool.acquire(plan.size, timeout=timeout, holder=holder)
        try:
            stand_ins = iter(plan.stage(leaves, image))
            staged = Staged(_walk(state, (), lambda *_: next(stand_ins), _frozen))
        except BaseException:
            image.release()
            raise
        finalize(staged, image.release).atexit = False
        return staged

    def _plan(self, leaves: list[Leaf]) -> _Plan:
        signatures = [_signature(name, value) for name, value in leaves]
        with self._lock:
            for plan in self._plans:
                if plan.signatures == signatures:
                    return plan
            plan = _Plan(leaves, signatures)
            self._plans = [plan, *self._plans][:_KEPT]
            return plan


@dataclass(slots=True)
class _StandIns:
    plan: _Plan
    memory: OwnMemory
    made: list[StandIn]


class _Plan:
    """Where the tensors of state dicts of one structure are staged."""

    def __init__(self, leaves: Sequence[Leaf], signatures: list[Signature]) -> None:
        self.signatures = signatures
        self._chunks = [[chunk for chunk, _ in _parts(*leaf)] for leaf in leaves]
        chunks = [chunk for row in self._chunks for chunk in row]
        self._staged = StagedPlan(plan_layout(chunks, rank=0), chunks, [])
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self._staged.layout.size

    def stage(self, leaves: Sequence[Leaf], image: Image) -> list[StandIn]:
        """Copy the leaves into the image and return what stands for them."""
        with self._lock:
            sources = [
                tensor
                for leaf, chunks in zip(leaves, self._chunks, strict=True)
                for tensor in _sources(leaf, chunks)
            ]
            self._staged.sources = sources
            try:
                self._staged.stage(image)
            finally:
                self._staged.sources = []  # between saves no tensor is kept alive
            return self._stand_ins(leaves, image)

    def _stand_ins(self, leaves: Sequence[Leaf], image: Image) -> list[StandIn]:
        known = cast("_StandIns | None", image.derived.get(_STAND_INS))
        if known is not None and known.plan is self:
            known.memory.image = image
            return known.made
        memory = OwnMemory(image)
        offsets = iter(map(self._staged.layout.image_offset, range(len(self._staged.chunks))))
        made = [
            StandIn.make(
                value,
                [StagedChunk(chunk, next(offsets)) for chunk in chunks],
                memory,
                sharded=isinstance(value, DTensor) or torch_private.local_shards(value) is not None,
            )
            for (_, value), chunks in zip(leaves, self._chunks, strict=True)
        ]
        image.derived[_STAND_INS] = _StandIns(self, memory, made)
        return made


def _parts(name: str, value: torch.Tensor) -> list[tuple[Chunk, torch.Tensor]]:
    if not is_storable(value):
        raise PlanError(
            f"{name}: a {type(value).__name__} of layout {value.layout} has no plain bytes to save",
            hint="save its dense parts as tensors of their own",
        )
    return tensor_chunks(check_name(name), value)


def _sources(leaf: Leaf, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
    name, value = leaf
    if len(chunks) == 1 and type(value) in (torch.Tensor, torch.nn.Parameter, DTensor):
        local = local_tensor(value)
        if tuple(local.shape) == chunks[0].sizes:
            return [local]
    parts = _parts(name, value)
    if [chunk for chunk, _ in parts] != list(chunks):
        raise CheckpointError(f"{name}: its shards changed although its placement did not")
    return [tensor for _, tensor in parts]


def _signature(name: str, value: torch.Tensor) -> Signature:
    """What must be as before for a plan to stay valid."""
    if isinstance(value, DTensor):
        return name, DTensor, value.dtype, value.shape, value.placements, value.device_mesh
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        return name, torch.Tensor, value.dtype, value.shape, value.layout
    return name, type(value), value.dtype, *(chunk for chunk, _ in _parts(name, value))


def _walk(
    value: Any,
    path: tuple[str, ...],
    tensor: Callable[[tuple[str, ...], torch.Tensor], Any],
    other: Callable[[tuple[str, ...], Any], Any],
) -> Any:
    """Rebuild a state dict, entering what DCP's planner enters: dicts, and lists with tensors."""
    if isinstance(value, torch.Tensor):
        return tensor(path, value)
    if isinstance(value, Mapping):
        return {k: _walk(v, (*path, str(k)), tensor, other) for k, v in value.items()}
    if isinstance(value, list) and _is_entered(value):
        return [_walk(v, (*path, str(i)), tensor, other) for i, v in enumerate(value)]
    return other(path, value)


def _is_entered(values: list[Any]) -> bool:
    return any(
        isinstance(value, (torch.Tensor, Mapping))
        or (isinstance(value, list) and _is_entered(value))
        for value in values
    )


def _frozen(path: tuple[str, ...], value: Any) -> Any:
    if type(value) in _IMMUTABLE:
        return value
    return saveable(".".join(path), lambda: copy.deepcopy(value))


def _ignore(_path: tuple[str, ...], _value: Any) -> None:
    return None


_staging: tuple[int, Staging] | None = None
_staging_lock = threading.Lock()


def process_staging() -> Staging:
    """Return this process's staging memory, which outlives writers: making it costs a second."""
    global _staging  # noqa: PLW0603 - one per process, as its memory is
    with _staging_lock:
        if _staging is None or _staging[0] != os.getpid():
            _staging = os.getpid(), Staging()
        return _staging[1]


def close_staging() -> None:
    """Give the staging memory back; the next save makes new."""
    global _staging
    with _staging_lock:
        known, _staging = _staging, None
    if known is not None and known[0] == os.getpid():
        known[1].close()
