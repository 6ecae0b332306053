"""DCP's storage writer: `dcp.save` and `dcp.async_save` onto a ladder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from tierstore.checkpoint.store import RunStore
from tierstore.config import Config, load_config
from tierstore.errors import IncompleteError, InvalidKeyError, PlanError
from tierstore.image.layout import SEGMENT_BYTES
from tierstore.keys import Attempt
from tierstore.ladder.tiers import OpenTier
from tierstore_torch.dcp.checkpoint_id import CheckpointId, parse_id
from tierstore_torch.dcp.errors import portable
from tierstore_torch.dcp.ladder import Ladder
from tierstore_torch.dcp.notice import UNDECLARED, Notice, Parcel, collect, deliver, expect
from tierstore_torch.dcp.session import Life, RunSession, lives_of, session_of
from tierstore_torch.dcp.shard import PlannedShard, is_stored
from tierstore_torch.dcp.stage import close_staging, process_staging
from tierstore_torch.dcp.standin import return_borrowed
from tierstore_torch.state.encoding import tell_pickled


class TierStorageWriter(StorageWriter, AsyncStager):
    """Writes `dcp.save` and `dcp.async_save` (thread and process mode) to every tier of a ladder.

    ::

        dcp.save(state, storage_writer=TierStorageWriter("s3://b/t", checkpoint_id="llama-8b/100"))

    What it writes `Checkpointer` reads, and the other way round. Every rank must see every tier.
    `every` in a configuration is not looked at: each save goes to all tiers, the first one first,
    and has succeeded only when all of them hold its commit. A save that fails on any rank fails on
    all, with DCP's CheckpointException; `tierstore_torch.dcp.errors.cause` returns what it was.

    `async_save` blocks for one copy of the tensors into staging memory that belongs to the process
    and not to the writer, so a new writer for each save costs nothing. Wait for one save before the
    next, as DCP asks.

    Args:
        tiers: one TOML file, or URLs, the fastest tier first, or a Config; see `load_config`.
        checkpoint_id: "<run>/<step>"; `dcp.save(checkpoint_id=...)` replaces it.
        run: the run, if checkpoint_ids are paths that do not name it (".../step-100").
        segment_bytes: the size at which a stored file is closed.
        stage_timeout: seconds that `async_save` waits for staging memory that earlier saves hold.

    Raises:
        ConfigError: the tiers are described wrongly.
        InvalidKeyError: the checkpoint_id is not a run and a step.
    """

    _synchronize_after_execute = False  # `stage` has copied when it returns

    def __init__(
        self,
        *tiers: str | os.PathLike[str] | Config,
        checkpoint_id: str | os.PathLike[str] | None = None,
        run: str | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        stage_timeout: float = 600.0,
    ) -> None:
        self._ladder = Ladder(load_config(*tiers))
        self._run = run
        self._id: CheckpointId | None = None
        self._segment_bytes = segment_bytes
        self._stage_timeout = stage_timeout
        self._lives: Mapping[str, Life] = {}
        self._told: set[str] = set()  # values that are pickles
        self._notice: Notice | None = None
        self.reset(checkpoint_id)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """See `StorageWriter.reset`; without a checkpoint_id the last one stays."""
        if checkpoint_id is None:
            return
        parsed = parse_id(checkpoint_id, self._run)
        if parsed.step is None:
            raise InvalidKeyError(
                f"checkpoint_id {os.fspath(checkpoint_id)!r} does not say which step to save",
                hint='write "<run>/<step>"',
            )
        self._id = parsed

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """See `StorageWriter.set_up_storage_writer`; DCP looks for the literal name `kwargs`."""
        del is_coordinator, args
        expect()
        self._notice = None
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        if not kwargs.get("use_collectives", True) and not alone:
            raise PlanError(
                "use_collectives=False is not supported with several ranks: each would save a "
                "checkpoint of its own, replicas included, that no other number of ranks can load"
            )
        session, step = self._session()
        session.goes_to(step)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """See `StorageWriter.prepare_local_plan`; nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Choose the attempt and tell every rank (see `dcp_notice`)."""
        with portable():
            session, step = self._session()
            tiers = self._ladder.tiers(len(plans))
            launch, attempt = session.begin(tiers, step, len(plans))
            notice = Notice(attempt, launch, len(plans), _declared(plans))
        if len(plans) == 1:
            deliver(notice)
            return plans
        return [
            replace(plan, storage_data=Parcel(replace(notice, rank=rank)))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files and its fragment to every tier."""
        future: Future[list[WriteResult]] = Future()
        try:
            with portable():
                notice = self._notice = collect()
                tiers = self._ladder.tiers(notice.world_size)
                shard = PlannedShard(plan, planner, notice.rank, self._segment_bytes)
                tell_pickled(shard.values, self._told)
                backends = [tier.backend for tier in tiers]
                future.set_result(shard.write(backends, run=self._session()[0].run, notice=notice))
        finally:
            return_borrowed()
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit on every tier, if all ranks wrote all that was planned, of one attempt.

        Raises:
            IncompleteError: something is missing; nothing was committed on that tier.
        """
        with portable():
            notice = self._notice
            if notice is None:
                raise IncompleteError("finish was called without write_data")
            _check_results(notice, metadata, results)
            for tier in self._ladder.tiers(notice.world_size):
                _commit(tier, self._session()[0].run, notice)
            metadata.storage_meta = self.storage_meta()
            metadata.storage_data = str(notice.attempt)

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Copy the tensors; see `AsyncStager.stage`. They may be changed when it returns."""
        if self._id is not None:
            session, step = self._session()
            session.goes_to(step)
        holder = f"the save of {self._id}" if self._id else "a save"
        return process_staging().stage(state_dict, timeout=self._stage_timeout, holder=holder)

    def synchronize_staging(self) -> None:
        """Nothing to wait for: `stage` has copied when it returns."""

    def close(self) -> None:
        """Close connections and give the process's staging memory back. Idempotent."""
        self._ladder.close()
        close_staging()

    def storage_meta(self) -> StorageMeta:
        """See `StorageWriter.storage_meta`."""
        return StorageMeta(checkpoint_id=self.checkpoint_id)

    @property
    def checkpoint_id(self) -> str | None:
        """What was given last, as "<run>/<step>"."""
        return None if self._id is None else str(self._id)

    @property
    def attempt(self) -> Attempt | None:
        """The attempt of the save under way, or of the last one, in this process."""
        return None if self._notice is None else self._notice.attempt

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether a checkpoint_id is "<run>/<step>"."""
        try:
            return parse_id(checkpoint_id).step is not None
        except InvalidKeyError:
            return False

    def _session(self) -> tuple[RunSession, int]:
        if self._id is None or self._id.step is None:
            raise InvalidKeyError(
                "there is no checkpoint_id", hint='give the writer or dcp.save "<run>/<step>"'
            )
        run = self._id.run
        return session_of(run, self._ladder.config, self._lives.get(run)), self._id.step

    def __getstate__(self) -> dict[str, Any]:
        # Into DCP's save process go the configuration and who this trainer is.
        lives = {**self._lives, **lives_of(self._ladder.config)}
        return self.__dict__ | {"_lives": lives, "_notice": None}


def _declared(plans: Sequence[SavePlan]) -> int:
    if not all(plan.usable for plan in plans):
        return UNDECLARED
    return sum(1 for plan in plans for item in plan.items if is_stored(item))


def _check_results(
    notice: Notice, metadata: Metadata, results: Sequence[Sequence[WriteResult]]
) -> None:
    """Every planned item was written, by ranks that wrote this attempt."""
    if len(results) != notice.world_size:
        raise IncompleteError(f"{len(results)} of {notice.world_size} ranks have written")
    written: set[MetadataIndex] = set()
    for rank, row in enumerate(results):
        others = {result.storage_data for result in row} - {str(notice.attempt)}
        if others:
            raise IncompleteError(f"rank {rank} wrote {others}, not {notice.attempt}")
        written.update(result.index for result in row)
    planned: set[MetadataIndex] = set()
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, BytesStorageMetadata):
            planned.add(MetadataIndex(name))
        else:
            planned.update(MetadataIndex(name, chunk.offsets) for chunk in entry.chunks)
    if missing := planned - written:
        raise IncompleteError(
            f"{len(missing)} of {len(planned)} planned items were not written, among them "
            f"{min(index.fqn for index in missing)}"
        )


def _commit(tier: OpenTier, run: str, notice: Notice) -> None:
    ranks = tuple(range(notice.world_size))
    commit = RunStore(tier.backend, run).try_commit(notice.attempt, notice.launch.nonce, ranks)
    if commit is None:
        raise IncompleteError(
            f"tier {tier.name!r}: not all {notice.world_size} ranks' fragments of "
            f"{notice.attempt} are there",
            hint="every rank must see the same tier; for node-local disks use Checkpointer",
        )
    if commit.ranks != ranks:
        raise IncompleteError(f"tier {tier.name!r}: the commit covers only ranks {commit.ranks}")
