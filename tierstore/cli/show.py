"""`tierstore show`: what is in one checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from tierstore.cli.look import Copy, Target, find, open_copy
from tierstore.cli.options import (
    config_option,
    json_option,
    run_argument,
    step_argument,
    tier_option,
)
from tierstore.cli.output import (
    console,
    count,
    of_tier,
    open_tiers,
    print_error,
    print_json,
    print_unseen,
    say,
    size,
    table,
)

if TYPE_CHECKING:
    from tierstore.checkpoint.commit import Commit
    from tierstore.checkpoint.manifest import Manifest


@click.command
@run_argument("run")
@step_argument("step")
@config_option("config")
@tier_option("tier")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--match", "-m", default="", help="Only names like this glob; implies --tensors.")
@json_option("as_json")
def run(
    run: str,
    step: int | None,
    config: tuple[str, ...],
    tier: str | None,
    tensors: bool,
    match: str,
    as_json: bool,
) -> None:
    """Show one checkpoint: its size, ranks, parent, tiers, values and tensors.

    A tier whose copy cannot be looked at is reported, and the exit code is 1.
    """
    from tierstore.patterns import matcher

    like = matcher(match or "*")
    with open_tiers(config, tier) as tiers:
        target = find(tiers, run, step)
        copies = [open_copy(target, one) for one in target.tiers]
        commit, manifest = _best(copies)
        facts = _facts(target, copies, commit)
        if tensors or match:
            facts["tensors"] = _tensors(manifest, like)
        facts["values"] = _values(manifest)
        if as_json:
            print_json(facts)
        else:
            _print(facts)
    print_unseen(target.unseen.items())
    troubles = [(copy, error) for copy in copies for _, error in copy.troubles]
    for copy, error in troubles:
        print_error(of_tier(copy.tier.name, error))
    if match and not facts["tensors"]:
        say(f"no tensor is named like {match!r}", stderr=True)
    if target.unseen or troubles:
        raise click.exceptions.Exit(1)


def _best(copies: list[Copy]) -> tuple[Commit, Manifest]:
    """Return the first whole copy, or the first that can be read at all.

    Raises:
        TierstoreError: none can be read.
    """
    read = [(c.commit, c.manifest) for c in copies if c.commit and c.manifest]
    for commit, manifest in sorted(read, key=lambda pair: not pair[0].whole):
        return commit, manifest
    for copy in copies[:-1]:
        print_error(of_tier(copy.tier.name, copy.troubles[0][1]))
    raise of_tier(copies[-1].tier.name, copies[-1].troubles[0][1])


def _facts(target: Target, copies: list[Copy], commit: Commit) -> dict[str, Any]:
    parent = target.launch.parent if target.launch else None
    held = {copy.tier.name: copy.commit for copy in copies if copy.commit}
    backends = {tier.name: tier.backend for tier in target.tiers}
    return {
        "run": target.run,
        "step": target.attempt.step,
        "launch": target.attempt.launch,
        "try": target.attempt.number,
        "nonce": target.id.nonce,
        "parent": parent and {"launch": parent.launch.number, "step": parent.step},
        "world_size": commit.world_size,
        "bytes": commit.nbytes,
        "tensor_count": commit.tensors,
        "chunks": commit.chunks,
        "files": commit.files,
        "format": commit.format,
        "tiers": {
            name: f"{backends[name].url.rstrip('/')}/{_folder(target, one)}"
            for name, one in held.items()
        },
        "ranks": {name: len(one.ranks) for name, one in held.items()},
    }


def _folder(target: Target, commit: Commit) -> str:
    from tierstore.keys import RunKeys

    return RunKeys(target.run).attempt(target.attempt, commit.nonce).root


def _tensors(manifest: Manifest, like: Callable[[str], bool]) -> list[dict[str, Any]]:
    rows = []
    for name in manifest.names():
        tensor = manifest.find(name) if like(name) else None
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
    parent = facts["parent"]
    say(facts["run"], bold=True, nl=False)
    say(
        f" step {facts['step']}  launch {facts['launch']}, try {facts['try']}, "
        f"{count(facts['world_size'], 'rank')}"
        + (f", goes on from step {parent['step']} of launch {parent['launch']}" if parent else "")
    )
    say(
        f"{size(facts['bytes'])} in {count(facts['tensor_count'], 'tensor')}, "
        f"{count(facts['chunks'], 'chunk')}, {count(facts['files'], 'file')}, "
        f"format {facts['format']}"
    )
    for tier, where in facts["tiers"].items():
        ranks, world = facts["ranks"][tier], facts["world_size"]
        only = f"  ({ranks} of {world} ranks)" if ranks != world else ""
        say(f"  {tier}: {where}{only}")
    for name, value in facts["values"].items():
        text = value if len(value) <= 60 else f"{value[:57]}..."
        say(f"  {name} = {text}")
    if facts.get("tensors"):
        rows = table(("tensor", "dtype", "shape", "chunks"), right=("chunks",))
        for row in facts["tensors"]:
            shape = "x".join(map(str, row["shape"])) or "scalar"
            rows.add_row(row["name"], row["dtype"], shape, str(row["chunks"]))
        console().print(rows)
