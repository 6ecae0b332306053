"""A job without torch: ranks that hold rows of one matrix, and shards of it to save."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.patience import PATIENCE
from tierstore.backend import Backend
from tierstore.backends.local.backend import LocalBackend
from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.timeline import Launch
from tierstore.config import TierConfig
from tierstore.image.layout import Chunk, plan_layout
from tierstore.keys import Attempt, AttemptId
from tierstore.ladder.find import Found
from tierstore.ladder.shard import Shard
from tierstore.ladder.tiers import OpenTier
from tierstore.transfer.read import Want, fetch

COLUMNS = 1024
Matrix = npt.NDArray[np.int32]


class Image:
    """A staged image that remembers that it was released."""

    def __init__(self, size: int) -> None:
        self._memory = np.zeros(size, np.uint8)
        self.buffer = memoryview(self._memory)
        self.released = False

    def release(self) -> None:
        assert not self.released
        self.released = True
        self._memory[:] = 0xEE  # whoever still reads it will be noticed


def launch(number: int = 1, *, parent: Attempt | None = None, world: int = 1) -> Launch:
    line = None if parent is None else AttemptId(parent, f"{parent.launch:016x}")
    return Launch(number, f"{number:016x}", line, world, float(number))


def matrix(attempt: Attempt, rows: int) -> Matrix:
    """What the whole job holds at an attempt: different in every one."""
    start = attempt.step * 1_000_003 + attempt.launch * 7919 + attempt.number
    return np.arange(start, start + rows * COLUMNS, dtype=np.int32).reshape(rows, COLUMNS)


def stage(
    attempt: Attempt,
    line: Launch,
    *,
    rank: int = 0,
    world: int = 1,
    rows: int = 1500,
    segment_bytes: int = 2 * 1024**2,
) -> tuple[Shard, Image]:
    """Return a rank's shard of an attempt, staged; it has several segments and one value."""
    low, high = rank * rows // world, (rank + 1) * rows // world
    cuts = [*range(low, high, 300), high]
    chunks = [
        Chunk("matrix", "int32", (rows, COLUMNS), (a, 0), (b - a, COLUMNS))
        for a, b in pairwise(cuts)
    ]
    layout = plan_layout(chunks, rank=rank, segment_bytes=segment_bytes)
    image = Image(layout.size)
    layout.write_headers(image.buffer)
    whole = matrix(attempt, rows)
    for index, chunk in enumerate(chunks):
        at = layout.image_offset(index)
        top = chunk.offsets[0]
        part = whole[top : top + chunk.sizes[0]].tobytes()
        image.buffer[at : at + len(part)] = part
    values = [ValueEntry(f"rank{rank}", "", "json", str(rank).encode())]
    counts = [len(range(r * rows // world, (r + 1) * rows // world, 300)) + 1 for r in range(world)]
    return Shard(line, attempt, rank, world, counts, layout, chunks, values), image


def load(found: Found, rows: int = 1500) -> Matrix:
    """Read the matrix of a checkpoint back."""
    tensor = found.manifest.find("matrix")
    assert tensor is not None
    result = np.zeros((rows, COLUMNS), np.int32)
    whole = memoryview(result).cast("B")
    entries = list(found.manifest.files)
    wants = []
    for chunk in tensor.chunks:
        at = chunk.offsets[0] * COLUMNS * 4
        name = entries[chunk.file].name
        wants.append(Want(name, chunk.offset, chunk.nbytes, into=whole[at : at + chunk.nbytes]))
    fetch(wants, {entry.name: entry for entry in entries}, found.replicas)
    return result


def assert_restores(found: Found, attempt: Attempt, rows: int = 1500) -> None:
    assert found.attempt == attempt
    assert np.array_equal(load(found, rows), matrix(attempt, rows))


def tier(name: str, backend: Backend, ranks: Sequence[int] = (0,), **config: Any) -> OpenTier:
    return OpenTier(TierConfig(name, backend.url, **config), backend, tuple(ranks))


def folder(name: str, path: Path, ranks: Sequence[int] = (0,), **config: Any) -> OpenTier:
    return tier(name, LocalBackend(str(path)), ranks, **config)


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
