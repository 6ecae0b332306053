"""Foreign checkpoints become steps of runs, and steps become files that other tools read."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from tierstore.errors import IntegrityError
from tierstore.operations.progress import Progress, unseen
from tierstore.operations.tiers import opened

if TYPE_CHECKING:
    from tierstore.convert.exports import ExportPlan
    from tierstore.convert.imports import ImportPlan
    from tierstore.convert.selection import TensorSelection
    from tierstore.ladder.tiers import OpenTier
    from tierstore.operations.tiers import Ladder

MAX_SHARD = 5 * 10**9
"""Bytes of one file of several, by default."""


class ConvertOptions(TypedDict, total=False):
    """What is taken, under which names, and how. Each key may be left out.

    Attributes:
        tier: on this tier only.
        form: the foreign format: "hf", "torch" or "dcp"; left out or empty, it is guessed.
        only: globs, or names and what is below them: nothing else is taken.
        exclude: the same, of what is not taken.
        strip_prefix: taken off the beginning of names.
        add_prefix: put before every name after that.
        allow_pickle: trust whoever wrote it: unpickling can run any code.
        force: an import goes back: the run's steps from that one on are abandoned; an export
            replaces an earlier one.
        dry_run: find out what would be done, and do nothing.
        progress: begins a bar.
    """

    tier: str | None
    form: str
    only: Sequence[str]
    exclude: Sequence[str]
    strip_prefix: str
    add_prefix: str
    allow_pickle: bool
    force: bool
    dry_run: bool
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """The defaults of `ConvertOptions`."""

    tier: str | None = None
    form: str = ""
    only: Sequence[str] = ()
    exclude: Sequence[str] = ()
    strip_prefix: str = ""
    add_prefix: str = ""
    allow_pickle: bool = False
    force: bool = False
    dry_run: bool = False
    progress: Progress = unseen

    @property
    def selection(self) -> TensorSelection:
        """What is selected."""
        from tierstore.convert.selection import TensorSelection

        only, exclude = tuple(self.only), tuple(self.exclude)
        return TensorSelection(only, exclude, self.strip_prefix, self.add_prefix)


@dataclass(frozen=True, slots=True)
class Imported:
    """What was imported, or would be.

    Attributes:
        source: as it was named.
        form: its format.
        run: the run.
        step: the step that it became.
        tiers: where it is.
        tensors: how many.
        values: how many.
        nbytes: of the tensors.
        files: in how many files they are.
        not_selected: tensors and values that were not.
        left_out: what the source has and a checkpoint does not take.
        pickles: values kept as pickles, which restoring refuses by default.
        dry_run: nothing was done.
        launch: the number of the launch that it became; None if it was a dry run.
        seconds: it took.
    """

    source: str
    form: str
    run: str
    step: int
    tiers: tuple[str, ...]
    tensors: int
    values: int
    nbytes: int
    files: int
    not_selected: int
    left_out: tuple[str, ...]
    pickles: tuple[str, ...]
    dry_run: bool
    launch: int | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "source": self.source,
            "format": self.form,
            "run": self.run,
            "step": self.step,
            "tiers": [*self.tiers],
            "tensors": self.tensors,
            "values": self.values,
            "bytes": self.nbytes,
            "files": self.files,
            "not_selected": self.not_selected,
            "left_out": [*self.left_out],
            "pickles": [*self.pickles],
            "dry_run": self.dry_run,
            "launch": self.launch,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported, or would be.

    Attributes:
        run: the run.
        step: the step.
        launch: the number of its launch.
        target: the URL of what was written.
        form: its format.
        tensors: how many.
        values: how many.
        nbytes: of the tensors.
        files: their names.
        not_selected: tensors and values that were not.
        left_out: values that the format does not take.
        dry_run: nothing was done.
        note: what a reader of the files has to know; empty if there is nothing.
        seconds: it took.
    """

    run: str
    step: int
    launch: int
    target: str
    form: str
    tensors: int
    values: int
    nbytes: int
    files: tuple[str, ...]
    not_selected: int
    left_out: tuple[str, ...]
    dry_run: bool
    note: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "run": self.run,
            "step": self.step,
            "launch": self.launch,
            "target": self.target,
            "format": self.form,
            "tensors": self.tensors,
            "values": self.values,
            "bytes": self.nbytes,
            "files": [*self.files],
            "not_selected": self.not_selected,
            "left_out": [*self.left_out],
            "dry_run": self.dry_run,
            "seconds": round(self.seconds, 3),
        }


def import_step(
    source: str | os.PathLike[str],
    run: str,
    step: int,
    ladder: Ladder = None,
    **options: Unpack[ConvertOptions],
) -> Imported:
    """Import a torch.save file, a DCP folder or Hugging Face safetensors as a step of a run.

    Reads a part at a time, so a model of any size needs little memory, and commits last. Nothing is
    unpickled that could run code, unless `allow_pickle` says so.

    Args:
        source: a path or URL.
        run: the run.
        step: the step that it becomes, 0 or more.
        ladder: a configuration, URLs or open tiers; it is written to all of them.
        options: see `ConvertOptions`.

    Raises:
        AlreadyExistsError: the run has such a step, or a later one, and `force` is not set.
        IntegrityError: a file of the source is damaged.
        UnsafePickleError: it could run code.
        ConfigError: an argument is wrong.
        TierstoreError: the source cannot be read, nothing of it is selected, or a tier fails.
    """
    from tierstore.convert.formats import find_format, guess_source
    from tierstore.convert.imports import check_step, plan_import, write_import
    from tierstore.convert.place import open_source

    terms, begun, text = _Terms(**options), time.monotonic(), os.fspath(source)
    with _foreign(), open_source(text) as place:
        name = terms.form or guess_source(place)
        with (
            find_format(name).read(place, terms.allow_pickle) as incoming,
            opened(ladder, terms.tier, patience=None) as tiers,
        ):
            plan = plan_import(incoming, terms.selection)
            turn = check_step(tiers, run, step, force=terms.force)
            done = _imported(
                plan,
                tiers,
                source=text,
                form=name,
                run=run,
                step=step,
                dry_run=terms.dry_run,
                launch=None,
                seconds=0.0,
            )
            if not terms.dry_run:
                advance = terms.progress(run, plan.file_bytes * len(tiers))
                done = replace(done, launch=write_import(plan, tiers, turn, advance).launch)
    return replace(done, seconds=time.monotonic() - begun)


def export_step(
    run: str,
    target: str | os.PathLike[str],
    step: int | None = None,
    ladder: Ladder = None,
    *,
    max_shard: int = MAX_SHARD,
    **options: Unpack[ConvertOptions],
) -> Exported:
    """Export a step as a torch.save file, a DCP folder or Hugging Face safetensors.

    Reads a part at a time, checked, so a model of any size needs little memory. What makes the
    files a whole is written last.

    Args:
        run: the run.
        target: a path or URL to write to.
        step: the step; the latest if None.
        ladder: a configuration, URLs or open tiers.
        max_shard: bytes of one file of several.
        options: see `ConvertOptions`.

    Raises:
        CheckpointNotFoundError: there is none.
        AlreadyExistsError: the target has an export already, and `force` is not set.
        ConfigError: an argument is wrong.
        TierstoreError: no tier has a good copy, nothing is selected, the format cannot hold it, or
            the target cannot be written.
    """
    from tierstore.convert.exports import Wishes, plan_export, write_export
    from tierstore.convert.formats import find_format, guess_target
    from tierstore.convert.place import open_target
    from tierstore.ladder.find import choose
    from tierstore.registry import path_of

    terms, begun, text = _Terms(**options), time.monotonic(), os.fspath(target)
    name = terms.form or guess_target(text)
    form = find_format(name)
    wishes = Wishes(terms.selection, max_shard, allow_pickle=terms.allow_pickle, force=terms.force)
    of_file = not form.folder or path_of(text).endswith(form.suffixes)
    with (
        opened(ladder, terms.tier, patience=None) as tiers,
        open_target(text, of_file=of_file) as place,
    ):
        plan = plan_export(choose(tiers, run, step=step), place, form, wishes)
        if not terms.dry_run:
            write_export(plan, terms.progress(run, plan.file_bytes))
    return _exported(plan, name, dry_run=terms.dry_run, seconds=time.monotonic() - begun)


@contextmanager
def _foreign() -> Iterator[None]:
    """Say what helps where files that tierstore did not write are damaged."""
    try:
        yield
    except IntegrityError as error:
        error.hint = error.hint or "copy or download it again; its writer's checksums tell more"
        raise


def _imported(plan: ImportPlan, tiers: Sequence[OpenTier], **named: Any) -> Imported:
    return Imported(
        **named,
        tiers=tuple(tier.name for tier in tiers),
        tensors=plan.tensors,
        values=len(plan.values),
        nbytes=plan.nbytes,
        files=len(plan.layout.segments),
        not_selected=plan.dropped,
        left_out=tuple(plan.left_out),
        pickles=tuple(plan.opaque),
    )


def _exported(plan: ExportPlan, form: str, *, dry_run: bool, seconds: float) -> Exported:
    return Exported(
        run=plan.found.run,
        step=plan.found.attempt.step,
        launch=plan.found.attempt.launch,
        target=plan.place.url,
        form=form,
        tensors=len(plan.items),
        values=plan.values,
        nbytes=plan.nbytes,
        files=tuple(file.name for file in plan.files),
        not_selected=plan.dropped,
        left_out=tuple(plan.layout.left_out),
        dry_run=dry_run,
        note=plan.layout.note,
        seconds=seconds,
    )
