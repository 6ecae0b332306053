"""Save: a staged shard goes to every tier in the background, and its memory comes back early.

The staging image is given up as soon as every tier has been written from it, or, when the next
save asks for it, as soon as one tier holds this rank's bytes; the tiers below are then fed from
that tier. A failure on one tier is recorded, logged and raised to who waits for that tier; it
neither stops the other tiers nor turns into success.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tierstore.errors import CheckpointError, ConfigError, DeadlineError
from tierstore.image.pool import Image, StagingPool
from tierstore.keys import Attempt
from tierstore.ladder.handle import SaveHandle
from tierstore.ladder.lane import Lane, Save
from tierstore.ladder.shard import Shard
from tierstore.ladder.tiers import OpenTier
from tierstore.logs import logger
from tierstore.transfer.source import Lease, Staged

__all__ = ["SaveFailure", "Saver", "Shard"]

_log = logger(__name__)
_FAILURES_KEPT = 100
_EXIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class SaveFailure:
    """A save that did not reach a tier."""

    attempt: Attempt
    tier: str
    error: BaseException


class Saver:
    """Writes one rank's shards to the tiers of a ladder. One per process.

    One that is still open when the interpreter ends, as after an error in the training loop, is
    given 60 seconds to finish what is under way.

    Args:
        tiers: the open ladder, fastest first.
        run: the run's name.
        pool: where `acquire` gets images from; it stays the caller's to close.
        commit_timeout: seconds to wait for the other ranks' fragments on a tier.
        backlog: saves that may wait for one tier.
        overtake: seconds a tier waits for its turn behind the tiers above it.
    """

    def __init__(
        self,
        tiers: Sequence[OpenTier],
        run: str,
        *,
        pool: StagingPool | None = None,
        commit_timeout: float = 600.0,
        backlog: int = 8,
        overtake: float = 120.0,
    ) -> None:
        self._tiers = tuple(tiers)
        self._pool = pool
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._images: set[Save] = set()
        self._unsettled: set[Save] = set()
        self._wanted = 0
        self._submitted = 0
        self._closed = False
        self._failures: deque[SaveFailure] = deque(maxlen=_FAILURES_KEPT)
        _open.add(self)
        self._lanes = {
            tier.name: Lane(
                tier,
                run,
                backlog=backlog,
                overtake=overtake,
                commit_timeout=commit_timeout,
                changed=self._changed,
            )
            for tier in self._tiers
        }

    @property
    def failures(self) -> list[SaveFailure]:
        """The latest failures, oldest first."""
        with self._lock:
            return list(self._failures)

    def behind(self) -> tuple[str, ...]:
        """Return the tiers that would refuse a save now because their queue is full."""
        return tuple(name for name, lane in self._lanes.items() if lane.full)

    def acquire(self, size: int, *, timeout: float) -> Image:
        """Return a staging image of at least `size` bytes.

        While it waits, an earlier save gives its image up once one tier holds its bytes.

        Raises:
            DeadlineError: no image came free in `timeout` seconds.
        """
        if self._pool is None:
            raise ValueError("this Saver has no staging pool")
        try:
            return self._pool.acquire(size, timeout=0)
        except DeadlineError:
            if timeout <= 0:
                raise
        with self._lock:
            self._wanted += 1
        try:
            self._release_images()
            return self._pool.acquire(size, timeout=timeout)
        finally:
            with self._lock:
                self._wanted -= 1

    def submit(
        self, shard: Shard, image: Staged, *, tiers: Collection[str] | None = None
    ) -> SaveHandle:
        """Send a staged shard on its way and return at once.

        Args:
            shard: what it is.
            image: its bytes; taken over in every case, also when this raises.
            tiers: names of the tiers it goes to. None: the n-th submit, counted from 0, goes to
                the tiers whose `every` divides n, so the first goes to all.

        Raises:
            ConfigError: there is no tier of a name, or no name.
            CheckpointError: the Saver is closed.
        """
        lease = Lease(image)
        try:
            save = self._enter(shard, lease, tiers)
        except BaseException:
            lease.revoke()
            raise
        for name, lane in self._lanes.items():
            if save.handle.goes_to(name):
                lane.offer(save)
        return save.handle

    def close(self, timeout: float | None = 600.0) -> None:
        """Wait for all saves, then end the threads. Idempotent.

        Args:
            timeout: seconds after which what is not done fails: transfers end before their next
                part, commits are not waited for. None waits as long as the tiers' deadlines allow.
        """
        with self._idle:
            already, self._closed = self._closed, True
            if already:
                return
            self._idle.wait_for(lambda: not self._unsettled, timeout)
        for lane in self._lanes.values():
            lane.stop()
        for lane in self._lanes.values():
            lane.close()

    def _enter(self, shard: Shard, lease: Lease, tiers: Collection[str] | None) -> Save:
        names = [tier.name for tier in self._tiers]
        unknown = sorted(set(tiers or ()) - set(names))
        if unknown:
            raise ConfigError(f"there is no tier {unknown[0]!r}", hint=f"the tiers are {names}")
        with self._lock:
            if self._closed:
                raise CheckpointError("the saver is closed")
            number, self._submitted = self._submitted, self._submitted + 1
            if tiers is None:
                tiers = [tier.name for tier in self._tiers if number % tier.every == 0]
            if not tiers:
                raise ConfigError("a save goes to at least one tier", hint=f"the tiers are {names}")
            save = Save(shard, SaveHandle(shard.attempt, names, tiers), lease)
            self._images.add(save)
            self._unsettled.add(save)
            return save

    def _changed(self, save: Save, tier: str, error: BaseException | None) -> None:
        """Take note of a save's new state on a tier; called by the lanes' threads."""
        with self._idle:
            if error is not None:
                self._failures.append(SaveFailure(save.shard.attempt, tier, error))
            if save.handle.done:
                self._unsettled.discard(save)
                self._idle.notify_all()
        self._release_images()

    def _release_images(self) -> None:
        with self._lock:
            over = [
                save
                for save in self._images
                if save.handle.written_everywhere() or (self._wanted and save.written)
            ]
            self._images.difference_update(over)
        for save in over:
            try:
                save.lease.revoke()
            except Exception:  # the lanes' threads go on, whatever the image's owner did
                _log.exception("step %d: its image cannot be released", save.shard.attempt.step)


_open: weakref.WeakSet[Saver] = weakref.WeakSet()


def _close_all() -> None:
    for saver in list(_open):
        saver.close(_EXIT_SECONDS)


os.register_at_fork(after_in_child=_open.clear)  # a child has none of the threads to wait for
# Before the thread pools end, which atexit would be too late for: they register in the same way.
threading._register_atexit(_close_all)  # type: ignore[attr-defined]  # noqa: SLF001
