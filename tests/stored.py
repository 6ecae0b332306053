"""Checkpoints of any arrays, cut in any way over any ranks, saved without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.attempts import launch_of
from tierstore.backend import Backend
from tierstore.blocks import block_crcs
from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.fragment import FileEntry, Fragment, ValueEntry
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch
from tierstore.image.layout import SEGMENT_BYTES, Chunk, plan_layout
from tierstore.keys import Attempt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Saved:
    """A tensor to be saved.

    Attributes:
        data: its numbers.
        dtype: torch's name of the dtype.
        cuts: per dimension, where it is cut, without 0 and the end.
        shape: torch's shape, if it is not that of the data.
        path: as in the manifest.
    """

    data: Array
    dtype: str
    cuts: Sequence[Sequence[int]] = ()
    shape: tuple[int, ...] | None = None
    path: str = ""

    def chunks(self, name: str) -> list[tuple[Chunk, bytes]]:
        """Return the chunks, each with its bytes."""
        shape = self.data.shape if self.shape is None else self.shape
        cells = self.data.reshape(shape) if self.shape is None else _cells(self.data, shape)
        cuts = [*self.cuts, *[()] * (len(shape) - len(self.cuts))]
        edges = [list(pairwise([0, *cut, length])) for cut, length in zip(cuts, shape, strict=True)]
        found = []
        for box in product(*edges):
            part = cells[tuple(slice(*edge) for edge in box)]
            low, sizes = tuple(a for a, _ in box), tuple(b - a for a, b in box)
            chunk = Chunk(name, self.dtype, shape, low, sizes, self.path)
            data = np.ascontiguousarray(part).tobytes()
            assert len(data) == chunk.nbytes
            found.append((chunk, data))
        return found


def _cells(data: Array, shape: tuple[int, ...]) -> Array:
    """Data of several numbers an element, as one thing an element."""
    width = data.nbytes // max(1, int(np.prod(shape)))
    return np.ascontiguousarray(data).view(np.dtype(f"V{width}")).reshape(shape)


def save_arrays(
    backend: Backend,
    run: str,
    tensors: Mapping[str, Saved],
    *,
    attempt: Attempt | None = None,
    parent: Attempt | None = None,
    world: int = 1,
    values: Sequence[ValueEntry] = (),
    segment_bytes: int = SEGMENT_BYTES,
    launch: Launch | None = None,
) -> Commit:
    """Save a checkpoint; chunks go to the ranks in turn."""
    store, attempt = RunStore(backend, run), attempt or Attempt(1, 1, 1)
    launch = launch or launch_of(attempt.launch, parent, world)
    pairs = [pair for name, saved in tensors.items() for pair in saved.chunks(name)]
    keys = store.keys.attempt(attempt, launch.nonce)
    for rank in range(world):
        own = pairs[rank::world]
        layout = plan_layout([chunk for chunk, _ in own], rank=rank, segment_bytes=segment_bytes)
        image = memoryview(bytearray(layout.size))
        layout.write_headers(image)
        for index, (_, data) in enumerate(own):
            at = layout.image_offset(index)
            image[at : at + len(data)] = data
        files = []
        for segment in layout.segments:
            data = image[segment.image_offset : segment.image_offset + segment.size]
            files.append(FileEntry(segment.name, segment.size, block_crcs(data)))
            backend.create(keys.segment(segment.name), data)
        fragment = Fragment(
            attempt=attempt,
            launch=launch,
            rank=rank,
            ranks=tuple(range(world)),
            world_size=world,
            declared=len(pairs) + len(values),
            chunks=[chunk for chunk, _ in own],
            placements=layout.placements,
            files=files,
            values=values if rank == 0 else (),
        )
        store.write_fragment(fragment)
    commit = store.try_commit(attempt, launch.nonce)
    assert commit is not None
    return commit


def plain(data: Array, cuts: Sequence[Sequence[int]] = ()) -> Saved:
    """A tensor of a dtype that numpy has."""
    return Saved(data, data.dtype.name, cuts)
