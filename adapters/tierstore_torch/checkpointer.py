"""`Checkpointer`: save a training state without stopping it, and restore it at any world size."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pyarrow.compute  # noqa: F401 - 30 MiB and a third of a second that no save should pay
import torch
import torch.distributed as dist

from tierstore.config import Config, load_config
from tierstore.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    PlanError,
    TierstoreError,
    UnsafePickleError,
)
from tierstore.image.layout import SEGMENT_BYTES
from tierstore.image.pool import Image, StagingPool
from tierstore.keys import Attempt, AttemptId, RunKeys, check_run
from tierstore.ladder.find import Found
from tierstore.ladder.handle import SaveHandle
from tierstore.ladder.save import Saver
from tierstore.ladder.shard import Shard
from tierstore.ladder.tiers import close_ladder, open_ladder
from tierstore.logs import logger
from tierstore_torch.catalog import GRACE, Catalog, Step
from tierstore_torch.group import Group
from tierstore_torch.launch import claim_launch
from tierstore_torch.load import load_from
from tierstore_torch.preempt import StopSignal
from tierstore_torch.restore import Rules, restore_into
from tierstore_torch.save import Save
from tierstore_torch.state.encoding import tell_pickled
from tierstore_torch.state.shard import RankShard, plan_shard

if TYPE_CHECKING:
    from tierstore.checkpoint.timeline import Launch

T = TypeVar("T")
_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class _Ready:
    """What all ranks agreed on before they copy: none counts by what it does alone."""

    attempt: Attempt
    tiers: list[str]
    behind: set[str]  # those of them whose queue is full on some rank
    shard: RankShard
    launch: Launch
    image: Image


class Checkpointer:
    """Saves and restores one run, from every rank of a job.

    All ranks make it, and call its methods in the same order::

        ckpt = Checkpointer("file:///nvme/t", "s3://bucket/t", run="llama-8b", sigterm_deadline=25)
        state = {"model": model, "optimizer": optimizer, "rng": per_rank(rng), "step": 0}
        step = ckpt.restore(state) or 0
        while step < steps:
            train(step); step += 1
            stop = ckpt.stop_requested()           # some rank got SIGTERM: all leave together
            if stop or step % 100 == 0:
                state["step"] = step
                save = ckpt.save(step, state)      # returns once the state is copied
            if stop:
                save.wait("local", timeout=ckpt.time_left)
                break
        ckpt.close()                               # waits for the saves that are under way

    Args:
        tiers: a TOML file, or one or more URLs, fastest first; see `tierstore.config`.
        run: the training job's name, the same over all its restarts.
        process_group: the ranks that save together; the default group if None.
        segment_bytes: the size at which a stored file is closed.
        staging_images: how many saves may be in memory at a time. With 1 a save waits until the
            one before it is on some tier.
        deadline: seconds for a rank to take part in a collective, for an image to come free, for
            the other ranks to finish a save, and for `close` to wait.
        allow_pickle: let `restore` unpickle values that are not plain.
        sigterm_deadline: seconds that this process is given after SIGTERM. With it, SIGTERM only
            makes `stop_requested` true; without it, SIGTERM is left alone.

    Raises:
        ConfigError: the configuration is wrong.
        CheckpointError: another rank could not open the ladder; all ranks raise.
    """

    def __init__(
        self,
        *tiers: str | os.PathLike[str] | Config,
        run: str,
        process_group: dist.ProcessGroup | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        staging_images: int = 1,
        deadline: float = 600.0,
        allow_pickle: bool = False,
        sigterm_deadline: float | None = None,
    ) -> None:
        self._run = check_run(run)
        self._segment_bytes = segment_bytes
        self._deadline = deadline
        self._allow_pickle = allow_pickle
        self._launch: Launch | None = None
        self._parent: AttemptId | None = None
        self._since = 0.0  # when the newest launch began that was seen; its tier may be away later
        self._head: int | None = None  # the last step that this launch saved
        self._tries: Counter[int] = Counter()
        self._count = 0
        self._shard: RankShard | None = None
        self._pending: list[SaveHandle] = []
        self._stopping = False
        self._told: set[str] = set()  # values that are pickles
        self._closed = False
        self._pid = os.getpid()
        self._closing = ExitStack()  # undoes what follows, last first
        with self._closing as undo:
            stop = self._stop = None if sigterm_deadline is None else StopSignal(sigterm_deadline)
            if stop is not None:
                undo.callback(stop.close)
            config = load_config(*tiers)
            self._group = Group(process_group, timeout=deadline, time_left=lambda: self.time_left)
            undo.callback(self._group.close)
            self._tiers = open_ladder(
                config,
                rank=self._group.rank,
                world_size=self._group.size,
                exchange=self._group.all_gather,
            )
            undo.callback(close_ladder, self._tiers)
            self._catalog = Catalog(self._tiers, run, self._group)
            self._pool = StagingPool(limit=staging_images)
            undo.callback(self._pool.close)
            self._saver = Saver(
                self._tiers,
                run,
                pool=self._pool,
                commit_timeout=deadline,
                time_left=lambda: None if stop is None else stop.time_left,
            )
            self._closing = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def save(self, step: int, state: object) -> Save:
        """Copy `state` and return; it is written, committed and drained in the background.

        The first call, and each one after the structure of any rank's state has changed, plans
        with the other ranks. The others compare the structure, exchange one small message and
        copy. When this returns the state may be changed again. A step below the last one begins a
        line of its own, as does a first save without `restore`: it becomes the latest, and what it
        leaves behind is logged.

        Args:
            step: the training step, the same on all ranks.
            state: nested dicts, lists and tuples of tensors, DTensors, plain values, and objects
                with `state_dict` and `load_state_dict`. Replicas are written once. What each rank
                has for itself goes into `per_rank`.

        Raises:
            PlanError: the state cannot be saved as it is; nothing was saved on any rank.
            DeadlineError: the save before this one did not give its memory up in time.
            CheckpointError: this Checkpointer is closed, or another rank is gone.
        """
        started = time.perf_counter()
        self._check_open()
        ready = self._prepare(step, state)
        try:
            ready.shard.staged.stage(ready.image)
            work = self._staged(ready)
            keys = RunKeys(self._run).attempt(ready.attempt, ready.launch.nonce)
            places = {tier.name: tier.backend.url for tier in self._tiers}
        except BaseException:
            ready.image.release()
            raise
        finally:
            ready.shard.release()
        handle = self._saver.submit(work, ready.image, tiers=ready.tiers, behind=ready.behind)
        stall = time.perf_counter() - started
        if not self._allow_pickle:
            tell_pickled(work.values, self._told)
        self._pending = [*(other for other in self._pending if not other.done), handle]
        return Save(stall, ready.shard.nbytes, handle, places, keys)

    def restore(
        self,
        state: object,
        *,
        step: int | None = None,
        allow_older: bool = False,
        strict: bool = True,
    ) -> int | None:
        """Fill `state` in place from the newest complete checkpoint, saved at any world size.

        Tensors are filled where they are, on any device and with any sharding; values are put into
        the dicts and lists that hold them; objects load their part. Every byte is checked against
        its CRC32C. A later `save` goes on from this checkpoint.

        Args:
            state: has the structure that was saved. An optimizer, or an object that has one inside,
                gets the state that was saved wherever it is itself; no step is taken.
            step: this step instead of the newest.
            allow_older: if the newest cannot be read, take the newest that can, on all ranks.
            strict: the keys must be the same. If not, only those that both have are restored, and
                a warning names the others.

        Returns:
            The step, or None if the run has no checkpoint.

        Raises:
            PlanError: state and checkpoint do not fit; nothing has been changed.
            UnsafePickleError: a value is a pickle, and `allow_pickle` is not set.
            CheckpointNotFoundError: there is no complete checkpoint of `step`.
            IntegrityError: no tier has good bytes; `state` is then partly overwritten.
            StorageError: a tier does not answer within some seconds, and may hold a newer step;
                `allow_older` goes on without it. Every error is raised on every rank.
        """
        self._check_open()
        self._settle()
        rules = Rules(strict=strict, allow_pickle=self._allow_pickle)
        read = self._read(
            *(step, lambda found: restore_into(state, found, self._group, rules)),
            allow_older=allow_older,
        )
        if read is None:
            return None
        self._go_on_from(read[0])
        return read[0].attempt.step

    def load(
        self,
        step: int | None = None,
        *,
        map_location: str | torch.device | None = None,
        allow_older: bool = False,
        resume: bool = True,
    ) -> Any:
        """Return what was saved, in new memory: no state to fill is needed.

        Dicts with the types of their keys, lists and tuples, values, tensors (contiguous; sharded
        ones whole, on every rank), arrays, and this rank's own parts in `per_rank`. Of an object
        with `state_dict` that is its state dict; of a subclass of dict or tuple its base. Every
        byte is checked against its CRC32C.

        Args:
            step: this step instead of the newest.
            map_location: the device for tensors, as torch's; None for the CPU.
            allow_older: if the newest cannot be read, take the newest that can, on all ranks.
            resume: a later `save` goes on from this checkpoint, as after `restore`. With False it
                goes on as if nothing had been loaded.

        Raises:
            CheckpointNotFoundError: there is no complete checkpoint, or none of `step`.
            UnsafePickleError: a value is a pickle, and `allow_pickle` is not set.
            PlanError: this torch lacks a dtype, or the device is none.
            IntegrityError: no tier has good bytes.
            StorageError: as for `restore`. Every error is raised on every rank.
        """
        self._check_open()
        self._settle()
        trust = self._allow_pickle
        read = self._read(
            *(step, lambda found: load_from(found, self._group, map_location, allow_pickle=trust)),
            allow_older=allow_older,
        )
        if read is None:
            raise CheckpointNotFoundError(
                f"run {self._run!r} has no checkpoint on {[tier.name for tier in self._tiers]}"
            )
        if resume:
            self._go_on_from(read[0])
        return read[1]

    def steps(self, *, everything: bool = False, allow_unseen: bool = False) -> list[Step]:
        """Return what is saved, as rank 0 sees it, the newest first; see `tierstore.Run.steps`."""
        self._check_open()
        return self._catalog.steps(everything=everything, allow_unseen=allow_unseen)

    def delete(self, step: int, *, grace: float = GRACE) -> None:
        """Delete the checkpoint of a step on every tier. Collective; it waits for the grace.

        A tombstone takes its place on each tier; the data goes when readers have had their time.
        What failed or was killed in between is carried on by the same call.

        Args:
            step: which; of several tries the newest on the timeline, else of an abandoned line.
            grace: seconds that readers have, fewer than `deadline`; with 0 it does not wait.

        Raises:
            CheckpointNotFoundError: there is none.
            CheckpointError: it is still being saved; or some tiers did not do it: it names them.
            StorageError: a tier that may have it does not answer.
        """
        self._check_open()
        if not 0 <= grace < self._deadline:
            raise ConfigError(f"a grace of {grace} s is not less than the deadline, and 0 or more")
        busy = [handle.attempt.step for handle in self._pending if not handle.done]
        self._catalog.delete(step, grace=grace, busy=busy)

    def stop_requested(self) -> bool:
        """Whether any rank has been told by SIGTERM to stop. Collective, about 1 ms.

        From then on a save goes to every tier, and `time_left` counts down on all ranks.
        Always False without `sigterm_deadline`.
        """
        if self._stop is None:
            return False
        if self._group.all_max([int(self._stop.came)])[0]:
            self._stop.note()
            self._stopping = True
        return self._stopping

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline that SIGTERM set, or None if none came; for `Save.wait`."""
        return None if self._stop is None else self._stop.time_left

    def close(self) -> None:
        """Wait for the saves that are under way, then free everything. Idempotent.

        It takes `deadline` seconds at most, after SIGTERM what is left of `sigterm_deadline`, also
        if that comes meanwhile; what is not done by then, or when it is interrupted, has failed.
        In a forked child it does nothing: the saves are the parent's.
        """
        if os.getpid() != self._pid:
            return
        try:
            self._saver.close(self._deadline)
        finally:
            self._closed = True
            self._shard = None
            self._closing.close()

    def _read(
        self, step: int | None, action: Callable[[Found], T], *, allow_older: bool
    ) -> tuple[Found, T] | None:
        """Do something with a checkpoint, or an older one; None if the run has none."""
        failed: list[AttemptId] = []
        while True:
            found = self._catalog.choose(step, failed, allow_older=allow_older)
            if found is None:
                return None
            try:
                return found, action(found)
            except (PlanError, UnsafePickleError):
                raise
            except TierstoreError as error:
                if not allow_older or step is not None:
                    raise
                _log.warning("step %d is passed over: %s", found.attempt.step, error)
                failed.append(found.id)

    def _go_on_from(self, found: Found) -> None:
        self._since = max(self._since, found.since)
        self._begin(found.id)

    def _begin(self, parent: AttemptId | None) -> None:
        """Let the next save begin a launch that goes on from there."""
        self._since = max(self._since, self._launch.started if self._launch else 0.0)
        self._parent, self._launch, self._head = parent, None, None
        self._tries.clear()

    @property
    def _patience(self) -> float:
        left = self.time_left
        return self._deadline if left is None else min(self._deadline, left)

    def _check_open(self) -> None:
        if self._closed:
            raise CheckpointError("this Checkpointer is closed")
        if os.getpid() != self._pid:
            raise CheckpointError(
                f"this Checkpointer is that of process {self._pid}, which has forked this one",
                hint="make a new one here",
            )

    def _prepare(self, step: int, state: object) -> _Ready:
        """Agree on the plan and get memory. Raises on all ranks what fails on any."""
        taken: list[Image] = []
        error: BaseException | None = None
        ready = False
        try:
            step = Attempt(step, 1, 1).step
            ready = self._shard is not None and self._shard.take(state)
            if ready:
                taken.append(self._acquire())
        except Exception as failed:
            error = failed
        try:
            return self._agree(step, state, taken, error, ready=ready)
        except BaseException:
            for image in taken:
                image.release()
            if self._shard is not None:
                self._shard.release()
            raise

    def _agree(
        self,
        step: int,
        state: object,
        taken: list[Image],
        error: BaseException | None,
        *,
        ready: bool,
    ) -> _Ready:
        """Exchange one small message and, where any rank needs it, plan anew."""
        full = self._saver.behind()
        late = [int(tier.name in full) for tier in self._tiers]
        steps = [0, 0] if error is not None else [step, -step]
        digests = self._shard.digests if self._shard else []
        failed, changed, highest, lowest, *rest = self._group.all_max(
            [int(error is not None), int(not ready), *steps, *late, *digests]
        )
        if failed:
            self._group.together(lambda: _raise(error))
        if highest != -lowest:
            raise PlanError(f"ranks save different steps at once: {-lowest} and {highest}")
        late, found = rest[: len(late)], rest[len(late) :]
        differ = any(found[at] != -found[at + 1] for at in range(0, len(found), 2))
        if changed or differ or self._shard is None:  # a difference is named by planning
            while taken:  # of the size that the plan had before
                taken.pop().release()
            self._shard = plan_shard(state, self._group, self._segment_bytes)
        if self._head is not None and step < self._head:
            self._begin(None)  # going back without a restore is a line of its own
        if self._launch is None:
            self._launch = claim_launch(
                self._tiers, self._run, self._group, self._parent, since=self._since
            )
        if not taken:
            self._group.together(lambda: taken.append(self._acquire()))
        self._head = step
        behind = {tier.name for tier, is_late in zip(self._tiers, late, strict=True) if is_late}
        self._tries[step] += 1
        attempt = Attempt(step, self._launch.number, self._tries[step])
        return _Ready(attempt, self._takers(), behind, self._shard, self._launch, taken[0])

    def _acquire(self) -> Image:
        if self._shard is None:
            return self._saver.acquire(0, timeout=self._patience)
        layout = self._shard.staged.layout
        return self._saver.acquire(layout.size, timeout=self._patience, spans=layout.spans)

    def _staged(self, ready: _Ready) -> Shard:
        shard = ready.shard
        return Shard(
            launch=ready.launch,
            attempt=ready.attempt,
            rank=self._group.rank,
            world_size=self._group.size,
            declared=shard.declared,
            layout=shard.staged.layout,
            chunks=shard.staged.chunks,
            values=shard.value_entries(),
        )

    def _takers(self) -> list[str]:
        """The tiers that this save goes to; the same on all ranks."""
        number, self._count = self._count, self._count + 1
        return [t.name for t in self._tiers if self._stopping or number % t.every == 0]

    def _settle(self) -> None:
        """Let the saves under way be found by a restore; their failures are their own."""
        end = time.monotonic() + self._patience
        for handle in self._pending:
            handle.wait_anywhere(max(0.0, end - time.monotonic()))


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error
