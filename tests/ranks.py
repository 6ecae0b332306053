"""Real processes that play the ranks of a job; started once, used by many tests.

`Ranks.run(n, function, *arguments)` runs a module-level function on n ranks at once, inside a fresh
gloo process group on loopback, and returns what each rank returned. The function lives in a module
that every process can import (`tests.*`), not in a test file.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE

_PRELOAD = ["tests.imports"]


class RankError(AssertionError):
    """A rank raised; the text has every rank's traceback."""


@dataclass(frozen=True, slots=True)
class _Job:
    size: int
    rendezvous: str | None
    environment: dict[str, str]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Ranks:
    """A pool of processes, one a rank. `close` ends them."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOAD)
        self._workers: list[tuple[Any, Connection]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        self._jobs = 0

    def run(
        self,
        size: int,
        function: Callable[..., Any],
        *arguments: Any,
        timeout: float = PATIENCE,
        distributed: bool = True,
    ) -> list[Any]:
        """Run `function(*arguments)` on `size` ranks and return their results in rank order."""
        self.start(size, function, *arguments, distributed=distributed)
        return self.collect(size, timeout=timeout)

    def start(
        self, size: int, function: Callable[..., Any], *arguments: Any, distributed: bool = True
    ) -> list[int]:
        """Begin a run that `collect` ends; return the process ids by rank."""
        while len(self._workers) < size:
            self._workers.append(self._spawn(len(self._workers)))
        self._jobs += 1
        rendezvous = f"{self._folder.name}/{self._jobs}" if distributed else None
        environment = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
        job = _Job(size, rendezvous, environment, function, arguments)
        for _, connection in self._workers[:size]:
            connection.send(job)
        return [process.pid for process, _ in self._workers[:size]]

    def collect(
        self, size: int, *, timeout: float = PATIENCE, lost: tuple[int, ...] = ()
    ) -> list[Any]:
        """Wait for the ranks of the run begun last; ranks in `lost` are expected to die.

        Raises:
            RankError: a rank raised, died or took too long. All ranks are then replaced.
        """
        answers: dict[int, Any] = {}
        failures: list[str] = []
        deadline = time.monotonic() + timeout
        open_ = {self._workers[rank][1]: rank for rank in range(size)}
        while open_:
            ready = wait(list(open_), max(0.0, deadline - time.monotonic()))
            if not ready:
                failures.append(f"ranks {sorted(open_.values())} took more than {timeout} s")
                break
            for connection in ready:
                rank = open_.pop(connection)
                try:
                    good, answers[rank] = connection.recv()
                except EOFError:
                    good, answers[rank] = rank in lost, "the process died"
                if not good:
                    failures.append(f"--- rank {rank}:\n{answers[rank]}")
        if failures or lost:
            self._replace(range(size) if failures else lost)
        if failures:
            raise RankError("\n".join(failures))
        return [answers[rank] for rank in range(size)]

    def close(self) -> None:
        """End all processes."""
        self._replace(range(len(self._workers)), again=False)
        self._folder.cleanup()

    def _spawn(self, rank: int) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(rank, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def _replace(self, ranks: Any, *, again: bool = True) -> None:
        for rank in ranks:
            process, connection = self._workers[rank]
            connection.close()
            process.join(timeout=0 if again else 5)
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
            if again:
                self._workers[rank] = self._spawn(rank)


def _serve(rank: int, connection: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(job.environment)
        try:
            answer = (True, _run(rank, job))
        except BaseException:
            answer = (False, traceback.format_exc())
        connection.send(answer)


def _run(rank: int, job: _Job) -> Any:
    import torch.distributed as dist

    if job.rendezvous is None:
        return job.function(*job.arguments)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{job.rendezvous}",
        rank=rank,
        world_size=job.size,
        timeout=timedelta(seconds=PATIENCE),
    )
    try:
        dist.barrier()  # a rank that is done early must not close what others still connect to
        return job.function(*job.arguments)
    finally:
        dist.destroy_process_group()


def resources() -> tuple[int, int, int]:
    """Return this process's resident KiB, open file descriptors and Python threads."""
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    files = len(list(Path("/proc/self/fd").iterdir()))
    return int(resident.split()[1]), files, threading.active_count()
