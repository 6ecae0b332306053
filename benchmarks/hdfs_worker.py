"""One peer of the HDFS comparison: reads commands as JSON lines, answers with samples.

Started by `benchmarks.hdfs`; a command is {"workload": NAME, "round": N}.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.hdfs_peers import PEERS, HdfsPeer, LeftOutError, Place
from benchmarks.measure import measure
from tierstore.blocks import crc32c

MIB = 1 << 20
RANGES = 128


@dataclass(frozen=True, slots=True)
class Files:
    """How many files of what size, and how many of them at once."""

    count: int
    size: int
    workers: int


def shapes(scale: float) -> dict[str, Files]:
    """Return the shapes that are written and read. 1 GiB in all, at scale 1, but for the small."""
    whole = max(int(1024 * scale), 16) * MIB
    return {
        "one file": Files(1, whole, 1),
        "16 files": Files(16, whole // 16, 16),
        "small files": Files(max(int(1000 * scale), 50), 4096, 16),
    }


class Worker:
    """The data, the peer, and what the parent can ask for."""

    def __init__(self, peer: HdfsPeer, scale: float) -> None:
        self.peer = peer
        self.shapes = shapes(scale)
        whole = self.shapes["one file"].size
        self.data = memoryview(np.random.default_rng(7).bytes(whole))
        self.into = memoryview(bytearray(b"\1") * whole)  # touched before it is measured

    def _files(self, shape: str, memory: memoryview, turn: int) -> dict[str, memoryview]:
        files = self.shapes[shape]
        prefix = f"{shape.replace(' ', '-')}-{turn}"
        return {
            f"{prefix}-{number}": memory[number * files.size : (number + 1) * files.size]
            for number in range(files.count)
        }

    def write(self, shape: str, turn: int) -> dict[str, object]:
        """Write a shape's files."""
        files = self._files(shape, self.data, turn)
        self.peer.prepare(files)
        return self._timed(lambda: self.peer.write(files, self.shapes[shape].workers))

    def read(self, shape: str, turn: int) -> dict[str, object]:
        """Read them.

        Raises:
            RuntimeError: other bytes came back than were written.
        """
        files = self._files(shape, self.into, turn)
        self.into[:] = bytes(len(self.into))
        sample = self._timed(lambda: self.peer.read(files, self.shapes[shape].workers))
        self.peer.collect(files)
        for name, wanted in self._files(shape, self.data, turn).items():
            if crc32c(files[name]) != crc32c(wanted):
                raise RuntimeError(f"{name}: other bytes came back than were written")
        return sample

    def ranges(self, workers: int, turn: int) -> dict[str, object]:
        """Read 1 MiB at a time from anywhere in the one file.

        Raises:
            RuntimeError: other bytes came back than were written.
        """
        (name,) = self._files("one file", self.data, turn)
        size = self.shapes["one file"].size
        offsets = np.random.default_rng(turn).integers(0, size - MIB, RANGES).tolist()
        buffers = [memoryview(bytearray(MIB)) for _ in offsets]
        wanted = list(zip(offsets, buffers, strict=True))
        sample = self._timed(lambda: self.peer.ranges(name, size, wanted, workers))
        for offset, into in wanted:
            if crc32c(into) != crc32c(self.data[offset : offset + MIB]):
                raise RuntimeError(f"{name}: other bytes came back from {offset} than were written")
        return sample

    def answer(self, workload: str, turn: int) -> dict[str, object]:
        """Carry out one workload, such as "write one file" or "8 ranges"."""
        verb, _, shape = workload.partition(" ")
        if shape.startswith("range"):
            return self.ranges(int(verb), turn)
        return self.write(shape, turn) if verb == "write" else self.read(shape, turn)

    def _timed(self, call: Callable[[], None]) -> dict[str, object]:
        return asdict(measure(call))


def _reply(worker: Worker, request: dict[str, object]) -> dict[str, object]:
    try:
        return worker.answer(str(request["workload"]), int(str(request["round"])))
    except NotImplementedError as error:
        return {"unable": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def main(name: str, place: str, scale: str) -> None:
    """Serve commands until standard input ends."""
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a peer that prints must not break the answers
    try:
        peer = PEERS[name](Place(**json.loads(place)))
    except LeftOutError as error:
        print(json.dumps({"left_out": str(error)}), file=out)
        return
    worker = Worker(peer, float(scale))
    print(json.dumps({"settings": peer.settings}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(_reply(worker, json.loads(line))), file=out, flush=True)
    peer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
