"""`tierstore verify`: read every block again and hold it against its checksum."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

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
from tierstore.errors import IntegrityError, TierstoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tierstore.ladder.find import Found
    from tierstore.transfer.read import Replica


def run(
    run: RunArgument,
    step: StepArgument = None,
    config: ConfigOption = None,
    tier: TierOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read one checkpoint whole on every tier that holds it and report all damage.

    Exits with 1 if any block is damaged or a tier's copy cannot be read.
    """
    from tierstore.ladder.find import choose

    with open_tiers(config, tier) as tiers:
        found = choose(tiers, run, step=step)
        results = _verify_all(found)
    problems = list(found.passed_over)
    if as_json:
        print_json({"run": run, "step": found.attempt.step, "tiers": results, "problems": problems})
    else:
        _print(run, found, results)
    if problems or any(result["damage"] or result["error"] for result in results.values()):
        raise typer.Exit(1)


def _verify_all(found: Found) -> dict[str, dict[str, Any]]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    total = sum(file.size for file in found.manifest.files)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    screen = console(stderr=True)
    results = {}
    with Progress(
        "{task.description}", *columns, console=screen, disable=not screen.is_terminal
    ) as bar:
        for replica in found.replicas:
            task = bar.add_task(replica.tier, total=total)
            results[replica.tier] = _verify(found, replica, partial(bar.advance, task))
    return results


def _verify(found: Found, replica: Replica, progress: Callable[[int], None]) -> dict[str, Any]:
    from tierstore.checkpoint.store import RunStore
    from tierstore.transfer.read import Damage
    from tierstore.transfer.verify import verify_files

    result: dict[str, Any] = {"files": 0, "bytes": 0, "damage": [], "error": ""}
    try:
        try:
            RunStore(replica.backend, found.run).open_manifest(found.commit)
        except IntegrityError as error:
            key = replica.keys.manifest(found.commit.manifest_crc32c)
            result["damage"].append(asdict(Damage(replica.tier, key, 0, str(error))))
        for check in verify_files(replica, found.manifest.files, progress=progress):
            result["files"] += 1
            result["bytes"] += check.size
            result["damage"] += [asdict(damage) for damage in check.damage]
    except TierstoreError as error:
        result["error"] = str(error)
    return result


def _print(run: str, found: Found, results: dict[str, dict[str, Any]]) -> None:
    out = console()
    for name, result in results.items():
        good = not (result["damage"] or result["error"])
        state = "[green]good[/]" if good else "[bold red]damaged[/]"
        out.print(f"{run} step {found.attempt.step} on {name}: {state}", end="")
        out.print(f", {result['files']} files, {size(result['bytes'])} read")
        for damage in result["damage"]:
            text = f"  {damage['file']} block {damage['block']}: {damage['outcome']}"
            out.print(text, markup=False, soft_wrap=True)
        if result["error"]:
            out.print(f"  {result['error']}", markup=False, soft_wrap=True)
    for problem in found.passed_over:
        out.print(f"  {problem}", markup=False, soft_wrap=True)
