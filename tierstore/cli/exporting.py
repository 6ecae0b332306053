"""`tierstore export`: a step of a run becomes files that other tools read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierstore.cli.amounts import some_bytes
from tierstore.cli.conversion import Conversion
from tierstore.cli.options import takes
from tierstore.cli.output import (
    RunArgument,
    TierOption,
    console,
    count,
    open_tiers,
    print_json,
    size,
)
from tierstore.cli.progress import progress

if TYPE_CHECKING:
    from tierstore.convert.exports import ExportPlan


@dataclass(frozen=True, kw_only=True)
class Options(Conversion):
    """What is exported, and where to."""

    run: RunArgument
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A path or URL to write to.")]
    step: Annotated[
        int | None, typer.Option("--step", "-s", help="The step; the latest if left out.")
    ] = None
    tier: TierOption = None
    form: Annotated[
        str,
        typer.Option("--to", metavar="FORMAT", help="hf, torch or dcp; a file's name tells it."),
    ] = ""
    max_shard: Annotated[
        str, typer.Option("--max-shard-size", help="Bytes of one file of several.")
    ] = "5GB"
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False


@takes(Options)
def run(options: Options) -> None:
    """Export a step as a torch.save file, a DCP folder or Hugging Face safetensors.

    Reads a part at a time, checked, so a model of any size needs little memory. What makes the
    files a whole is written last.
    """
    from tierstore.convert.exports import Wishes, plan_export, write_export
    from tierstore.convert.formats import find_format, guess_target
    from tierstore.convert.place import open_target
    from tierstore.ladder.find import choose

    begun = time.monotonic()
    name = options.form or guess_target(options.target)
    form = find_format(name)
    wishes = Wishes(
        options.selection,
        some_bytes(options.max_shard),
        allow_pickle=options.allow_pickle,
        force=options.force,
    )
    of_file = not form.folder or options.target.partition("?")[0].endswith(form.suffixes)
    with (
        open_tiers(options.config, options.tier, patience=None) as tiers,
        open_target(options.target, of_file=of_file) as place,
    ):
        found = choose(tiers, options.run, step=options.step)
        plan = plan_export(found, place, form, wishes)
        if not options.dry_run:
            with progress(options.run, plan.file_bytes) as advance:
                write_export(plan, advance)
    facts = _facts(plan, options, name) | {"seconds": round(time.monotonic() - begun, 3)}
    if options.as_json:
        print_json(facts)
    else:
        _print(facts, plan.layout.note)


def _facts(plan: ExportPlan, options: Options, name: str) -> dict[str, Any]:
    attempt = plan.found.attempt
    return {
        "run": options.run,
        "step": attempt.step,
        "launch": attempt.launch,
        "target": plan.place.url,
        "format": name,
        "tensors": len(plan.items),
        "values": plan.values,
        "bytes": plan.nbytes,
        "files": [file.name for file in plan.files],
        "not_selected": plan.dropped,
        "left_out": list(plan.layout.left_out),
        "dry_run": options.dry_run,
    }


def _print(facts: dict[str, Any], note: str) -> None:
    from tierstore.convert.selection import some

    out = console()
    verb = "would export" if facts["dry_run"] else "exported"
    what = f"{count(facts['tensors'], 'tensor')}, {count(facts['values'], 'value')}"
    out.print(
        f"{verb} {what}, {size(facts['bytes'])} of {facts['run']} step {facts['step']} to "
        f"{facts['target']} ({facts['format']}, {count(len(facts['files']), 'file')})",
        soft_wrap=True,
    )
    if facts["not_selected"]:
        out.print(f"  not selected: {facts['not_selected']}")
    if facts["left_out"]:
        out.print(f"  left out, no tensors: {some(facts['left_out'], 10)}", soft_wrap=True)
    if note:
        out.print(f"  {note}", soft_wrap=True)
