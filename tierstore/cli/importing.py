"""`tierstore import`: a foreign checkpoint becomes a step of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import click

from tierstore.cli.conversion import Conversion
from tierstore.cli.options import PLACE, argument, flag, option, run_argument, takes
from tierstore.cli.output import count, print_json, say, size
from tierstore.cli.progress import progress
from tierstore.errors import IntegrityError
from tierstore.operations.tiers import opened

if TYPE_CHECKING:
    from tierstore.convert.imports import ImportPlan
    from tierstore.ladder.tiers import OpenTier


@dataclass(frozen=True, kw_only=True)
class Options(Conversion):
    """What is imported, and what it becomes."""

    source: Annotated[str, argument(type=PLACE, help="A path or URL.")]
    run: Annotated[str, run_argument]
    step: Annotated[int, argument(type=click.IntRange(min=0), help="The step it becomes.")]
    tier: Annotated[
        str | None, option("--tier", "-t", help="Only to this tier; to all if left out.")
    ] = None
    form: Annotated[
        str, option("--from", metavar="FORMAT", help="hf, torch or dcp; guessed if left out.")
    ] = ""
    force: Annotated[
        bool, flag("--force", help="Go back: the run's steps from STEP on are abandoned.")
    ] = False


@click.command
@takes(Options)
def run(options: Options) -> None:
    """Import a torch.save file, a DCP folder or Hugging Face safetensors as a step of a run.

    Reads a part at a time, so a model of any size needs little memory, and commits last. Nothing is
    unpickled that could run code, unless --allow-pickle says so.
    """
    from tierstore.convert.formats import find_format, guess_source
    from tierstore.convert.imports import check_step, plan_import, write_import
    from tierstore.convert.place import open_source

    begun = time.monotonic()
    with _foreign(), open_source(options.source) as place:
        name = options.form or guess_source(place)
        with (
            find_format(name).read(place, options.allow_pickle) as incoming,
            opened(options.config, options.tier, patience=None) as tiers,
        ):
            plan = plan_import(incoming, options.selection)
            turn = check_step(tiers, options.run, options.step, force=options.force)
            launch = None
            if not options.dry_run:
                with progress(options.run, plan.file_bytes * len(tiers)) as advance:
                    launch = write_import(plan, tiers, turn, advance).launch
            facts = _facts(plan, options, name, tiers)
    facts |= {"launch": launch, "seconds": round(time.monotonic() - begun, 3)}
    if options.as_json:
        print_json(facts)
    else:
        _print(facts)


@contextmanager
def _foreign() -> Iterator[None]:
    """Say what helps where files that tierstore did not write are damaged."""
    try:
        yield
    except IntegrityError as error:
        error.hint = error.hint or "copy or download it again; its writer's checksums tell more"
        raise


def _facts(plan: ImportPlan, options: Options, name: str, tiers: list[OpenTier]) -> dict[str, Any]:
    return {
        "source": options.source,
        "format": name,
        "run": options.run,
        "step": options.step,
        "tiers": [tier.name for tier in tiers],
        "tensors": plan.tensors,
        "values": len(plan.values),
        "bytes": plan.nbytes,
        "files": len(plan.layout.segments),
        "not_selected": plan.dropped,
        "left_out": list(plan.left_out),
        "pickles": plan.opaque,
        "dry_run": options.dry_run,
    }


def _print(facts: dict[str, Any]) -> None:
    from tierstore.convert.selection import some

    verb = "would import" if facts["dry_run"] else "imported"
    what = f"{count(facts['tensors'], 'tensor')}, {count(facts['values'], 'value')}"
    say(
        f"{verb} {what}, {size(facts['bytes'])} from {facts['source']} ({facts['format']}) as "
        f"{facts['run']} step {facts['step']} on {', '.join(facts['tiers'])}",
    )
    if facts["not_selected"]:
        say(f"  not selected: {facts['not_selected']}")
    if facts["left_out"]:
        say(f"  left out: {some(facts['left_out'], 10)}")
    if facts["pickles"]:
        say(
            f"  kept as pickles, which restoring refuses by default: {some(facts['pickles'])}",
        )
