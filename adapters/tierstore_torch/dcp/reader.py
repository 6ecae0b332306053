"""DCP's storage reader: `dcp.load` from a ladder."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.manifest import Manifest, Tensor
from tierstore.checkpoint.values import decode
from tierstore.config import Config, load_config
from tierstore.errors import (
    CheckpointError,
    InvalidKeyError,
    PlanError,
    UnsafePickleError,
)
from tierstore.image.layout import Chunk
from tierstore.ladder.find import Found, choose
from tierstore.transfer.read import ReadReport
from tierstore_torch.dcp.checkpoint_id import CheckpointId, parse_id
from tierstore_torch.dcp.errors import portable
from tierstore_torch.dcp.ladder import Ladder
from tierstore_torch.dcp.metadata import metadata_failing, metadata_of
from tierstore_torch.dcp.session import note_loaded
from tierstore_torch.state.arrays import Array, array_type, new_array
from tierstore_torch.state.items import check_numbers, is_storable
from tierstore_torch.state.overlap import wants
from tierstore_torch.state.targets import Target, check_memory, check_twins, read_wants


class TierStorageReader(StorageReader):
    """Reads `dcp.load` from the highest tier that has good bytes, whoever wrote the checkpoint.

    ::

        dcp.load(state, storage_reader=TierStorageReader("s3://b/t", checkpoint_id="llama-8b/100"))

    Bytes go straight into the tensors where they are contiguous, and only blocks that hold wanted
    elements are read; each is checked. Saves of this process go on from what it loaded.

    Args:
        tiers: one TOML file, or URLs, the fastest tier first, or a Config; see `load_config`.
        checkpoint_id: "<run>/<step>", or "<run>" or "<run>/latest" for the newest step;
            `dcp.load(checkpoint_id=...)` replaces it.
        run: the run, if checkpoint_ids are paths that do not name it (".../step-100").
        allow_pickle: load values that are stored as pickles, which can run any code.
        resume: False to look at a checkpoint without going on from it.

    Raises:
        ConfigError: the tiers are described wrongly.
        InvalidKeyError: the checkpoint_id is not a run and a step.
    """

    def __init__(
        self,
        *tiers: str | os.PathLike[str] | Config,
        checkpoint_id: str | os.PathLike[str] | None = None,
        run: str | None = None,
        allow_pickle: bool = False,
        resume: bool = True,
    ) -> None:
        self._ladder = Ladder(load_config(*tiers))
        self._run = run
        self._id: CheckpointId | None = None
        self._allow_pickle = allow_pickle
        self._resume = resume
        self._found: Found | None = None
        self._failure: Exception | None = None
        self.report: ReadReport | None = None
        """What the last load read."""
        self.reset(checkpoint_id)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """See `StorageReader.reset`; without a checkpoint_id the last one stays."""
        self._found = self._failure = self.report = None
        if checkpoint_id is not None:
            self._id = parse_id(checkpoint_id, self._run)

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        """Find the checkpoint; its metadata is made as far as the planner looks at it.

        It never raises: see `metadata_failing`. Nor has it a parameter called `kwargs`, by which
        DCP would fall back to one file per rank.
        """
        del args, options
        meta = StorageMeta(checkpoint_id=self.checkpoint_id)
        try:
            with portable():
                self._found = self._find()
                return metadata_of(self._found.manifest, meta)
        except Exception as error:
            self._failure = error
            return metadata_failing(error, meta)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Raise what went wrong in `read_metadata`: here it reaches all ranks."""
        del metadata, is_coordinator, args, kwargs
        if self._failure is not None:
            raise self._failure

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Refuse pickles before anything is read, and note which attempt this rank found.

        Raises:
            UnsafePickleError: a wanted value is a pickle and pickles are not allowed.
        """
        found = self._opened()
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                value = _value_of(found.manifest, item)
                if isinstance(value, ValueEntry):
                    self._check(value)
        return replace(plan, storage_data=str(found.attempt))

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Check that all ranks found the same attempt.

        Raises:
            CheckpointError: a newer one was committed while they looked.
        """
        attempts = sorted({str(plan.storage_data) for plan in plans})
        if len(attempts) > 1:
            raise CheckpointError(
                f"the ranks found different checkpoints: {', '.join(attempts)}",
                hint="one was committed meanwhile: load again, or name the step",
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what the plan wants into the tensors that the planner gives."""
        with portable(), torch.no_grad():
            found = self._opened()
            names = [file.name for file in found.manifest.files]
            targets: list[Target] = []
            filled: list[tuple[ReadItem, torch.Tensor]] = []
            for item in plan.items:
                if item.type == LoadItemType.BYTE_IO:
                    planner.load_bytes(item, self._bytes(_value_of(found.manifest, item), found))
                    continue
                tensor = planner.resolve_tensor(item)
                filled.append((item, tensor))
                targets.append(_target(found.manifest, names, item, tensor.detach()))
            targets, twins = check_memory(targets)
            check_twins(twins, found)
            self.report = read_wants([w for target in targets for w in target.wants], found)
            for item, tensor in filled:
                planner.commit_tensor(item, tensor)
            if self._resume:
                note_loaded(found.run, self._ladder.config, found.id)
            self._found = None
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def close(self) -> None:
        """Close connections. Idempotent; the next load opens new ones."""
        self._found = None
        self._ladder.close()

    @property
    def checkpoint_id(self) -> str | None:
        """What was given last, as "<run>/<step>" or "<run>/latest"."""
        return None if self._id is None else str(self._id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether a checkpoint_id is a run, with or without a step."""
        try:
            parse_id(checkpoint_id)
        except InvalidKeyError:
            return False
        return True

    def _find(self) -> Found:
        if self._id is None:
            raise InvalidKeyError(
                "there is no checkpoint_id", hint='give the reader or dcp.load "<run>/<step>"'
            )
        return choose(self._ladder.tiers(), self._id.run, step=self._id.step)

    def _opened(self) -> Found:
        if self._found is None:
            raise CheckpointError("no checkpoint is open", hint="call the reader through dcp.load")
        return self._found

    def _check(self, value: ValueEntry) -> None:
        if value.kind == "opaque" and not self._allow_pickle:
            raise UnsafePickleError(
                f"{value.name} is stored as a pickle, and loading one can run any code",
                hint="if you trust who wrote the checkpoint, make the reader with "
                "allow_pickle=True; better, save plain values and tensors only",
            )

    def _bytes(self, value: ValueEntry | Tensor, found: Found) -> io.BytesIO:
        """Return a value as planners want it: what torch.save made of it."""
        plain: Any
        if isinstance(value, Tensor):
            plain = _array(value, found)
        else:
            self._check(value)
            if value.kind == "opaque":
                return io.BytesIO(value.data)
            plain = decode(bytes(value.data).decode())
        buffer = io.BytesIO()
        torch.save(plain, buffer)
        buffer.seek(0)
        return buffer


def _value_of(manifest: Manifest, item: ReadItem) -> ValueEntry | Tensor:
    """Return a value, which is a tensor if it is a large array."""
    name = item.storage_index.fqn
    if (value := manifest.find_value(name)) is not None:
        return value
    tensor = manifest.find(name)
    if tensor is None or array_type(tensor.path) is None:
        raise PlanError(f"{name} is not a value of this checkpoint")
    return tensor


def _array(saved: Tensor, found: Found) -> Array:
    dtype = array_type(saved.path)
    array, tensor = new_array(saved, dtype or np.dtype(np.uint8))
    whole = Chunk(saved.name, saved.dtype, saved.shape, (0,) * len(saved.shape), saved.shape)
    read_wants(
        list(wants(saved, [file.name for file in found.manifest.files], whole, tensor)), found
    )
    return array


def _target(
    manifest: Manifest, files: Sequence[str], item: ReadItem, tensor: torch.Tensor
) -> Target:
    index = item.storage_index
    saved = manifest.find(index.fqn)
    if saved is None or index.offset is None:
        raise PlanError(f"{index.fqn} is not a tensor of this checkpoint")
    if tensor.size() != item.lengths:
        raise PlanError(
            f"{index.fqn}: the planner gave a tensor of shape {tuple(tensor.shape)} for a part of "
            f"shape {tuple(item.lengths)}"
        )
    if not is_storable(tensor):
        raise PlanError(
            f"{item.dest_index.fqn}: a {type(tensor).__name__} of layout {tensor.layout} has no "
            "plain memory to load into",
            hint="load into a dense tensor",
        )
    check_numbers(item.dest_index.fqn, tensor)
    start = tuple(a + b for a, b in zip(index.offset, item.storage_offsets, strict=True))
    part = Chunk(index.fqn, saved.dtype, saved.shape, start, tuple(item.lengths))
    reads = list(wants(saved, files, part, tensor))
    return Target(item.dest_index.fqn, saved, part, tensor, reads)
