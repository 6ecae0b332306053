"""Describes staged shards beside their bytes, behind the trainer's back."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from tierstore.logs import logger
from tierstore.transfer.source import RevokedError

if TYPE_CHECKING:
    from tierstore.ladder.lane import ShardSave

_log = logger(__name__)


class Describer:
    """A thread that writes descriptions; no save waits for it, and none fails by it.

    It belongs to no lane: a tier that is stuck must not keep the next save from being described.

    Args:
        run: whose shards are staged.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._queue: queue.SimpleQueue[ShardSave | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, save: ShardSave) -> None:
        """Have a save described as it is by then, if its image is still held."""
        if save.image is None or not save.lease.held:
            return
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, name="tierstore-describe", daemon=True
            )
            self._thread.start()
        self._queue.put(save)

    def close(self, timeout: float) -> None:
        """Let the thread end with what there is; at most so many seconds."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout)

    def _work(self) -> None:
        while (save := self._queue.get()) is not None:
            try:
                self._describe(save)
            except RevokedError:
                pass  # the bytes are on a tier, or nobody wants them any more
            except Exception as error:
                _log.warning(
                    "step %d cannot be sent by another process if this one dies: %s",
                    save.shard.attempt.step,
                    error,
                )

    def _describe(self, save: ShardSave) -> None:
        image = save.image
        with save.lease.view(0, 0):  # until it is written the image stays this save's
            if image is not None and image.describable:
                told = save.shard.description(self._run, save.entries)
                image.describe(told.name, told.to_bytes())
