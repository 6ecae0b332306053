"""Import: a foreign checkpoint becomes a step of a run, as a job of one rank would have saved it.

Nothing is visible before the commit, which is last. What a killed import leaves is what a killed
save leaves, and is collected in the same way.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tierstore.checkpoint.fragment import FileEntry, Fragment, ValueEntry
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch
from tierstore.convert.files import FilePlan, write_plans
from tierstore.convert.formats import Foreign, Incoming, read_foreign
from tierstore.convert.selection import TensorSelection
from tierstore.errors import AlreadyExistsError, IncompleteError, PlanError
from tierstore.image.layout import SEGMENT_BYTES, ImageLayout, plan_layout
from tierstore.keys import Attempt, AttemptKeys, RunKeys
from tierstore.ladder.claim import claim, launch_after, survey_all
from tierstore.ladder.tiers import OpenTier
from tierstore.text import some
from tierstore.transfer.part import Crcs
from tierstore.transfer.pieces import segment_pieces

_SEGMENTS = 450  # of 1,000: two neighbours fill more than one, or they would be one


@dataclass(frozen=True, slots=True, eq=False)
class ImportPlan:
    """What an import writes.

    Attributes:
        items: the tensors.
        values: what is no tensor.
        layout: where each tensor lies.
        dropped: how many tensors and values were not selected.
        left_out: what the source has and a checkpoint does not take.
    """

    items: Sequence[Foreign]
    values: Sequence[ValueEntry]
    layout: ImageLayout
    dropped: int
    left_out: Sequence[str]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(item.chunk.nbytes for item in self.items)

    @property
    def tensors(self) -> int:
        """How many tensors there are; each may have several chunks."""
        return len({item.chunk.name for item in self.items})

    @property
    def file_bytes(self) -> int:
        """Bytes of the files that hold them, on each tier."""
        return sum(segment.size for segment in self.layout.segments)

    @property
    def opaque(self) -> list[str]:
        """The names of the values that are kept as pickles."""
        return [value.name for value in self.values if value.kind == "opaque"]


def plan_import(incoming: Incoming, selection: TensorSelection) -> ImportPlan:
    """Select, rename and lay out what a source has.

    Raises:
        PlanError: nothing is selected, a tensor cannot be stored, or two things get one name.
    """
    items = []
    for item in incoming.items:
        if selection.takes(item.chunk.name):
            name, path = selection.rename(item.chunk.name, item.chunk.path)
            items.append(replace(item, chunk=replace(item.chunk, name=name, path=path)))
    values = list(selection.values(incoming.values))
    if not items and not values:
        raise PlanError("there is nothing to import", hint=_other_names(incoming))
    named = [value.name for value in values]
    clash = {item.chunk.name for item in items}.intersection(named)
    if clash or len(set(named)) != len(named):
        raise PlanError(
            f"two things are called {min(clash or named)!r}", hint="use --only or --exclude"
        )
    nbytes = sum(item.chunk.nbytes for item in items)
    chunks = [item.chunk for item in items]
    layout = plan_layout(chunks, rank=0, segment_bytes=max(SEGMENT_BYTES, nbytes // _SEGMENTS))
    dropped = len(incoming.items) + len(incoming.values) - len(items) - len(values)
    return ImportPlan(items, values, layout, dropped, incoming.left_out)


def _other_names(incoming: Incoming) -> str:
    names = [item.chunk.name for item in incoming.items] + [v.name for v in incoming.values]
    return f"--only matches none of {some(sorted(names))}" if names else "the source is empty"


@dataclass(frozen=True, slots=True)
class Turn:
    """Where an import comes in a run.

    Attributes:
        run: the run.
        step: the step that it becomes.
        launch: the launch of its own that it is, not claimed yet; it goes on from the newest step
            before it.
    """

    run: str
    step: int
    launch: Launch


def check_step(tiers: Sequence[OpenTier], run: str, step: int, *, force: bool) -> Turn:
    """Return where an import of this step comes in the run.

    Args:
        tiers: where to.
        run: the run.
        step: the step.
        force: go back on the timeline: this step and what is newer is abandoned, not deleted.

    Raises:
        AlreadyExistsError: the run has this step, or newer ones, and `force` is not set.
        StorageError: a tier cannot be listed.
    """
    Attempt(step, 1, 1)
    seen = survey_all(tiers, run)
    line = seen.timeline
    if line and line[0].step >= step and not force:
        newest = line[0].step
        here = any(this.step == step for this in line)
        raise AlreadyExistsError(
            f"run {run!r} has step {step}" if here else f"run {run!r} is at step {newest}",
            hint="import steps in ascending order, or into another run; --force abandons "
            f"what the run has from step {step} on",
        )
    parent = next((this for this in line if this.step < step), None)
    return Turn(run, step, launch_after(seen, secrets.token_hex(8), parent, 1))


def write_import(
    plan: ImportPlan,
    tiers: Sequence[OpenTier],
    turn: Turn,
    progress: Callable[[int], None] | None = None,
) -> Attempt:
    """Write the import to every tier and commit it there.

    The source is read once for each tier; all get the same bytes, or it fails.

    Args:
        plan: what to write.
        tiers: where to.
        turn: what `check_step` returned.
        progress: told the bytes of every part that was sent, from several threads.

    Raises:
        StorageError: a tier refused, or the source cannot be read.
        IntegrityError: the source changed meanwhile.
    """
    stores = [RunStore(tier.backend, turn.run) for tier in tiers]
    launch = claim(stores, turn.launch)
    target = Attempt(turn.step, launch.number, 1)
    keys = RunKeys(turn.run).attempt(target, launch.nonce)
    files = _files(plan, keys)
    crcs: Sequence[Crcs | None] = [None] * len(files)
    for store in stores:
        crcs = write_plans(store.backend, files, read_foreign, crcs=crcs, progress=progress)
        store.write_fragment(_fragment(plan, target, launch, crcs))
        if store.try_commit(target, launch.nonce, (0,)) is None:
            raise IncompleteError(f"{store.backend.url}: the fragment of {target} is gone")
    return target


def _files(plan: ImportPlan, keys: AttemptKeys) -> list[FilePlan[Foreign]]:
    pieces = segment_pieces(plan.layout, plan.items)
    return [
        FilePlan(keys.segment(segment.name), row)
        for segment, row in zip(plan.layout.segments, pieces, strict=True)
    ]


def _fragment(
    plan: ImportPlan, attempt: Attempt, launch: Launch, crcs: Sequence[Crcs | None]
) -> Fragment:
    return Fragment(
        attempt=attempt,
        launch=launch,
        rank=0,
        ranks=(0,),
        world_size=1,
        declared=len(plan.items) + len(plan.values),
        chunks=[item.chunk for item in plan.items],
        placements=plan.layout.placements,
        files=[
            FileEntry(segment.name, segment.size, crc or ())
            for segment, crc in zip(plan.layout.segments, crcs, strict=True)
        ],
        values=plan.values,
    )
