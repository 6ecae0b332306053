"""One actor per node of a Ray cluster, each a worker of the migration.

Every living node that has a CPU for actors gets one, also a node that joins later or whose worker
died. One that cannot take part is left out, with a warning. Commands and answers go through Ray,
bytes do not. Whatever Ray says of a lost actor means the same: nothing of it counts any more.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import tierstore
from tierstore.errors import ConfigError
from tierstore.logs import logger
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.crew import CrewSite, Effort, room_of
from tierstore.transfer.engine.stores import Recipe, Stores
from tierstore_ray.sight import DestinationProbe, Sight, sight_of
from tierstore_ray.worker import Actor, Answered

_log = logger(__name__)

_LOOK = 1.0  # seconds between two looks at the cluster's nodes
_WAIT = 30.0  # seconds without a worker until somebody is told
_CONNECT = 5.0  # seconds for a connection to the cluster
_LIVES = 3  # workers that a node gets, one after the other
_START = "start one with `ray start --head`, or name one with --ray-address"


@dataclass(slots=True, eq=False)
class _Member:
    """One actor.

    Attributes:
        name: of the worker.
        node: the id of its node.
        actor: Ray's handle.
        joined: it takes commands.
        left: it is lost or left out.
        ended: Ray was told to end it.
        cpu_seconds: that it has used, as it last said.
        retries: of requests, the same.
    """

    name: str
    node: str
    actor: Any
    joined: bool = False
    left: bool = False
    ended: bool = False
    cpu_seconds: float = 0.0
    retries: int = 0


def open_crew(recipe: Recipe, stores: Stores, cluster: CrewSite) -> RayCrew:
    """Connect to a cluster.

    Raises:
        ConfigError: there is none, or a store cannot be seen from other machines.
    """
    probes: dict[str, DestinationProbe] = {}
    with ExitStack() as held:
        for name in stores.targets:
            mode = recipe.tiers[name].options.get("mode")
            probe = DestinationProbe(stores[name], None if mode is None else str(mode))
            probes[name] = held.enter_context(closing(probe))
        sight = sight_of(stores, probes, recipe.sample)
        _connect(cluster.address)
        begin = (tierstore.__version__, recipe, sight, cluster.environment)
        return RayCrew(begin, stores.width, room_of(stores), held.pop_all())


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "://" not in address:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), _CONNECT).close()
        ray._private.worker._worker_logs_enabled = False  # noqa: SLF001 - of stdout
        ray.init(address or "auto", log_to_driver=False, configure_logging=False)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        where = f"at {address}" if address else "here"
        text = str(error).partition(". ")[0]
        raise ConfigError(f"there is no Ray cluster {where}: {text}", hint=_START) from error


class RayCrew:
    """See the module, and `Crew`.

    Args:
        begin: what each worker is told first.
        width: commands that each carries out at once.
        room: commands that each is given.
        held: closed at the end.
    """

    def __init__(
        self,
        begin: tuple[str, Recipe, Sight, dict[str, str]],
        width: int,
        room: int,
        held: ExitStack,
    ) -> None:
        self._begin, self._width, self._room, self._held = begin, width, room, held
        self._members: dict[str, _Member] = {}
        self._left_out: dict[str, str] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._closed = False
        self._watcher = threading.Thread(target=self._watch, name="tierstore-ray", daemon=True)

    @property
    def effort(self) -> Effort:
        """See `Crew.effort`."""
        joined = [each for each in self._members.values() if each.joined]
        return Effort(
            sum(each.cpu_seconds for each in joined),
            sum(each.retries for each in joined),
            len(joined),
            sum(each.left for each in joined),
        )

    def start(self, tell: Callable[[m.Event], None]) -> None:
        """See `Crew.start`."""
        self._tell = tell
        self._watcher.start()

    def submit(self, worker: str, task: m.Task) -> None:
        """See `Crew.submit`."""
        member = self._members[worker]
        call = member.actor.carry_out.remote(task)
        call.future().add_done_callback(partial(self._answered, member, task))

    def close(self, *, patience: float = 0.0) -> None:
        """See `Crew.close`."""
        del patience
        if self._closed:
            return
        self._closed = True
        self._over.set()
        if self._watcher.ident is not None:
            self._watcher.join()
        for member in self._members.values():
            self._end(member)
        ray.shutdown()
        self._held.close()

    # Answers; in Ray's own thread, which hangs if it calls Ray

    def _began(self, member: _Member, future: Future[str]) -> None:
        error = future.exception()
        reason = "" if error else future.result()
        with self._lock:
            if self._over.is_set():
                return
            if not error and not reason:
                member.joined = True
                self._tell(m.Joined(member.name, self._room))
                return
            member.left = True
        if reason:
            self._leave_out(member.node, reason)
        else:
            _log.warning("%s did not start: %s", member.name, _last_line(error))

    def _answered(self, member: _Member, task: m.Task, future: Future[Answered]) -> None:
        error = future.exception()
        with self._lock:
            if member.left or self._over.is_set():
                return
            if error is None:
                answer = future.result()
                member.cpu_seconds = max(member.cpu_seconds, answer.cpu_seconds)
                member.retries = max(member.retries, answer.retries)
                self._tell(answer.event)
                return
            if isinstance(error, RayTaskError):  # it lives
                self._tell(m.Failed(task.job, _last_line(error), fatal=True))
                return
            member.left = True
            self._tell(m.Left(member.name))
        _log.warning("%s is lost; others go on with what it had", member.name)

    def _leave_out(self, node: str, reason: str) -> None:
        self._left_out[node] = reason
        _log.warning("node %s takes no part: %s", node[:8], reason)

    # Nodes

    def _watch(self) -> None:
        begun, told = time.monotonic(), False
        while not self._over.is_set():
            try:
                waiting = self._recruit()
            except Exception as error:  # the cluster itself is gone
                self._tell(m.Broken(f"the Ray cluster does not answer: {_last_line(error)}"))
                return
            if not waiting:
                reasons = set(self._left_out.values()) or {"its nodes were lost, or have no CPU"}
                self._tell(m.Broken(f"no node of the Ray cluster is left: {'; '.join(reasons)}"))
                return
            if not told and time.monotonic() > begun + _WAIT and not self.effort.workers:
                told = True
                _log.warning("no node of the Ray cluster has begun yet: are all CPUs taken?")
            self._over.wait(_LOOK)

    def _recruit(self) -> bool:
        """Have a worker on every node that can have one; return whether any has or may."""
        able = False
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            lives = [each for each in self._members.values() if each.node == node["NodeID"]]
            usable = node["Alive"] and node["Resources"].get("CPU", 0) >= 1
            usable = usable and node["NodeID"] not in self._left_out and len(lives) < _LIVES
            if usable and all(each.left for each in lives):
                lives.append(self._hire(node, len(lives)))
            able = able or any(not each.left for each in lives)
        for member in self._members.values():
            if member.left:
                self._end(member)  # it may only be out of reach
        return able

    def _end(self, member: _Member) -> None:
        if not member.ended:
            member.ended = True
            with suppress(RayError):
                ray.kill(member.actor)

    def _hire(self, node: dict[str, Any], number: int) -> _Member:
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {"scheduling_strategy": where, "max_concurrency": self._width}
        actor: Any = ray.remote(Actor).options(**options).remote()
        name = f"worker {number + 1} on node {node['NodeID'][:8]} ({node['NodeManagerAddress']})"
        member = _Member(name, node["NodeID"], actor)
        self._members[name] = member
        actor.begin.remote(*self._begin).future().add_done_callback(partial(self._began, member))
        return member


def _last_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"
