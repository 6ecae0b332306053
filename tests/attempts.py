"""Attempts without a job: what ranks would write, in whole or in part, right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tierstore.backend import Backend
from tierstore.blocks import block_crcs
from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.fragment import FileEntry, Fragment, ValueEntry
from tierstore.checkpoint.holdings import holdings
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch
from tierstore.image.layout import Chunk, plan_layout
from tierstore.keys import Attempt, AttemptId


def nonce_of(launch: int) -> str:
    return f"{launch:016x}"


def launch_of(number: int, parent: Attempt | None = None, world: int = 2) -> Launch:
    line = None if parent is None else AttemptId(parent, nonce_of(parent.launch))
    return Launch(number, nonce_of(number), line, world, float(number))


def claim(store: RunStore, number: int, parent: Attempt | None = None) -> Launch:
    launch = launch_of(number, parent)
    store.claim_launch(launch)
    return launch


def rows_of(rank: int, world: int) -> list[Chunk]:
    """Two rows of "w" for each rank, and the whole of "b" on rank 0."""
    rows = [Chunk("w", "float32", (2 * world, 3), (2 * rank, 0), (2, 3), '["w"]')]
    return rows + ([Chunk("b", "bfloat16", (7,), (0,), (7,), '["b"]')] if rank == 0 else [])


def fragment(
    attempt: Attempt,
    rank: int,
    world: int = 2,
    *,
    chunks: Sequence[Chunk] | None = None,
    **changes: Any,
) -> Fragment:
    """What a rank would write; without changes, a set of them is complete."""
    held = rows_of(rank, world) if chunks is None else list(chunks)
    layout = plan_layout(held, rank=rank)
    parts: dict[str, Any] = {
        "attempt": attempt,
        "launch": launch_of(attempt.launch),
        "rank": rank,
        "ranks": tuple(range(world)),
        "world_size": world,
        "declared": 2 * world + 1,  # chunks of "w", "b", and a value of each rank
        "chunks": held,
        "placements": layout.placements,
        "files": [
            FileEntry(segment.name, segment.size, block_crcs(segment_bytes(segment.size, rank)))
            for segment in layout.segments
        ],
        "values": [ValueEntry(f"rng.{rank}", f'["rng", {rank}]', "json", b'{"a":1}')],
    }
    return Fragment(**parts | changes)


def segment_bytes(size: int, rank: int) -> bytes:
    return bytes([rank + 1]) * size


def write_rank(
    store: RunStore, attempt: Attempt, rank: int, world: int = 2, **changes: Any
) -> None:
    """All that one rank does before it tries to commit."""
    part = fragment(attempt, rank, world, **changes)
    keys = store.keys.attempt(attempt, part.launch.nonce)
    for file in part.files:
        store.backend.create(keys.segment(file.name), segment_bytes(file.size, rank))
    store.write_fragment(part)


def save(
    store: RunStore,
    attempt: Attempt,
    world: int = 2,
    *,
    parent: Attempt | None = None,
    launch: Launch | None = None,
) -> Commit:
    """A whole save, rank after rank."""
    launch = launch or launch_of(attempt.launch, parent)
    for rank in range(world):
        write_rank(store, attempt, rank, world, launch=launch)
    commit = store.try_commit(attempt, launch.nonce)
    assert commit is not None
    return commit


def commits(store: RunStore) -> dict[Attempt, bool]:
    """What is under `commits/`, and whether it is alive by its size."""
    return {attempt: entry.alive for attempt, entry in store.entries().items()}


def line_of(store: RunStore) -> list[Attempt]:
    """The timeline as one tier tells it."""
    return [saved.attempt for saved in holdings(store).timeline]


def contents(backend: Backend, prefix: str = "") -> dict[str, bytes]:
    """Every object, whole."""
    found = {}
    for info in list(backend.list(prefix)):
        data = bytearray(info.size)
        if info.size:
            backend.read_into(info.key, 0, memoryview(data))
        found[info.key] = bytes(data)
    return found


def flip(backend: Backend, key: str, at: int) -> None:
    """Change one byte of a stored object."""
    data = bytearray(contents(backend, key)[key])
    data[at] ^= 0x40
    backend.create(key, bytes(data))
