"""One rank of one peer: reads commands as JSON lines, answers with samples.

Started by `benchmarks.checkpoint`; RANK, WORLD_SIZE and MASTER_PORT are in the environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta

import torch
import torch.distributed as dist

from benchmarks import states
from benchmarks.measure import measure
from benchmarks.peer import Peer, stalled
from benchmarks.peers import PEERS

SLICE_BYTES = 4 * 1024 * 1024


class Worker:
    """The state, the peer, and what the parent can ask for."""

    def __init__(self, name: str, where: str, scenario: str, scale: float) -> None:
        self.rank = int(os.environ["RANK"])
        self.state = states.make(scenario, rank=self.rank, scale=scale)
        self.digests = states.digests(self.state)
        self.peer: Peer = PEERS[name](where)
        self.out = torch.empty(0)

    def save(self, step: int) -> Callable[[], float | None]:
        """A save that is durable when it returns."""
        return lambda: self.peer.save(step, self.state)

    def stall(self, step: int) -> Callable[[], float | None]:
        """An asynchronous save."""
        return lambda: stalled(self.peer, step, self.state)

    def load(self, step: int) -> Callable[[], float | None]:
        """A load into tensors that were cleared before."""
        states.clear(self.state)
        return lambda: self.peer.load(step, self.state)

    def slice(self, step: int) -> Callable[[], float | None]:
        """A load of the leading 4 MiB of the first tensor."""
        name, tensor = next(iter(self.state.items()))
        self.out = torch.zeros(SLICE_BYTES // tensor[0].nbytes, *tensor.shape[1:])
        return lambda: self.peer.load_slice(step, name, len(tensor), self.out)

    def check(self, command: str) -> None:
        """Compare what was loaded with what was saved.

        Raises:
            RuntimeError: it is something else.
        """
        first = next(iter(self.state.values()))
        good = command != "load" or states.digests(self.state) == self.digests
        if command == "slice":
            good = torch.equal(self.out, first[: len(self.out)])
        if not good:
            raise RuntimeError(f"the {command} gave other bytes than were saved")

    def answer(self, command: str, step: int) -> dict[str, float | str]:
        """Prepare, wait for the other ranks, measure, and check what was loaded.

        Raises:
            RuntimeError: a load gave other bytes than were saved.
        """
        call = getattr(self, command)(step)
        dist.barrier()
        sample = measure(call)
        self.check(command)
        return asdict(sample)


def main(name: str, where: str, scenario: str, scale: str) -> None:
    """Serve commands until standard input ends."""
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a peer that prints must not break the answers
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    worker = Worker(name, where, scenario, float(scale))
    print(json.dumps({"ready": time.time(), "bytes": states.size(worker.state)}), file=out)
    out.flush()
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, float | str]
        try:
            reply = worker.answer(request["command"], request["step"])
        except BaseException as error:  # DCP raises BaseException
            reply = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(reply), file=out)
        out.flush()
    worker.peer.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
