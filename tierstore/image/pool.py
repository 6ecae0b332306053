"""The pool of staging images.

A save copies tensors into an image and writes from there. The first touch of a page costs ten
times a reuse, so images are paged in when they are made and kept for the next save::

    image = pool.acquire(layout.size, spans=layout.spans, timeout=60.0, holder="step 100")
    layout.write_headers(image.buffer)        # then the tensors, into image.buffer
    image.describe(name, data)                # from now on it outlives this process
    ...                                       # written to the first tier
    image.release()
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tierstore.blocks import ALIGNMENT, Buffer
from tierstore.errors import CheckpointError, DeadlineError, UnsupportedError
from tierstore.image.folder import DEFAULT_DIRECTORY, ShardName, collect_leftovers
from tierstore.image.layout import FileSpan
from tierstore.image.memory import (
    FREE,
    LENT,
    OPENED,
    Memory,
    create_anonymous,
    create_shared,
    open_shared,
)
from tierstore.logs import logger

_log = logger(__name__)

_POLL = 0.02  # seconds; a borrower in another process cannot notify


class Image:
    """A lease of one image's memory.

    Attributes:
        buffer: writable bytes from a page boundary, at least as many as were asked for. They hold
            whatever the last save left.
        address: of the first byte.
        path: of its folder in tmpfs, or None.
        derived: a dictionary that lives as long as the memory, the same for every lease of it:
            the place to keep tensor views or a registration for the next save.
    """

    def __init__(self, memory: Memory, on_release: Callable[[Image], None]) -> None:
        self._memory = memory
        self._on_release = on_release
        self.buffer = memory.view
        self.address = memory.address
        self.path = str(memory.path) if memory.path else None
        self.derived = memory.derived
        self.lent = False

    @property
    def shared(self) -> bool:
        """Whether other processes can open it; if not, what is staged dies with this process."""
        return self.path is not None

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Address and bytes of each mapping, for pinning."""
        if self._memory.spans is None:
            return [(self.address, len(self.buffer))]
        return [(self.address + span.offset, span.size) for span in self._memory.spans]

    @property
    def describable(self) -> bool:
        """Whether another process can be told which shard is staged, by `describe`."""
        return self.shared and self._memory.spans is not None

    def release(self) -> None:
        """Give the memory back. Idempotent, and harmless once another save has the memory."""
        self._on_release(self)

    def describe(self, name: ShardName, data: Buffer) -> None:
        """Say, now that the copy has ended, which shard is staged, or say more about it.

        It holds until the image is released. Only who holds the image may call it.

        Args:
            name: whose shard.
            data: the description, see `tierstore.checkpoint.description`.

        Raises:
            UnsupportedError: it is not `describable`.
            OSError: the tmpfs has no room for the description.
        """
        if not self.describable:
            raise UnsupportedError("an image that no other process can open cannot be described")
        self._memory.describe(name, data)

    def lend(self) -> None:
        """Leave the image to another process, which opens it by `path`.

        It stays busy until the borrower releases it or dies with it. If no borrower will come,
        `release` takes it back.

        Raises:
            UnsupportedError: it is not shared, or is made for a shard.
        """
        if not self._memory.lendable:
            raise UnsupportedError(
                "an anonymous staging image cannot be opened by another process",
                hint=f"make room in {DEFAULT_DIRECTORY}, or save from a thread",
            )
        self._memory.state = LENT
        self.lent = True

    def on_discard(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once, before the memory is unmapped; not in forked children."""
        self._memory.on_discard(callback)


def open_image(path: str, size: int) -> Image:
    """Open an image that another process has lent; release it when its bytes are written.

    Args:
        path: the owner's `Image.path`.
        size: bytes that it must have at least.

    Raises:
        NotFoundError: the owner has removed it.
        TruncatedFileError: it is smaller.
        DeadlineError: it stayed locked for 5 s.
    """
    memory = open_shared(Path(path), size)
    memory.state = OPENED
    open_once = [memory]  # a second release must not touch what is another borrower's by then

    def close(_: Image) -> None:
        while open_once:
            open_once.pop().state = FREE
            memory.discard(unlink=False)

    return Image(memory, close)


class _Slot:
    """One of the pool's places. Without a lease it is free, or busy while being made."""

    def __init__(self) -> None:
        self.memory: Memory | None = None
        self.lease: Image | None = None
        self.busy = False
        self.holder = ""
        self.since = 0.0

    def rank(self, size: int, spans: Sequence[FileSpan] | None) -> tuple[bool, int]:
        """Order slots: those that fit first, then the smallest."""
        if self.memory is None:
            return True, 0
        return not self.memory.fits(size, spans), self.memory.size

    def take(self, holder: str) -> _Slot:
        self.busy, self.holder, self.since = True, holder, time.monotonic()
        return self

    def free(self) -> None:
        self.busy, self.lease = False, None

    def reclaim(self) -> None:
        """Notice that a borrower is done, or has died: then nothing has the file open."""
        lease = self.lease
        if self.memory and lease and lease.lent:
            state = self.memory.state
            if state == FREE or (state == OPENED and self.memory.unused()):
                self.free()

    def undescribe(self) -> None:
        try:
            if self.memory:
                self.memory.undescribe()
        except OSError as error:  # what it says would not be true of the next save
            _log.warning("a description in %s cannot be removed: %s", self.memory, error)
            self.discard()

    def discard(self) -> None:
        if self.memory:
            self.memory.discard(unlink=True)
            self.memory = None

    def __str__(self) -> str:
        what = "is making an image" if self.lease is None else f"has {self.lease.path or 'one'}"
        return f"{self.holder} {what} since {time.monotonic() - self.since:.1f} s"


class StagingPool:
    """Images of one process, reused from save to save. Thread-safe.

    Args:
        directory: a folder in tmpfs, /dev/shm by default. Images that dead processes of this user
            left there are removed; whose shards they held is logged. Where there is no room,
            images are anonymous mappings, which a logged warning says once.
        limit: how many images there may be at a time.
    """

    def __init__(self, directory: str | None = None, *, limit: int = 1) -> None:
        if limit < 1:
            raise ValueError(f"a pool holds at least one image, not {limit}")
        self._directory = Path(directory or DEFAULT_DIRECTORY)
        self._limit = limit
        self._slots: list[_Slot] = []
        self._changed = threading.Condition()
        self._closed = False
        self._warned = False
        self._pid = os.getpid()
        if directory is not None:
            with suppress(OSError):  # `acquire` finds out and says so
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, shard in collect_leftovers(self._directory).items():
            _tell_removed(path, shard)
        _pools.add(self)
        weakref.finalize(self, _discard_all, self._slots, self._pid)

    def acquire(
        self,
        size: int,
        *,
        timeout: float,
        holder: str = "",
        spans: Sequence[FileSpan] | None = None,
    ) -> Image:
        """Return an image of at least `size` bytes, waiting until one is free.

        Args:
            size: bytes.
            spans: the files of a shard's segments, of which it shall be made so that others can
                read them; they lie within `size`.
            timeout: seconds to wait for a release. Making a new image, about 0.7 s a GiB, comes
                on top.
            holder: who asks, for the error that another caller may get.

        Raises:
            DeadlineError: none became free in time.
            OutOfSpaceError: the memory limit leaves no room.
            CheckpointError: the pool is closed, or is another process's.
        """
        need = max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
        slot = self._claim(need, spans, timeout, holder or threading.current_thread().name)
        try:
            memory = self._ready(slot, need, spans)
        except BaseException:
            self._abandon(slot)
            raise
        with self._changed:
            slot.memory = memory
            slot.lease = Image(memory, self._release)
            if not self._closed:
                return slot.lease
        self._abandon(slot)
        raise _closed()

    def close(self) -> None:
        """Remove the files and unmap what nobody has a view of any more. Idempotent."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._closed = True
            # An image that is being made is dropped by the thread that makes it.
            idle = [slot for slot in self._slots if slot.lease or not slot.busy]
            for slot in idle:
                self._slots.remove(slot)
                slot.discard()
            self._changed.notify_all()

    def _claim(
        self, need: int, spans: Sequence[FileSpan] | None, timeout: float, holder: str
    ) -> _Slot:
        if os.getpid() != self._pid:  # before the lock, which the fork may have copied locked
            raise CheckpointError(
                "a staging pool cannot be used in a forked child",
                hint="make a new one in the child",
            )
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if self._closed:
                    raise _closed()
                if slot := self._free_slot(need, spans):
                    return slot.take(holder)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DeadlineError(
                        f"no staging image became free within {timeout:g} s: "
                        + "; ".join(map(str, self._slots)),
                        hint="wait for that save, allow more time, or allow more images",
                    )
                lent = any(slot.lease and slot.lease.lent for slot in self._slots)
                self._changed.wait(min(left, _POLL) if lent else left)

    def _free_slot(self, need: int, spans: Sequence[FileSpan] | None) -> _Slot | None:
        for slot in self._slots:
            slot.reclaim()
        free = [slot for slot in self._slots if not slot.busy]
        # The smallest that is large enough; else one that does not fit makes way.
        if free:
            return min(free, key=lambda slot: slot.rank(need, spans))
        if len(self._slots) < self._limit:
            self._slots.append(_Slot())
            return self._slots[-1]
        return None

    def _ready(self, slot: _Slot, need: int, spans: Sequence[FileSpan] | None) -> Memory:
        """Return memory to stage into; outside the lock, since paging in takes its time."""
        if slot.memory and slot.memory.fits(need, spans) and slot.memory.unused():
            return slot.memory
        slot.discard()
        try:
            return create_shared(self._directory, need, spans)
        except OSError as error:
            if not self._warned:
                self._warned = True
                _log.warning(
                    "staging in anonymous memory: %s has no room for an image of %d bytes (%s); "
                    "a save that no tier has yet is lost if this process dies",
                    self._directory,
                    need,
                    error.strerror,
                )
        return create_anonymous(need)

    def _release(self, image: Image) -> None:
        if os.getpid() != self._pid:
            return
        with self._changed:
            for slot in self._slots:
                if slot.lease is image:
                    slot.undescribe()
                    slot.free()
                    self._changed.notify_all()

    def _abandon(self, slot: _Slot) -> None:
        with self._changed:
            self._slots.remove(slot)
            slot.discard()
            self._changed.notify_all()

    def _forget(self) -> None:
        """In a forked child: leave files and locks to the parent."""
        for slot in self._slots:
            if slot.memory:
                slot.memory.forget()


_pools: weakref.WeakSet[StagingPool] = weakref.WeakSet()


def _forget_all() -> None:
    for pool in _pools:
        pool._forget()  # noqa: SLF001


os.register_at_fork(after_in_child=_forget_all)


def _discard_all(slots: list[_Slot], pid: int) -> None:
    if os.getpid() == pid:
        for slot in slots:
            slot.discard()


def _tell_removed(path: Path, shard: ShardName | None) -> None:
    if shard is None:
        _log.info("removed staging image %s of a dead process", path)
        return
    _log.warning(
        "removed staging image %s of a dead process: it held rank %d's part of step %d of run %s, "
        "which may be on no tier",
        *(path, shard.rank, shard.id.step, shard.run),
    )


def _closed() -> CheckpointError:
    return CheckpointError("the staging pool is closed")
