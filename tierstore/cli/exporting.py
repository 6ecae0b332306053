"""`tierstore export`: a step of a run becomes files that other tools read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import click

from tierstore.cli.amounts import some_bytes
from tierstore.cli.conversion import Conversion
from tierstore.cli.options import (
    PLACE,
    argument,
    flag,
    option,
    run_argument,
    takes,
    tier_option,
)
from tierstore.cli.output import count, print_json, say, size
from tierstore.cli.progress import progress
from tierstore.operations.tiers import opened

if TYPE_CHECKING:
    from tierstore.convert.exports import ExportPlan


@dataclass(frozen=True, kw_only=True)
class Options(Conversion):
    """What is exported, and where to."""

    run: Annotated[str, run_argument]
    target: Annotated[str, argument(type=PLACE, help="A path or URL to write to.")]
    step: Annotated[
        int | None, option("--step", "-s", type=int, help="The step; the latest if left out.")
    ] = None
    tier: Annotated[str | None, tier_option] = None
    form: Annotated[
        str, option("--to", metavar="FORMAT", help="hf, torch or dcp; a file's name tells it.")
    ] = ""
    max_shard: Annotated[
        str, option("--max-shard-size", show_default=True, help="Bytes of one file of several.")
    ] = "5GB"
    force: Annotated[bool, flag("--force", help="Replace an earlier export.")] = False


@click.command
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
    from tierstore.registry import path_of

    begun = time.monotonic()
    name = options.form or guess_target(options.target)
    form = find_format(name)
    wishes = Wishes(
        options.selection,
        some_bytes(options.max_shard),
        allow_pickle=options.allow_pickle,
        force=options.force,
    )
    of_file = not form.folder or path_of(options.target).endswith(form.suffixes)
    with (
        opened(options.config, options.tier, patience=None) as tiers,
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

    verb = "would export" if facts["dry_run"] else "exported"
    what = f"{count(facts['tensors'], 'tensor')}, {count(facts['values'], 'value')}"
    say(
        f"{verb} {what}, {size(facts['bytes'])} of {facts['run']} step {facts['step']} to "
        f"{facts['target']} ({facts['format']}, {count(len(facts['files']), 'file')})",
    )
    if facts["not_selected"]:
        say(f"  not selected: {facts['not_selected']}")
    if facts["left_out"]:
        say(f"  left out, no tensors: {some(facts['left_out'], 10)}")
    if note:
        say(f"  {note}")
