"""One save on its way down a ladder: the stall, then each tier from its first byte to its commit.

Memory, disk, a real HDFS and a real MinIO on this machine: the lower tiers write at once as far as
the ladder lets them, and share its processors and its disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks import machine, states, timeline_report
from benchmarks.options import Disk, JsonFile, chosen
from tierstore.config import Config, TierConfig

if TYPE_CHECKING:
    from tierstore_torch import Checkpointer

TIERS = ("memory", "disk", "hdfs", "s3")
_SCENARIO = "300 tensors"


@contextlib.contextmanager
def _ladder(names: list[str], place: Path) -> Iterator[Config]:
    """Yield fresh tiers, those of memory and disk in temporary folders."""
    from tierstore.testing.servers import hdfs, minio

    with contextlib.ExitStack() as stack:

        def folder(at: Path) -> str:
            made = tempfile.TemporaryDirectory(dir=at, prefix="tierstore-bench-")
            return Path(stack.enter_context(made)).as_uri()

        urls = {}
        for name in names:
            if name == "s3":
                s3 = stack.enter_context(minio())
                os.environ.update(s3.environment())
                urls[name] = f"s3://{s3.new_bucket()}/bench"
            elif name == "hdfs":
                server = stack.enter_context(hdfs(settings={"dfs.replication": "1"}))
                os.environ.update(server.environment())
                urls[name] = server.url("/bench")
            else:
                urls[name] = folder(Path("/dev/shm") if name == "memory" else place)
        yield Config(tuple(TierConfig(name, url) for name, url in urls.items()))


def follow(checkpointer: Checkpointer, step: int, state: object, names: list[str]) -> list[Any]:
    """Save once; return the stages as rows of tier, what, begin and end, in seconds."""
    started = time.perf_counter()
    save = checkpointer.save(step, state)
    rows: list[dict[str, Any]] = [{"tier": "", "what": "stall", "begin": 0.0, "end": save.stall}]

    def watch(name: str) -> list[dict[str, Any]]:
        save.wait(name, until="written")
        written = time.perf_counter() - started
        save.wait(name)
        committed = time.perf_counter() - started
        begin = max(0.0, written - save.status()[name].seconds)
        return [
            {"tier": name, "what": "write", "begin": begin, "end": written},
            {"tier": name, "what": "commit", "begin": written, "end": committed},
        ]

    with ThreadPoolExecutor(len(names)) as pool:
        for found in pool.map(watch, names):
            rows += found
    return rows


def _middle(saves: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the medians over saves of every stage's begin and end."""
    return [
        {**rows[0], **{at: median(row[at] for row in rows) for at in ("begin", "end")}}
        for rows in zip(*saves, strict=True)
    ]


def run(
    *,
    json_file: JsonFile = None,
    tier: Annotated[list[str] | None, typer.Option(help="Tier; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Saves that count, after one more.")] = 5,
    place: Disk = Path(),
    scale: Annotated[float, typer.Option(min=0.001, max=1, help="Share of 1 GiB.")] = 0.5,
) -> None:
    """When a save is where: stalled, written and committed on each tier."""
    from tierstore_torch import Checkpointer

    names = chosen(tier, TIERS)
    state = states.make(_SCENARIO, scale=scale)
    with (
        _ladder(names, place) as config,
        Checkpointer(config, run="bench") as checkpointer,
    ):
        saves = []
        for step in range(rounds + 1):
            os.sync()
            saves.append(follow(checkpointer, step, state, names))
    document = {
        "machine": machine.describe(place),
        "rounds": rounds,
        "bytes": states.size(state),
        "timeline": _middle(saves[1:]),
        "saves": saves,
    }
    if json_file:
        json_file.write_text(json.dumps(document, indent=1))
    print(timeline_report.markdown(document))
