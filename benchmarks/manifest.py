"""A checkpoint of a million chunks: how long its commit takes, and finding one tensor in it."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import machine
from benchmarks.options import Disk, JsonFile
from benchmarks.report import heading
from tierstore.backends.local.backend import LocalBackend
from tierstore.blocks import block_count
from tierstore.checkpoint.fragment import FileEntry, Fragment
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch
from tierstore.image.layout import Chunk, Placement
from tierstore.keys import Attempt

ATTEMPT, NONCE = Attempt(1, 1, 1), "0" * 16
SHAPES = {"1,000 ranks": (1000, 1000, 1), "1,000 chunks a tensor": (4, 250, 1000)}
"""What a million chunks may be: ranks, tensors, chunks of each tensor on each rank."""
_CHUNKS = 1_000_000
_DATA, _CHUNK = 4096, 32  # where a file's data starts, and bytes of a chunk


def fragments(ranks: int, tensors: int, per: int) -> Iterator[Fragment]:
    """Yield what each rank would write of tensors of 8 float32 columns, one row a chunk."""
    shape = (ranks * per, 8)
    for rank in range(ranks):
        chunks = [
            Chunk(f"layer.{t}.weight", "float32", shape, (rank * per + k, 0), (1, 8), "p")
            for t in range(tensors)
            for k in range(per)
        ]
        places = [Placement(0, _DATA + _CHUNK * i, _CHUNK) for i in range(len(chunks))]
        size = _DATA + _CHUNK * len(chunks)
        yield Fragment(
            attempt=ATTEMPT,
            launch=Launch(ATTEMPT.launch, NONCE, None, ranks, 0.0),
            rank=rank,
            ranks=tuple(range(ranks)),
            world_size=ranks,
            declared=ranks * tensors * per,
            chunks=chunks,
            placements=places,
            files=[FileEntry(f"{rank:05d}-000.safetensors", size, [0] * block_count(size))],
        )


def measure(folder: Path, ranks: int, tensors: int, per: int) -> dict[str, float]:
    """Return the seconds of the last writer's commit and of opening and finding, and the bytes."""
    store = RunStore(LocalBackend(str(folder)), "bench")
    store.claim_launch(Launch(1, NONCE, None, ranks, 0.0))
    keys = store.keys.attempt(ATTEMPT, NONCE)
    for fragment in fragments(ranks, tensors, per):
        for file in fragment.files:
            _sparse(folder / keys.segment(file.name), file.size)
        store.write_fragment(fragment)
    started = time.perf_counter()
    commit = store.try_commit(ATTEMPT, NONCE, tuple(range(ranks)))
    committed = time.perf_counter() - started
    if commit is None:
        raise RuntimeError("not everything was there to commit")
    finding = []
    for index in range(9):
        started = time.perf_counter()
        found = store.open_manifest(commit).find(f"layer.{(tensors // 9) * index}.weight")
        finding.append(time.perf_counter() - started)
        if found is None or len(found.chunks) != ranks * per:
            raise RuntimeError("the manifest does not hold what was written")
    return {
        "chunks": ranks * tensors * per,
        "commit": committed,
        "open_and_find": statistics.median(finding),
        "manifest_bytes": commit.manifest_size,
    }


def markdown(document: dict[str, Any]) -> str:
    """Return the table."""
    lines = [
        heading(document),
        "",
        "| | chunks | commit, s | open and find a tensor, ms | manifest, MB |",
        "|---|---|---|---|---|",
    ]
    for name, found in document["figures"].items():
        cells = (found["commit"], found["open_and_find"] * 1e3, found["manifest_bytes"] / 1e6)
        chunks = found.get("chunks", _CHUNKS)  # which older figures do not tell
        lines.append(f"| {name} | {chunks:,} | {cells[0]:.2f} | {cells[1]:.1f} | {cells[2]:.0f} |")
    return "\n".join(lines) + "\n"


def _sparse(path: Path, size: int) -> None:
    """Make a file of zeros that takes no room: a commit looks at sizes only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def run(
    *,
    json_file: JsonFile = None,
    place: Disk = Path(),
    scale: Annotated[float, typer.Option(min=0.05, max=1, help="Share of the tensors.")] = 1.0,
) -> None:
    """Commit a million chunks on a local tier, open the manifest and find a tensor in it."""
    figures = {}
    for name, (ranks, tensors, per) in SHAPES.items():
        with tempfile.TemporaryDirectory(dir=place, prefix="tierstore-bench-") as folder:
            figures[name] = measure(Path(folder), ranks, int(tensors * scale), per)
    document = {"machine": machine.describe(place), "rounds": 1, "figures": figures}
    if json_file:
        json_file.write_text(json.dumps(document, indent=1))
    print(markdown(document))
