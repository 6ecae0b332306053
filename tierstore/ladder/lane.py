"""One tier's lane: a thread that writes saves to the tier, and one that sees to their commits.

Lanes do not wait for each other's saves, so a slow or failing tier holds up nobody else. Within
one save the tiers take turns from the top, because bytes that the first tier has durably matter
more than a second copy on its way; a tier that is stuck is overtaken.

The last writer commits. Every other rank looks again with growing pauses until it sees the commit,
and creates it as soon as all fragments are there, so a last writer that died is replaced.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tierstore.checkpoint.fragment import FileEntry, Fragment
from tierstore.checkpoint.store import RunStore
from tierstore.errors import CheckpointError, IncompleteError, TierstoreError, TransientError
from tierstore.image.layout import Segment
from tierstore.keys import RunKeys
from tierstore.ladder.claim import Claims
from tierstore.ladder.handle import SaveHandle, State
from tierstore.ladder.shard import Shard
from tierstore.ladder.tiers import OpenTier
from tierstore.logs import logger
from tierstore.transfer.read import Replica, Want, fetch
from tierstore.transfer.source import AlignedBuffers, Lease, RevokedError
from tierstore.transfer.write import Crcs, FileWrite, write_files

_log = logger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_READ_BACK_BYTES = 64 * 1024**2
"""Memory for feeding a tier from another one, when the image is gone."""


@dataclass(slots=True, eq=False)
class Save:
    """One shard on its way down the ladder.

    Attributes:
        shard: what is saved.
        handle: where it is.
        lease: the staging image, while it is held.
        entries: the files with their block CRCs, once a tier has them all.
        written: the tiers that have the files, for reading them back.
    """

    shard: Shard
    handle: SaveHandle
    lease: Lease
    entries: tuple[FileEntry, ...] = ()
    written: list[Replica] = field(default_factory=list)


@dataclass(slots=True)
class _Waiting:
    save: Save
    deadline: float
    due: float = 0.0
    pause: float = _FIRST_PAUSE
    trouble: str = ""


class Lane:
    """See the module. `changed` is called after every change of a save's state on this tier."""

    def __init__(
        self,
        tier: OpenTier,
        run: str,
        *,
        backlog: int,
        overtake: float,
        commit_timeout: float,
        changed: Callable[[Save, str, BaseException | None], None],
    ) -> None:
        self.tier = tier
        self._keys = RunKeys(run)
        self._store = RunStore(tier.backend, run)
        self._overtake = overtake
        self._commit_timeout = commit_timeout
        self._changed = changed
        self._claims = Claims(self._store)
        self._saves: queue.Queue[Save | None] = queue.Queue(backlog)
        self._commits: queue.Queue[Save | None] = queue.Queue()
        self._stopped = threading.Event()
        concurrency = tier.backend.capabilities.concurrency
        size = tier.backend.capabilities.part_size
        self._buffers = AlignedBuffers(size, max(1, min(concurrency, _READ_BACK_BYTES // size)))
        self._pool = ThreadPoolExecutor(concurrency, f"tierstore-{tier.name}-part")
        self._threads = [
            threading.Thread(target=work, name=f"tierstore-{tier.name}-{what}", daemon=True)
            for what, work in (("write", self._write_all), ("commit", self._commit_all))
        ]  # daemons: whoever forgets to close must be able to exit
        for thread in self._threads:
            thread.start()

    @property
    def full(self) -> bool:
        """Whether the tier is so far behind that it takes no more saves."""
        return self._saves.full()

    def offer(self, save: Save) -> None:
        """Put a save in the queue, or fail it on this tier at once if the queue is full."""
        try:
            self._saves.put_nowait(save)
        except queue.Full:
            behind = self._saves.qsize()
            text = f"tier {self.tier.name!r} is {behind} saves behind and takes no more for now"
            hint = "raise `every` of this tier, or save less often"
            self._fail(save, CheckpointError(text, hint=hint))

    def stop(self) -> None:
        """Give up what is not done: transfers end before their next part."""
        self._stopped.set()

    def close(self) -> None:
        """Take no more saves and wait for the threads, which end with the last one."""
        self._saves.put(None)
        for thread in self._threads:
            thread.join()
        self._pool.shutdown()

    def _advance(self, save: Save, state: State) -> None:
        save.handle.advance(self.tier.name, state)
        self._changed(save, self.tier.name, None)

    def _fail(self, save: Save, error: BaseException) -> None:
        _log.warning("step %d on tier %s: %s", save.shard.attempt.step, self.tier.name, str(error))
        save.handle.advance(self.tier.name, State.FAILED, error)
        self._changed(save, self.tier.name, error)

    # Writing

    def _write_all(self) -> None:
        while (save := self._saves.get()) is not None:
            save.handle.wait_turn(self.tier.name, self._overtake)
            try:
                self._advance(save, State.WRITING)
                self._write(save)
            except BaseException as error:
                self._fail(save, error)
            else:
                self._advance(save, State.WRITTEN)
                self._commits.put(save)
        self._commits.put(None)

    def _write(self, save: Save) -> None:
        shard = save.shard
        if self._stopped.is_set():
            raise CheckpointError(
                f"the saver was closed before tier {self.tier.name!r} had its turn"
            )
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
            cancelled=self._stopped.is_set,
            progress=lambda nbytes: save.handle.count(self.tier.name, nbytes),
        )
        save.entries = tuple(
            FileEntry(segment.name, segment.size, crc)
            for segment, crc in zip(segments, crcs, strict=True)
        )
        self._store.write_fragment(self._fragment(save))
        save.written.append(Replica(self.tier.name, self.tier.backend, keys))

    def _fragment(self, save: Save) -> Fragment:
        shard = save.shard
        return Fragment(
            attempt=shard.attempt,
            launch=shard.launch,
            rank=shard.rank,
            ranks=self.tier.ranks,
            world_size=shard.world_size,
            declared=sum(shard.declared[rank] for rank in self.tier.ranks),
            chunks=shard.chunks,
            placements=shard.layout.placements,
            files=save.entries,
            values=shard.values,
        )

    @contextmanager
    def read_back(
        self, save: Save, segment: Segment, offset: int, length: int
    ) -> Iterator[memoryview]:
        """Lend bytes of a segment from a tier that has it, verified."""
        with self._buffers.take(length) as part:
            want = Want(segment.name, offset, length, into=part)
            files = {entry.name: entry for entry in save.entries}
            fetch([want], files, save.written, threads=1)
            yield part

    # Committing

    def _commit_all(self) -> None:
        waiting: list[_Waiting] = []
        more = True
        while more or waiting:
            try:
                timeout = _until_due(waiting) if waiting else None
                save = self._commits.get(timeout=timeout)
                more = save is not None
                if save is not None:
                    waiting.append(_Waiting(save, time.monotonic() + self._commit_timeout))
            except queue.Empty:
                pass
            now = time.monotonic()
            waiting = [each for each in waiting if each.due > now or not self._settle(each)]

    def _settle(self, waiting: _Waiting) -> bool:
        """Try to see or to create the commit; True when there is nothing more to try."""
        save = waiting.save
        try:
            shard = save.shard
            if self._store.try_commit(shard.attempt, shard.launch.nonce, self.tier.ranks):
                self._advance(save, State.COMMITTED)
                return True
        except TransientError as error:
            waiting.trouble = f"; last trouble: {error}"
        except BaseException as error:
            self._fail(save, error)
            return True
        if self._stopped.is_set():
            waiting.trouble += "; the saver was closed before its deadline"
        now = time.monotonic()
        if self._stopped.is_set() or now >= waiting.deadline:
            self._fail(save, self._incomplete(waiting))
            return True
        waiting.due = now + waiting.pause * random.uniform(0.75, 1.25)
        waiting.pause = min(2 * waiting.pause, _LONGEST_PAUSE)
        return False

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


def _until_due(waiting: list[_Waiting]) -> float:
    return max(0.0, min(each.due for each in waiting) - time.monotonic())


class _Source:
    """A segment's bytes: from the image while it is held, then from a tier that has them."""

    def __init__(self, lane: Lane, save: Save, segment: Segment) -> None:
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
            yield part
