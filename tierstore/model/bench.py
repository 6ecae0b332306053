"""Measure a tier: which rounds, in which order, how many, and what stays afterwards: nothing.

One round of every cell (operation, size, concurrency), in an order that changes, then the next of
all: what the tier gives may change over the minutes, and no cell shall have the good ones alone.
The first pass warms up and is not counted. A cell is done when its median is known well enough.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import numpy.typing as npt

from tierstore.backend import Backend, Capabilities
from tierstore.config import TierConfig
from tierstore.errors import ConfigError, StorageError
from tierstore.ladder.diagnosis import leaving_no_folders
from tierstore.model.checks import positive, whole
from tierstore.model.points import Point, TierPoints
from tierstore.model.probe import LISTED, OPERATIONS, Cell, Probe, Round
from tierstore.model.tail import spread
from tierstore.transfer.part import reads_back
from tierstore.wrappers import open_tier
from tierstore.wrappers.retry import impatient

SIZES = (64 << 10, 1 << 20, 8 << 20, 32 << 20)
"""Bytes of the requests that are measured, up to one part of the tier."""

_LEAST_ROUNDS, _MOST_ROUNDS = 5, 40
_STABLE = 0.03  # relative standard error of the median
_ROUND_SECONDS = 0.05  # many short requests make one round
_MOST_EACH = 32
_PUT_BYTES = 8 << 20  # of one round, unless a request of every thread is more
_MOST_TOGETHER = 1024  # each is a thread
_RANKS = 8  # of a node
_COPIES = 3  # within one look at the clock
_CLEANING = 5.0  # seconds for repeating what removes what a failure, or an interrupt, left


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is measured on one tier.

    Attributes:
        seconds: no round begins later, but for those of the warm-up and the first pass.
        nbytes: that are moved at most, both ways together.
        sizes: of requests; by default 64 KiB, 1, 8 and 32 MiB, up to one part of the tier.
        concurrency: requests in flight; by default 1, 2, 4, ... up to what the tier wants.
        operations: of `tierstore.model.probe.OPERATIONS`.

    Raises:
        ModelError: a limit is not above 0.
        ConfigError: an operation is unknown.
    """

    seconds: float = 60.0
    nbytes: float = 16 << 30
    sizes: tuple[int, ...] = ()
    concurrency: tuple[int, ...] = ()
    operations: tuple[str, ...] = OPERATIONS

    def __post_init__(self) -> None:
        positive("limit of time", self.seconds, "s")
        positive("limit of bytes", self.nbytes, "bytes")
        for value in self.sizes:
            positive("size", value, "bytes")
        for value in self.concurrency:
            whole("concurrency", value, most=_MOST_TOGETHER)
        for name in self.operations:
            if name not in OPERATIONS:
                raise ConfigError(
                    f"there is no operation {name!r}", hint=f"they are: {', '.join(OPERATIONS)}"
                )


@dataclass(frozen=True, slots=True)
class Schedule:
    """What will be measured on a tier.

    Attributes:
        cells: one round each makes a pass.
        sizes: of requests, ascending.
        most: requests in flight at most.
        kept: bytes that lie on the tier at a time, at most.
    """

    cells: tuple[Cell, ...]
    sizes: list[int]
    most: int
    kept: int


Progress = Callable[[Cell | None, int, int], None]
"""Told the cell to come (None while preparing), rounds done, and how many there may be."""


def schedule(tier: TierConfig, capabilities: Capabilities, limits: Limits) -> Schedule:
    """Return what `measure` will do.

    Raises:
        ConfigError: a size is more than one request, or the limits leave room for nothing.
    """
    largest = capabilities.part_size
    sizes = sorted({*limits.sizes} or {size for size in SIZES if size <= largest})
    if sizes[-1] > largest:
        raise ConfigError(
            f"tier {tier.name}: {sizes[-1]} bytes are more than one request of it, {largest}",
            hint="larger files are written in parts: measure parts, the model adds them up",
        )
    wanted = capabilities.concurrency
    together = sorted({*limits.concurrency} or {*_powers(wanted), wanted})
    cells = []
    for operation in limits.operations:
        of = {"first": [1], "list": [*LISTED], "range": sizes[:-1]}.get(operation, sizes)
        cells += [Cell(operation, size, many) for size in of for many in together]
    kept = together[-1] * sum(sizes) + max(together[-1] * sizes[-1], _PUT_BYTES)
    needed = together[-1] * sum(sizes) + 2 * sum(cell.moved for cell in cells)
    if needed > limits.nbytes:
        raise ConfigError(
            f"tier {tier.name}: warm-up and one pass move {needed} bytes, the limit is "
            f"{limits.nbytes:.0f}",
            hint="allow more bytes, or measure fewer or smaller sizes",
        )
    return Schedule(tuple(cells), sizes, together[-1], kept)


def measure(tier: TierConfig, limits: Limits, progress: Progress | None = None) -> TierPoints:
    """Measure a tier through its own backend and policy, and delete what was written.

    Also after an error or an interrupt nothing stays but what cannot be deleted.

    Raises:
        ConfigError: the tier or the limits are wrong.
        StorageError: the tier failed, or what was written could not be deleted.
        IntegrityError: other bytes came back than were written.
    """
    with contextlib.closing(open_tier(tier)) as backend:
        plan = schedule(tier, backend.capabilities, limits)
        with leaving_no_folders(backend), _probe(backend, plan) as probe:
            session = _Session(probe, plan, limits, progress or _silent)
            stopped = session.run()
    capabilities = backend.capabilities
    return TierPoints(
        name=tier.name,
        url=tier.url,
        local=capabilities.seen_by != "all",
        every=tier.every,
        concurrency=capabilities.concurrency,
        part_size=capabilities.part_size,
        read_size=capabilities.read_size,
        reads_back=reads_back(capabilities, verify=False),
        stopped=stopped,
        points=tuple(_point(cell, rounds) for cell, rounds in session.rounds.items() if rounds),
    )


def describe_machine() -> dict[str, str | int | float]:
    """Return what a reader, and a prediction, need to know of this machine."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def copy_rate(nbytes: int = 64 << 20) -> float:
    """Return the bytes/s at which a core copies memory that was touched before.

    While as many others copy as a node has ranks, usually 8, or cores: they share the memory.
    """
    many = min(_RANKS, len(os.sched_getaffinity(0)))
    pairs = [(np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)) for _ in range(many)]

    def copy(pair: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]) -> None:
        for _ in range(_COPIES):
            np.copyto(pair[1], pair[0])

    times = []
    with ThreadPoolExecutor(many) as pool:
        for _ in range(5):
            begun = time.perf_counter()
            list(pool.map(copy, pairs))
            times.append(time.perf_counter() - begun)
    return _COPIES * nbytes / median(times)


@contextlib.contextmanager
def _probe(backend: Backend, plan: Schedule) -> Iterator[Probe]:
    probe = Probe(backend, plan.sizes, plan.most)
    try:
        yield probe
    except BaseException:
        probe.backend = impatient(backend, _CLEANING)  # it may be down: that is why
        with contextlib.suppress(StorageError):  # the first error is the one to report
            probe.close()
        raise
    probe.close()


def _silent(cell: Cell | None, done: int, of: int) -> None:
    del cell, done, of


def _powers(most: int) -> list[int]:
    return [1 << k for k in range(most.bit_length())]


@dataclass
class _Session:
    """The passes over one tier."""

    probe: Probe
    plan: Schedule
    limits: Limits
    progress: Progress
    rounds: dict[Cell, list[Round]] = field(default_factory=dict)
    each: dict[Cell, int] = field(default_factory=dict)

    def run(self) -> str:
        """Measure until all is stable or a limit is reached; return which."""
        begun = time.monotonic()
        self.progress(None, 0, self._most())
        self.probe.prepare()
        for cell in self.plan.cells:
            self.rounds[cell], self.each[cell] = [], 1
        order, chance = [*self.plan.cells], random.Random(1)
        for turn in range(_MOST_ROUNDS + 1):
            chance.shuffle(order)
            open_cells = [cell for cell in order if not _is_stable(self.rounds[cell])]
            if not open_cells:
                return "stable"
            for cell in open_cells:
                if turn > 1 and time.monotonic() - begun > self.limits.seconds:
                    return "seconds"
                if self.probe.moved + cell.moved * self.each[cell] > self.limits.nbytes:
                    return "bytes"
                self._turn(cell, warm=not turn)
        return "stable" if all(map(_is_stable, self.rounds.values())) else "rounds"

    def _turn(self, cell: Cell, *, warm: bool) -> None:
        self.progress(cell, sum(map(len, self.rounds.values())), self._most())
        found = self.probe.round(cell, self.each[cell])
        if warm:
            wanted = _ROUND_SECONDS / max(median(found.requests), 1e-6)
            room = _PUT_BYTES // cell.moved if cell.operation == "put" else _MOST_EACH
            self.each[cell] = max(1, min(_MOST_EACH, room, math.ceil(wanted)))
        else:
            self.rounds[cell].append(found)

    def _most(self) -> int:
        return len(self.plan.cells) * _LEAST_ROUNDS


def _is_stable(rounds: Sequence[Round]) -> bool:
    return len(rounds) >= _LEAST_ROUNDS and _uncertainty(rounds) <= _STABLE


def _uncertainty(rounds: Sequence[Round]) -> float:
    """Return the relative standard error of the median over rounds: 1.25 sigma / sqrt(n)."""
    if len(rounds) < 2:
        return 1.0
    sigma = spread([float(np.mean(each.requests)) for each in rounds])
    return 1.2533 * sigma / math.sqrt(len(rounds))


def _point(cell: Cell, rounds: Sequence[Round]) -> Point:
    requests = [seconds for each in rounds for seconds in each.requests]
    p50, p90, p99 = (float(q) for q in np.quantile(requests, (0.5, 0.9, 0.99)))
    return Point(
        operation=cell.operation,
        nbytes=cell.nbytes,
        concurrency=cell.concurrency,
        rounds=len(rounds),
        requests=len(requests),
        seconds=median(float(np.mean(each.requests)) for each in rounds),
        commit=median(float(np.mean(each.commits)) for each in rounds),
        p50=p50,
        p90=p90,
        p99=p99,
        longest=max(requests),
        first_done=median(min(each.ends) for each in rounds),
        last_done=median(max(each.ends) for each in rounds),
        rate=median(len(each.ends) * cell.nbytes / max(each.ends) for each in rounds),
        cpu=sum(each.cpu for each in rounds) / len(requests),
        stable=_is_stable(rounds),
        uncertainty=_uncertainty(rounds),
    )
