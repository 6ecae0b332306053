"""Read wanted bytes from the tiers that have them: checked, in parallel, from the highest first.

What is checked is what the caller gets: the CRC32C is taken over the destination's memory, or over
the private buffer that pieces are copied out of, never over a mapping that may change.

A block that is damaged or cannot be read on one tier is read from the next one. A tier that cannot
be reached at all is asked last from then on, so its deadline is waited for once and not per block.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tierstore.backend import Backend
from tierstore.blocks import BLOCK_SIZE, cut
from tierstore.checkpoint.fragment import FileEntry
from tierstore.errors import (
    CorruptBlockError,
    IntegrityError,
    NotFoundError,
    StorageError,
    TierstoreError,
    TruncatedFileError,
)
from tierstore.keys import AttemptKeys
from tierstore.logs import logger
from tierstore.transfer.part import wrong
from tierstore.transfer.requests import Request, Want, even_size, plan_requests
from tierstore.transfer.source import AlignedBuffers
from tierstore.transfer.threads import run_all

__all__ = ["Damage", "ReadReport", "Replica", "Want", "fetch"]

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Replica:
    """One tier's copy of an attempt's files."""

    tier: str
    backend: Backend
    keys: AttemptKeys


@dataclass(frozen=True, slots=True)
class Damage:
    """A block that one tier did not give, although it should.

    Attributes:
        tier: the tier's name.
        file: the file's key.
        block: the block's index in the file.
        outcome: what happened instead, in words.
    """

    tier: str
    file: str
    block: int
    outcome: str


@dataclass(frozen=True, slots=True)
class ReadReport:
    """What a fetch did.

    Attributes:
        bytes_wanted: the sum of the wants' lengths.
        bytes_read: what the tiers sent; the covering blocks, and those read again.
        requests: how many reads.
        seconds: of wall time.
        damaged: every block that had to come from another tier than the first.
    """

    bytes_wanted: int
    bytes_read: int
    requests: int
    seconds: float
    damaged: tuple[Damage, ...]


def fetch(
    wants: Sequence[Want],
    files: Mapping[str, FileEntry],
    replicas: Sequence[Replica],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    buffers: AlignedBuffers | None = None,
) -> ReadReport:
    """Read every want, verified.

    Args:
        wants: what to read, in any order; they may overlap.
        files: size and block CRCs of the files they name.
        replicas: the tiers to read from, in order of preference; not empty.
        threads: requests in flight; by default what serves the first tier well.
        progress: told the bytes of each request that is done, from several threads.
        buffers: for what nobody wants of a block, where there are many fetches; else new ones.

    Raises:
        CorruptBlockError: no tier has a good copy of a block and at least one has a damaged one.
        NotFoundError: no tier has a file. The attempt may have been deleted meanwhile.
        StorageError: no tier could be read; the error is that of the first.
        FormatError: a want does not fit its file.
    """
    started = time.perf_counter()
    capabilities = replicas[0].backend.capabilities
    width = threads or capabilities.concurrency
    if buffers is None:
        buffers = AlignedBuffers(max(capabilities.read_size, BLOCK_SIZE), width)
    engine = _Engine(replicas, buffers, progress)
    wanted = sum(want.length for want in wants)
    requests = plan_requests(wants, files, even_size(wanted, capabilities.read_size, width))
    if width == 1:  # here, where what the caller has to end by is known
        for request in requests:
            engine.carry_out(request)
    else:
        with ThreadPoolExecutor(width, thread_name_prefix="tierstore-read") as pool:
            run_all(requests, engine.carry_out, pool=pool, width=width)
    return ReadReport(
        bytes_wanted=wanted,
        bytes_read=engine.bytes_read,
        requests=engine.requests,
        seconds=time.perf_counter() - started,
        damaged=tuple(engine.damaged),
    )


@dataclass(slots=True)
class _Engine:
    replicas: Sequence[Replica]
    buffers: AlignedBuffers
    progress: Callable[[int], None] | None
    bytes_read: int = 0
    requests: int = 0
    damaged: list[Damage] = field(default_factory=list)
    logged: set[tuple[str, str]] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def carry_out(self, request: Request) -> None:
        """Read one request into its destinations."""
        with self.buffers.take(request.spare) as spare:
            self._fill(request, request.scatter(spare))
            request.deliver(spare)
        if self.progress is not None:
            self.progress(request.length)

    def _fill(self, request: Request, memory: Sequence[memoryview]) -> None:
        """Read a request's blocks from the first tier that gives each of them good."""
        replica = self._ordered()[0]
        bad: dict[int, TierstoreError]
        try:
            self._read(replica, request, memory)
        except TierstoreError as error:
            bad = dict.fromkeys(range(request.count), error)
        else:
            bad = _compare(request, memory)
        for index in bad:
            block = request.block(index)
            part = list(cut(memory, block.offset - request.offset, block.length))
            if request.count > 1 and isinstance(bad[index], TruncatedFileError):
                self._fill(block, part)  # the file may end behind this block
            else:
                self._replace(block, part, replica, bad[index])

    def _replace(
        self,
        block: Request,
        memory: Sequence[memoryview],
        first: Replica,
        error: TierstoreError,
    ) -> None:
        """Read one block from the other tiers."""
        self._note(first, block, error)
        errors = {first.tier: error}
        others = [replica for replica in self._ordered() if replica is not first]
        if isinstance(error, IntegrityError):
            others.append(first)  # it may have been damaged on its way here only
        for replica in others:
            try:
                self._read(replica, block, memory)
            except TierstoreError as again:
                failed = again
            else:
                bad = _compare(block, memory)
                if not bad:
                    return
                failed = bad[0]
            if replica is not first:
                self._note(replica, block, failed)
                errors[replica.tier] = failed
        raise _verdict(block, [(r.tier, errors[r.tier]) for r in self.replicas])

    def _read(self, replica: Replica, request: Request, memory: Sequence[memoryview]) -> None:
        key = replica.keys.segment(request.file.name)
        replica.backend.read_into(key, request.offset, *memory)
        with self.lock:
            self.bytes_read += request.length
            self.requests += 1

    def _ordered(self) -> list[Replica]:
        if not self.lost:
            return list(self.replicas)
        return sorted(self.replicas, key=lambda replica: replica.tier in self.lost)

    def _note(self, replica: Replica, block: Request, error: TierstoreError) -> None:
        key = replica.keys.segment(block.file.name)
        damage = Damage(replica.tier, key, block.first, str(error))
        with self.lock:
            # A file that is lost whole is one line in the log, not one for each of its blocks.
            first = (replica.tier, key) not in self.logged
            self.logged.add((replica.tier, key))
            self.damaged.append(damage)
            if isinstance(error, StorageError) and not isinstance(error, NotFoundError):
                self.lost.add(replica.tier)
        # Not the error itself: whoever keeps the log record would keep the frames' buffers.
        level = logging.WARNING if first else logging.DEBUG
        text = "%s: block %d on tier %s: %s"
        _log.log(level, text, key, block.first, replica.tier, damage.outcome)


def _compare(request: Request, memory: Sequence[memoryview]) -> dict[int, TierstoreError]:
    """Return the blocks (counted from the request's first) whose CRC32C is wrong."""
    found = wrong(memory, request.offset, request.file.crcs)
    return {each.block - request.first: IntegrityError(str(each)) for each in found}


def _verdict(block: Request, errors: Sequence[tuple[str, TierstoreError]]) -> TierstoreError:
    """Return what to raise when no tier gave a block."""
    if all(isinstance(error, StorageError) for _, error in errors):
        # Nothing is known to be damaged: say what is wrong with the tiers instead.
        known = [error for _, error in errors if not isinstance(error, NotFoundError)]
        return known[0] if known else errors[0][1]
    outcomes = [f"{tier}: {error}" for tier, error in errors]
    return CorruptBlockError(block.file.name, block.first, outcomes)
