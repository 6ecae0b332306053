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
from tierstore.errors import ConfigError
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.affinity import Affinity
from tierstore.transfer.engine.flushing import Flusher
from tierstore.transfer.engine.rules import SMALL
from tierstore.transfer.engine.stores import Recipe, Stores
from tierstore.transfer.engine.worker import Worker
from tierstore.transfer.source import AlignedBuffers

GROUP = "tierstore.crews"
_MEMORY = 512 * 1024**2
_SMALL = 8 * 1024**2
_AHEAD = 32  # small commands: more than end before the next ones are given


@dataclass(frozen=True, slots=True)
class CrewSite:
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


Factory = Callable[[Recipe, Stores, CrewSite], Crew]


def open_crew(name: str, recipe: Recipe, stores: Stores, cluster: CrewSite) -> Crew:
    """Open the crew of a name.

    Args:
        name: such as "ray".
        recipe: how workers open the stores.
        stores: the same, open here.
        cluster: where.

    Raises:
        ConfigError: there is no such crew, its package is missing, or there is no cluster.
    """
    return find_crew(name)(recipe, stores, cluster)


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


class PartMemory:
    """Memory for every thread, and for as many large parts at once as fit; see `Buffers`.

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


def heavy_of(stores: Stores) -> int:
    """Return for how many small commands a large one counts, so that large ones are fewer."""
    return room_of(stores) // stores.wide


def room_of(stores: Stores) -> int:
    """Return how many commands one worker is given, some ahead, so that it never waits for one."""
    return stores.width + _AHEAD


def worker_of(stores: Stores, affinity: Affinity, *, durable: bool = True) -> Worker:
    """Return what carries out commands in as many threads as suit the stores.

    Args:
        stores: what they work on.
        affinity: see `Worker`.
        durable: see `Worker`.
    """
    memory = PartMemory(stores.part_size, stores.wide, stores.width)
    return Worker(stores, memory, affinity, durable=durable)


class Threads:
    """Threads of this process; one worker, which never leaves.

    Args:
        stores: what they work on.
        affinity: see `Worker`.
    """

    effort = Effort()

    def __init__(self, stores: Stores, affinity: Affinity) -> None:
        self._stores = stores
        self._flushers: dict[str, Flusher] = {}  # by store
        self._worker = worker_of(stores, affinity, durable=False)
        self._tasks: queue.SimpleQueue[m.Task | None] = queue.SimpleQueue()
        self._width, self._room = stores.width, room_of(stores)
        self._threads: list[threading.Thread] = []

    def start(self, tell: Callable[[m.Event], None]) -> None:
        """See `Crew.start`."""
        self._tell = tell
        for name in self._stores.targets:
            if self._stores[name].capabilities.flushes:
                self._flushers[name] = Flusher(self._stores[name].flush, tell)
        works = [self._work] * self._width
        works += [flusher.run for flusher in self._flushers.values()]
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
        for flusher in self._flushers.values():
            flusher.close()
        for thread in self._threads if patience else ():
            thread.join(patience)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            answer = self._worker.carry_out(task)
            flusher = self._flushers.get(task.entry.target) if isinstance(task, m.Copy) else None
            if flusher and isinstance(answer, m.Copied):
                flusher.put(answer)
            else:
                self._tell(answer)
