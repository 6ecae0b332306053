"""Who carries out the commands of an engine: threads of this process, or workers elsewhere.

The state machine, the journal and the feed stay where the engine was started. A crew is found
by its name in the entry-point group "tierstore.crews".
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from typing import Protocol

from tierstore import registry
from tierstore.config import TierConfig
from tierstore.errors import ConfigError
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.affinity import Affinity
from tierstore.transfer.engine.ends import Ends
from tierstore.transfer.engine.flushing import Flusher
from tierstore.transfer.engine.rules import SMALL
from tierstore.transfer.engine.worker import Worker
from tierstore.transfer.source import AlignedBuffers
from tierstore.wrappers import open_tier
from tierstore.wrappers.metrics import Metered

GROUP = "tierstore.crews"
_MEMORY = 512 * 1024**2
_SMALL = 8 * 1024**2
_AHEAD = 32  # small commands: more than end before the next ones are given


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to open both ends, in this process or in another one; it can be pickled.

    Attributes:
        source: where objects come from.
        target: where they go.
        only: as in `Ends`.
    """

    source: TierConfig
    target: TierConfig
    only: tuple[str, str] | None = None

    def open(self) -> Ends:
        """Open both ends; whoever calls closes them.

        Raises:
            ConfigError: one is wrong.
        """
        return Ends(open_tier(self.source), open_tier(self.target), self.only)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a crew finds its machines, and what it takes there.

    Attributes:
        address: of the cluster; empty for the one that its own tools would find.
        environment: variables of this process that workers see, too.
    """

    address: str = ""
    environment: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Effort:
    """What workers outside this process have done; all zero for those inside.

    Attributes:
        cpu_seconds: of them all, those that were lost too.
        retries: requests that they repeated.
        workers: how many took part.
        lost: how many of them were lost.
    """

    cpu_seconds: float = 0.0
    retries: int = 0
    workers: int = 0
    lost: int = 0


class Crew(Protocol):
    """Workers, each with what it has open. One engine uses it, once."""

    def start(self, tell: Callable[[m.Event], None]) -> None:
        """Begin.

        Args:
            tell: takes, from any thread, `Joined` of each worker, answers, and `Left` of a worker
                that is lost, after which no answer of it comes; `Broken` if none is left.
        """
        ...

    def submit(self, worker: str, task: m.Task) -> None:
        """Have a worker carry out a command; it was heard to have joined."""
        ...

    def close(self, *, patience: float = 0.0) -> None:
        """End all workers, after what they have begun or so many seconds. Idempotent."""
        ...

    @property
    def effort(self) -> Effort:
        """What it took, so far as is known here."""
        ...


Factory = Callable[[Recipe, Ends, Cluster], Crew]


def open_crew(name: str, recipe: Recipe, ends: Ends, cluster: Cluster) -> Crew:
    """Open the crew of a name.

    Args:
        name: such as "ray".
        recipe: how workers open the ends.
        ends: the same, open here.
        cluster: where.

    Raises:
        ConfigError: there is no such crew, its package is missing, or there is no cluster.
    """
    return find_crew(name)(recipe, ends, cluster)


def find_crew(name: str) -> Factory:
    """Return what opens the crew of a name.

    Raises:
        ConfigError: there is no such crew, or its package is missing.
    """
    entries = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if name not in entries:
        raise ConfigError(
            f"nothing is known to run on {name!r}", hint=registry.nearest(name, entries)
        )
    try:
        factory: Factory = entries[name].load()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"to run on {name} needs {error.name}, which is not installed",
            hint=f"pip install 'tierstore[{name}]', here and on every node",
        ) from error
    return factory


class Buffers:
    """Memory for every thread, and for as many large parts at once as fit.

    Args:
        part: bytes of a usual part.
        width: how many ranges may be under way.
        small: how many of them if they are small.
    """

    def __init__(self, part: int, width: int, small: int) -> None:
        large = min(width, max(1, _MEMORY // part))
        self._tiny = AlignedBuffers(SMALL, small)
        self._small = AlignedBuffers(_SMALL, width)
        self._large = AlignedBuffers(part, large)

    def take(self, length: int) -> AbstractContextManager[memoryview]:
        """Lend `length` bytes; what they hold is undefined."""
        if length <= SMALL:
            return self._tiny.take(length)
        return (self._small if length <= _SMALL else self._large).take(length)


def retries_of(ends: Ends) -> int:
    """Return how many requests were repeated at both ends so far, as far as they count them."""
    metered = (end for end in (ends.source, ends.target) if isinstance(end, Metered))
    return sum(sum(end.snapshot().retries.values()) for end in metered)


def heavy_of(ends: Ends) -> int:
    """Return for how many small commands a large one counts, so that large ones are fewer."""
    return room_of(ends) // _wide(ends)


def width_of(ends: Ends) -> int:
    """Return how many commands at once suit one worker with these ends."""
    source, target = ends.source.capabilities, ends.target.capabilities
    return max(_wide(ends), source.small_concurrency, target.small_concurrency)


def room_of(ends: Ends) -> int:
    """Return how many commands one worker is given, some ahead, so that it never waits for one."""
    return width_of(ends) + _AHEAD


def worker_of(ends: Ends, affinity: Affinity, *, durable: bool = True) -> Worker:
    """Return what carries out commands in as many threads as suit the ends.

    Args:
        ends: what they work on.
        affinity: see `Worker`.
        durable: see `Worker`.
    """
    part = ends.target.capabilities.part_size
    return Worker(ends, Buffers(part, _wide(ends), width_of(ends)), affinity, durable=durable)


def _wide(ends: Ends) -> int:
    return max(ends.source.capabilities.concurrency, ends.target.capabilities.concurrency)


class Threads:
    """Threads of this process; one worker, which never leaves.

    Args:
        ends: what they work on.
        affinity: see `Worker`.
    """

    effort = Effort()

    def __init__(self, ends: Ends, affinity: Affinity) -> None:
        self._flushes = ends.target.capabilities.flushes
        self._flush = ends.target.flush
        self._flusher: Flusher | None = None
        self._worker = worker_of(ends, affinity, durable=not self._flushes)
        self._tasks: queue.SimpleQueue[m.Task | None] = queue.SimpleQueue()
        self._width, self._room = width_of(ends), room_of(ends)
        self._threads: list[threading.Thread] = []

    def start(self, tell: Callable[[m.Event], None]) -> None:
        """See `Crew.start`."""
        self._tell: Callable[[m.Answer], None] = tell
        works = [self._work] * self._width
        if self._flushes:
            self._flusher = Flusher(self._flush, tell)
            self._tell = self._flusher.put
            works.append(self._flusher.run)
        # Daemons: whoever stops does not wait for a store that does not answer.
        self._threads = [
            threading.Thread(target=work, name=f"tierstore-engine-{number}", daemon=True)
            for number, work in enumerate(works)
        ]
        for thread in self._threads:
            thread.start()
        tell(m.Joined("", self._room))

    def submit(self, worker: str, task: m.Task) -> None:
        """See `Crew.submit`."""
        del worker
        self._tasks.put(task)

    def close(self, *, patience: float = 0.0) -> None:
        """See `Crew.close`."""
        with suppress(queue.Empty):
            while True:  # what was given ahead is not begun any more
                self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        if self._flusher:
            self._flusher.close()
        for thread in self._threads if patience else ():
            thread.join(patience)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._tell(self._worker.carry_out(task))
