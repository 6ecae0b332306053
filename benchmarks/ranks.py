"""The ranks of one peer as processes that are asked together, and the S3 server they share."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Sample, join_ranks
from tierstore.testing.servers import minio
from tierstore.testing.servers.process import free_port


class PeerProcess:
    """All ranks of one peer.

    Args:
        name: of the peer.
        where: a folder, or an s3:// URL.
        shape: what each rank saves; see `benchmarks.states.make`.
        world: how many ranks.
        scale: share of the full size, on every rank.

    Attributes:
        place: the folder of what it stores; None if that is on S3.
        nbytes: of the state, over all ranks.
        seconds: that its answers took so far.
    """

    def __init__(self, name: str, where: str, shape: str, world: int, scale: float) -> None:
        self.name = name
        self.place = None if "://" in where else Path(where)
        self.seconds = 0.0
        port = str(free_port())
        self._ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", name, where, shape, str(scale)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ
                | {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
                | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            )
            for rank in range(world)
        ]
        self.nbytes = sum(reply["bytes"] for reply in self._replies())

    def _replies(self) -> list[dict[str, Any]]:
        replies = []
        for process in self._ranks:
            if process.stdout is None or not (line := process.stdout.readline()):
                raise RuntimeError(f"{self.name}: a rank ended with {process.wait(60)}")
            replies.append(json.loads(line))
        return replies

    def ask(self, command: str, step: int) -> Sample:
        """Have every rank run one command.

        Raises:
            RuntimeError: a rank failed; the message is its error.
        """
        for process in self._ranks:
            if process.stdin is not None:
                print(json.dumps({"command": command, "step": step}), file=process.stdin)
                process.stdin.flush()
        started = time.perf_counter()
        replies = self._replies()
        self.seconds += time.perf_counter() - started
        for reply in replies:
            if "error" in reply:
                raise RuntimeError(f"{self.name}: {command}: {reply['error']}")
        return join_ranks([Sample(**reply) for reply in replies])

    def close(self) -> None:
        """End all ranks."""
        for process in self._ranks:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._ranks:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def minio_bucket() -> Iterator[str]:
    """Yield the s3:// URL of a fresh bucket; every peer finds the server in the environment."""
    with minio() as server:
        os.environ.update(server.environment())
        yield f"s3://{server.new_bucket()}"
