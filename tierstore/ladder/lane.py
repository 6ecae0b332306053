"""One tier's lane: a thread that writes saves to the tier, and one that sees to their commits.

Lanes do not wait for each other's saves, so a slow or failing tier holds up nobody else. Within
one save the tiers take turns from the top, because bytes that the first tier has durably matter
more than a second copy on its way; a tier that is stuck is overtaken. A tier that was down or too
far behind gets the newest save as soon as it can, from a tier that has its bytes.

The last writer commits. Every other rank looks again with growing pauses until it sees the commit,
and creates it as soon as all fragments are there, so a last writer that died is replaced.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.fragment import FileEntry
from tierstore.checkpoint.store import RunStore
from tierstore.errors import (
    AlreadyExistsError,
    CheckpointError,
    IncompleteError,
    StorageError,
    TierstoreError,
    TransientError,
)
from tierstore.image.layout import Segment
from tierstore.image.pool import Image
from tierstore.keys import RunKeys
from tierstore.ladder.claim import Claims
from tierstore.ladder.handle import SaveHandle, State
from tierstore.ladder.shard import Shard
from tierstore.ladder.tiers import OpenTier
from tierstore.ladder.turns import Turns
from tierstore.logs import logger
from tierstore.transfer.part import Crcs
from tierstore.transfer.read import Replica, Want, fetch
from tierstore.transfer.source import AlignedBuffers, Lease, RevokedError
from tierstore.transfer.threads import DaemonPool
from tierstore.transfer.write import FileWrite, write_files
from tierstore.wrappers.stop import GIVEN_UP, EitherOf

_log = logger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_READ_BACK_BYTES = 64 * 1024**2
"""Memory for feeding a tier from another one, when the image is gone."""


@dataclass(slots=True, eq=False)
class ShardSave:
    """One shard on its way down the ladder.

    Attributes:
        shard: what is saved.
        handle: where it is.
        lease: the staging image, while it is held.
        image: the same, if another process can read it.
        entries: the files with their block CRCs, once a tier has them all.
        written: the tiers that have the files, for reading them back.
        described: whether its entries have been passed on to whoever finds the image.
    """

    shard: Shard
    handle: SaveHandle
    lease: Lease
    image: Image | None = None
    entries: tuple[FileEntry, ...] = ()
    written: list[Replica] = field(default_factory=list)
    described: bool = False


@dataclass(slots=True)
class _Waiting:
    """A save whose commit is awaited; one that is late tells how long it took to write."""

    save: ShardSave
    deadline: float
    late: float | None = None
    due: float = 0.0
    pause: float = _FIRST_PAUSE
    trouble: str = ""


class Lane:
    """See the module.

    `changed` is called after every change of a save's state on this tier; `enough` tells whether a
    save has waited so many seconds for its turn that the tiers above it are overtaken.
    """

    def __init__(
        self,
        tier: OpenTier,
        run: str,
        *,
        backlog: int,
        enough: Callable[[float], bool],
        commit_timeout: float,
        changed: Callable[[ShardSave, str, BaseException | None], None],
    ) -> None:
        self.tier = tier
        self._keys = RunKeys(run)
        self._store = RunStore(tier.backend, run)
        self._enough = enough
        self._commit_timeout = commit_timeout
        self._changed = changed
        self._claims = Claims(self._store)
        self._turns: Turns[ShardSave] = Turns(backlog)
        self._commits: queue.Queue[_Waiting | None] = queue.Queue()
        self.stopped = threading.Event()
        concurrency = tier.backend.capabilities.concurrency
        size = tier.backend.capabilities.part_size
        self._buffers = AlignedBuffers(size, max(1, min(concurrency, _READ_BACK_BYTES // size)))
        # Daemons, all of them: whoever forgets to close, or whose disk hangs, must be able to exit.
        self._pool = DaemonPool(concurrency, f"tierstore-{tier.name}-part", self._begin)
        self._threads = [
            threading.Thread(target=work, name=f"tierstore-{tier.name}-{what}", daemon=True)
            for what, work in (("write", self._write_all), ("commit", self._commit_all))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def full(self) -> bool:
        """Whether the tier is so far behind that it takes no more saves."""
        return self._turns.full

    @property
    def catching_up(self) -> bool:
        """Whether it is writing, or would be by now, what it had failed or been too late for."""
        return self._turns.catching_up

    def offer(self, save: ShardSave, *, behind: bool = False) -> None:
        """Put a save in the queue, or owe it if the tier is `behind` or its queue is full."""
        if not behind and not self._turns.full:
            self._turns.put(save)
            return
        error = CheckpointError(
            f"tier {self.tier.name!r} is too far behind to take step {save.shard.attempt.step}: "
            f"{self._turns.waiting} saves wait for it here",
            hint="it gets the newest step when it can; raise its `every`, or save less often",
        )
        self._end(save, State.BEHIND, error)
        self._turns.skip(save)

    def stop(self) -> None:
        """Give up what is not done: transfers end before their next part, pauses at once."""
        self.stopped.set()
        self._turns.close()

    def close(self, timeout: float) -> bool:
        """Wait for the threads, which end with the save that they are at.

        Returns:
            Whether they have ended in `timeout` seconds; else they are left to themselves.
        """
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        ended = not any(thread.is_alive() for thread in self._threads)
        for thread in self._pool.end():
            thread.join(max(0.0, deadline - time.monotonic()))
            ended = ended and not thread.is_alive()
        return ended

    def abandon(self, save: ShardSave) -> None:
        """Fail a save whose threads did not end with the lane."""
        if not save.handle.settled(self.tier.name):
            self._fail(save, self._closed())

    def _has_waited(self, seconds: float) -> bool:
        return self.stopped.is_set() or self._enough(seconds)

    def _begin(self) -> None:
        GIVEN_UP.set(self.stopped)

    def _closed(self) -> CheckpointError:
        return CheckpointError(f"the saver was closed before tier {self.tier.name!r} was done")

    def _advance(self, save: ShardSave, state: State) -> None:
        save.handle.advance(self.tier.name, state)
        self._changed(save, self.tier.name, None)

    def _end(self, save: ShardSave, state: State, error: BaseException) -> None:
        _log.warning("step %d on tier %s: %s", save.shard.attempt.step, self.tier.name, str(error))
        save.handle.advance(self.tier.name, state, error)
        self._changed(save, self.tier.name, error)

    def _fail(self, save: ShardSave, error: BaseException, *, again: bool = False) -> None:
        late = save is self._turns.late
        if late:  # it stays what it is: failed, or behind
            _log.debug("step %d on tier %s: %s", save.shard.attempt.step, self.tier.name, error)
        else:
            self._end(save, State.FAILED, error)
        again = again or (isinstance(error, StorageError) and not _is_final(error))
        self._turns.settle(save, again=again and not self.stopped.is_set())
        if late:
            self._changed(save, self.tier.name, None)

    # Writing

    def _write_all(self) -> None:
        self._begin()
        while (save := self._turns.take()) is not None:
            late, begun = save is self._turns.late, time.monotonic()
            patience = self._commit_timeout
            try:
                if not late:
                    save.handle.wait_turn(self.tier.name, self._has_waited)
                    self._advance(save, State.WRITING)
                    self._write(save)
                    self._advance(save, State.WRITTEN)
                elif self._holds(save):
                    patience = 0.0  # for the commit it has waited long enough: one look at a time
                else:
                    self._write(save)
            except BaseException as error:
                self._fail(save, error)
            else:
                now = time.monotonic()
                self._commits.put(_Waiting(save, now + patience, now - begun if late else None))
        self._commits.put(None)

    def _holds(self, save: ShardSave) -> bool:
        return any(replica.tier == self.tier.name for replica in save.written)

    def _write(self, save: ShardSave) -> None:
        shard = save.shard
        if self.stopped.is_set():
            raise self._closed()
        self._claims.claim(shard.launch)
        keys = self._keys.attempt(shard.attempt, shard.launch.nonce)
        segments = shard.layout.segments
        known: list[Crcs | None] = [entry.crcs for entry in save.entries]
        crcs = write_files(
            self.tier.backend,
            [
                FileWrite(
                    keys.segment(segment.name), segment.size, _Source(self, save, segment), crc
                )
                for segment, crc in zip(segments, known or [None] * len(segments), strict=True)
            ],
            pool=self._pool,
            cancelled=self.stopped.is_set,
            progress=lambda nbytes: save.handle.count(self.tier.name, nbytes),
        )
        save.entries = tuple(
            FileEntry(segment.name, segment.size, crc)
            for segment, crc in zip(segments, crcs, strict=True)
        )
        told = shard.description(self._keys.run)
        self._store.write_fragment(told.fragment_for(self.tier.ranks, save.entries))
        save.written.append(Replica(self.tier.name, self.tier.backend, keys))

    @contextmanager
    def read_back(
        self, save: ShardSave, segment: Segment, offset: int, length: int
    ) -> Iterator[memoryview]:
        """Lend bytes of a segment from a tier that has it, verified."""
        if not save.written:
            raise CheckpointError(
                f"no tier has the bytes of step {save.shard.attempt.step} to read"
            )
        with self._buffers.take(length) as part:
            want = Want(segment.name, offset, length, into=part)
            files = {entry.name: entry for entry in save.entries}
            fetch([want], files, save.written, threads=1)
            yield part

    # Committing

    def _commit_all(self) -> None:
        self._begin()
        waiting: list[_Waiting] = []
        more = True
        while more or waiting:
            try:
                timeout = _until_due(waiting) if waiting else None
                new = self._commits.get(timeout=timeout)
                more = new is not None
                if new is not None:
                    waiting.append(new)
            except queue.Empty:
                pass
            now = time.monotonic()
            waiting = [each for each in waiting if each.due > now or not self._settle(each)]

    def _settle(self, waiting: _Waiting) -> bool:
        """Try to see or to create the commit; True when there is nothing more to try."""
        save = waiting.save
        try:
            shard = save.shard
            commit = self._store.try_commit(shard.attempt, shard.launch.nonce, self.tier.ranks)
            if commit is not None:
                self._check_covered(commit)
                self._commit(waiting)
                return True
        except TransientError as error:
            waiting.trouble = f"; last trouble: {error}"
        except BaseException as error:
            self._fail(save, error)
            return True
        if self.stopped.is_set():
            waiting.trouble += "; the saver was closed before its deadline"
        now = time.monotonic()
        if self.stopped.is_set() or now >= waiting.deadline:
            self._fail(save, self._incomplete(waiting), again=True)
            return True
        waiting.due = now + waiting.pause * random.uniform(0.75, 1.25)
        waiting.pause = min(2 * waiting.pause, _LONGEST_PAUSE)
        return False

    def _check_covered(self, commit: Commit) -> None:
        """Raise if a commit is of other ranks, who did not know that they share the tier."""
        if commit.ranks != self.tier.ranks:
            raise CheckpointError(
                f"tier {self.tier.name!r}: the commit of step {commit.attempt.step} covers only "
                f"ranks {list(commit.ranks)}",
                hint="who shares this tier could not be told when the job began; restart it",
            )

    def _commit(self, waiting: _Waiting) -> None:
        save, name = waiting.save, self.tier.name
        if waiting.late is None:
            save.handle.advance(name, State.COMMITTED)
        else:
            nbytes = sum(segment.size for segment in save.shard.layout.segments)
            _log.warning("tier %s has caught up: step %d is there", name, save.shard.attempt.step)
            save.handle.catch_up(name, seconds=waiting.late, nbytes=nbytes)
        self._turns.settle(save, again=False)
        self._changed(save, name, None)

    def _incomplete(self, waiting: _Waiting) -> IncompleteError:
        shard = waiting.save.shard
        keys = self._keys.attempt(shard.attempt, shard.launch.nonce)
        try:
            there = {info.key for info in self.tier.backend.list(keys.fragments)}
            missing = [rank for rank in self.tier.ranks if keys.fragment(rank) not in there]
            who = f"ranks {missing[:20]} have not written their part"
        except TierstoreError as error:
            who = f"its fragments cannot be listed ({error})"
        return IncompleteError(
            f"step {shard.attempt.step} is not committed on tier {self.tier.name!r}: "
            f"{who}{waiting.trouble}",
            hint="look into the logs of these ranks; earlier checkpoints are not affected",
        )


def _is_final(error: StorageError) -> bool:
    """Whether it would fail the same way the next time: the name is another job's."""
    return isinstance(error, AlreadyExistsError)


def _until_due(waiting: list[_Waiting]) -> float:
    return max(0.0, min(each.due for each in waiting) - time.monotonic())


class _Source:
    """A segment's bytes: from the image while it is held, then from a tier that has them."""

    def __init__(self, lane: Lane, save: ShardSave, segment: Segment) -> None:
        self._lane = lane
        self._save = save
        self._segment = segment

    @contextmanager
    def view(self, offset: int, length: int) -> Iterator[memoryview]:
        """See `BlockSource.view`."""
        with ExitStack() as stack:
            start = self._segment.image_offset + offset
            try:
                part = stack.enter_context(self._save.lease.view(start, length))
            except RevokedError:
                back = self._lane.read_back(self._save, self._segment, offset, length)
                part = stack.enter_context(back)
            else:
                stack.enter_context(self._until_revoked())
            yield part

    @contextmanager
    def _until_revoked(self) -> Iterator[None]:
        """Give up what waits or is repeated once the image is wanted: its store may be down."""
        lease = self._save.lease
        token = GIVEN_UP.set(EitherOf(lease.over, self._lane.stopped))
        try:
            yield
        except StorageError as error:
            if lease.held:
                raise
            raise RevokedError from error
        finally:
            GIVEN_UP.reset(token)
