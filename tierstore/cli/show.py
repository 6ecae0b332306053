"""`tierstore show`: what is in one checkpoint."""

from __future__ import annotations

import fnmatch
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierstore.cli.output import (
    ConfigOption,
    JsonOption,
    RunArgument,
    StepArgument,
    TierOption,
    console,
    open_tiers,
    print_json,
    size,
)

if TYPE_CHECKING:
    from tierstore.checkpoint.manifest import Manifest
    from tierstore.ladder.find import Found


def run(
    run: RunArgument,
    step: StepArgument = None,
    config: ConfigOption = None,
    tier: TierOption = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    match: Annotated[
        str, typer.Option("--match", "-m", help="Only names like this glob; implies --tensors.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Show one checkpoint: its size, ranks, parent, tiers, values and tensors."""
    from tierstore.ladder.find import choose

    with open_tiers(config, tier) as tiers:
        found = choose(tiers, run, step=step)
        facts = _facts(found)
        if tensors or match:
            facts["tensors"] = _tensors(found.manifest, match or "*")
        facts["values"] = _values(found.manifest)
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def _facts(found: Found) -> dict[str, Any]:
    commit = found.commit
    return {
        "run": found.run,
        "step": commit.attempt.step,
        "launch": commit.attempt.launch,
        "try": commit.attempt.number,
        "world_size": commit.world_size,
        "bytes": commit.nbytes,
        "tensor_count": commit.tensors,
        "chunks": commit.chunks,
        "files": commit.files,
        "format": commit.format,
        "tiers": {r.tier: f"{r.backend.url.rstrip('/')}/{r.keys.root}" for r in found.replicas},
    }


def _tensors(manifest: Manifest, pattern: str) -> list[dict[str, Any]]:
    rows = []
    for name in manifest.names():
        tensor = manifest.find(name) if fnmatch.fnmatchcase(name, pattern) else None
        if tensor is not None:
            rows.append(
                {
                    "name": name,
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                    "elements": math.prod(tensor.shape),
                    "chunks": len(tensor.chunks),
                }
            )
    return rows


def _values(manifest: Manifest) -> dict[str, str]:
    """Plain values as they are stored; nothing is unpickled to look at it."""
    return {
        value.name: value.data.decode()
        if value.kind == "json"
        else f"<opaque, {len(value.data)} bytes>"
        for value in manifest.values()
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    out = console()
    out.print(f"[bold]{facts['run']}[/] step {facts['step']}", end="")
    out.print(f"  launch {facts['launch']}, try {facts['try']}, {facts['world_size']} ranks")
    out.print(
        f"{size(facts['bytes'])} in {facts['tensor_count']} tensors, {facts['chunks']} chunks, "
        f"{facts['files']} files, format {facts['format']}"
    )
    for tier, where in facts["tiers"].items():
        out.print(f"  {tier}: {where}", soft_wrap=True, markup=False)
    for name, value in facts["values"].items():
        text = value if len(value) <= 60 else f"{value[:57]}..."
        out.print(f"  {name} = {text}", soft_wrap=True, markup=False)
    if "tensors" in facts:
        table = Table(box=None, pad_edge=False)
        for column in ("tensor", "dtype", "shape", "chunks"):
            table.add_column(column, justify="right" if column == "chunks" else "left")
        for row in facts["tensors"]:
            shape = "x".join(map(str, row["shape"])) or "scalar"
            table.add_row(row["name"], row["dtype"], shape, str(row["chunks"]))
        out.print(table)
