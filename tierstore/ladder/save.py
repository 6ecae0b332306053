"""Save: a staged shard goes to every tier in the background, and its memory comes back early.

The staging image is given up as soon as every tier has been written from it, or, when the next
save asks for it, as soon as one tier holds this rank's bytes; the tiers below are then fed from
that tier. A failure on one tier is recorded, logged and raised to who waits for that tier; it
neither stops the other tiers nor turns into success.

As long as an image is held, its description lies beside it: another process can then send the shard
if this one is killed (`tierstore.ladder.staged`).

Closing ends by its deadline, whatever a tier does: shortly before it what is not done is given up,
and threads that still hang, in a disk or a server that does not answer, are left to themselves.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tierstore.errors import CheckpointError, ConfigError, DeadlineError
from tierstore.image.layout import FileSpan
from tierstore.image.pool import Image, StagingPool
from tierstore.keys import Attempt
from tierstore.ladder.describe import Describer
from tierstore.ladder.handle import SaveHandle
from tierstore.ladder.lane import Lane, ShardSave
from tierstore.ladder.shard import Shard
from tierstore.ladder.tiers import OpenTier
from tierstore.logs import logger
from tierstore.transfer.source import Lease, StagedImage
from tierstore.wrappers.stop import LOOK

__all__ = ["SaveFailure", "Saver", "Shard"]

_log = logger(__name__)
_FAILURES_KEPT = 100
_EXIT_SECONDS = 60.0
_GRACE = 1.0  # seconds, or a tenth of all there are: for uploads to be aborted
_TURN = 0.25  # of what is left, for tiers that may be stuck to be overtaken in time


@dataclass(frozen=True, slots=True)
class SaveFailure:
    """A save that did not reach a tier."""

    attempt: Attempt
    tier: str
    error: BaseException


class Saver:
    """Writes one rank's shards to the tiers of a ladder. One per process.

    One that is still open when the interpreter ends, as after an error in the training loop, is
    given 60 seconds to finish what is under way. It belongs to the process that made it: in a
    forked child it refuses saves, and closing does nothing.

    Args:
        tiers: the open ladder, fastest first.
        run: the run's name.
        pool: where `acquire` gets images from; it stays the caller's to close.
        commit_timeout: seconds to wait for the other ranks' fragments on a tier.
        backlog: saves that may wait for one tier.
        overtake: seconds a tier waits for its turn behind the tiers above it; while there is an
            end, when closing or after SIGTERM, no longer than a quarter of what is left.
        time_left: tells the seconds until this process has to end, or None while nobody says so.
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
        time_left: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._tiers = tuple(tiers)
        self._pool = pool
        self._time_left = time_left
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._images: set[ShardSave] = set()
        self._unsettled: set[ShardSave] = set()
        self._wanted = 0
        self._submitted = 0
        self._closed = False
        self._end = float("inf")  # when it has to be closed, once that is asked for
        self._overtake = overtake
        self._failures: deque[SaveFailure] = deque(maxlen=_FAILURES_KEPT)
        self._describer = Describer(run)
        _open.add(self)
        self._lanes = {
            tier.name: Lane(
                tier,
                run,
                backlog=backlog,
                enough=self._turn_is_over,
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

    def acquire(
        self, size: int, *, timeout: float, spans: Sequence[FileSpan] | None = None
    ) -> Image:
        """Return a staging image of at least `size` bytes, made of the files `spans`.

        While it waits, an earlier save gives its image up once one tier holds its bytes.

        Raises:
            DeadlineError: no image came free in `timeout` seconds.
        """
        if self._pool is None:
            raise ValueError("this Saver has no staging pool")
        try:
            return self._pool.acquire(size, timeout=0, spans=spans)
        except DeadlineError:
            if timeout <= 0:
                raise
        with self._lock:
            self._wanted += 1
        try:
            self._release_images()
            return self._pool.acquire(size, timeout=timeout, spans=spans)
        finally:
            with self._lock:
                self._wanted -= 1

    def submit(
        self,
        shard: Shard,
        image: StagedImage,
        *,
        tiers: Collection[str] | None = None,
        behind: Collection[str] = (),
    ) -> SaveHandle:
        """Send a staged shard on its way and return at once.

        Args:
            shard: what it is.
            image: its bytes; taken over in every case, also when this raises.
            tiers: names of the tiers it goes to. None: the n-th submit, counted from 0, goes to
                the tiers whose `every` divides n, so the first goes to all.
            behind: those of them that are too far behind to take it, here or on another rank.

        Raises:
            ConfigError: there is no tier of a name, or no name.
            CheckpointError: the Saver is closed, or is another process's.
        """
        lease = Lease(image)
        try:
            staged = image if isinstance(image, Image) else None
            save = self._enter(shard, lease, staged, tiers)
        except BaseException:
            lease.revoke()
            raise
        self._describer.put(save)
        for name, lane in self._lanes.items():
            if save.handle.goes_to(name):
                lane.offer(save, behind=name in behind)
        return save.handle

    def close(self, timeout: float | None = 600.0) -> None:
        """Wait for all saves, then end the threads. Idempotent; interrupted, it gives them up.

        Args:
            timeout: seconds after which what is not done has failed; less if `time_left` says so.
                None waits as long as the tiers' deadlines allow.
        """
        if os.getpid() != self._pid:
            return
        longest = threading.TIMEOUT_MAX
        end = time.monotonic() + (longest if timeout is None else min(timeout, longest))
        grace = min(_GRACE, 0.1 * self._left(end))
        with self._lock:
            already, self._closed = self._closed, True
            if already:
                return
            self._end = end
        try:
            self._wait_idle(grace)
        except BaseException:  # whoever interrupts it wants no more waiting
            self._end = min(end, time.monotonic() + _GRACE)
            raise
        finally:
            self._end_lanes(grace)

    def _wait_idle(self, grace: float) -> None:
        with self._idle:
            while self._busy() and (left := self._left(self._end) - grace) > 0:
                self._idle.wait(min(left, LOOK))

    def _end_lanes(self, grace: float) -> None:
        with self._lock:
            unsettled = [*self._unsettled]
        self._describer.close(grace)
        for lane in self._lanes.values():
            lane.stop()
        for save in unsettled:
            save.handle.wake()
        for name, lane in self._lanes.items():
            # The caller closes more.
            ended = lane.close(max(0.0, self._left(self._end) - grace / 4))
            if unsettled and not ended:
                _log.warning("tier %s does not answer: what it does is left to itself", name)
                for save in unsettled:
                    lane.abandon(save)

    def _turn_is_over(self, waited: float) -> bool:
        """Whether a tier has waited long enough for those above it: see `overtake`."""
        return waited >= min(self._overtake, _TURN * self._left(self._end))

    def _busy(self) -> bool:
        return bool(self._unsettled) or any(lane.catching_up for lane in self._lanes.values())

    def _left(self, end: float) -> float:
        told = self._time_left()
        left = end - time.monotonic()
        return left if told is None else min(told, left)

    def _enter(
        self, shard: Shard, lease: Lease, image: Image | None, tiers: Collection[str] | None
    ) -> ShardSave:
        if os.getpid() != self._pid:  # before the lock, which the fork may have copied locked
            raise CheckpointError(
                "a saver cannot be used in a forked child", hint="make a new one in the child"
            )
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
            handle = SaveHandle(shard.attempt, names, tiers)
            save = ShardSave(shard, handle, lease, image)
            self._images.add(save)
            self._unsettled.add(save)
            return save

    def _changed(self, save: ShardSave, tier: str, error: BaseException | None) -> None:
        """Take note of a save's new state on a tier; called by the lanes' threads."""
        with self._idle:
            if error is not None:
                self._failures.append(SaveFailure(save.shard.attempt, tier, error))
            if save.handle.done:
                self._unsettled.discard(save)
                self._idle.notify_all()
            news = bool(save.entries) and not save.described
            save.described = save.described or news
        self._release_images()
        if news:  # the CRC32C of its blocks
            self._describer.put(save)

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
    end = time.monotonic() + _EXIT_SECONDS
    for saver in list(_open):
        saver.close(max(0.0, end - time.monotonic()))


os.register_at_fork(after_in_child=_open.clear)  # a child has none of the threads to wait for
# Before the thread pools end, which atexit would be too late for: they register in the same way.
threading._register_atexit(_close_all)  # type: ignore[attr-defined]  # noqa: SLF001
