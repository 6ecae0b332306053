"""Which runs and steps there are, on which tiers, and what is in one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tierstore.errors import CheckpointError, CheckpointNotFoundError, StorageError, TierstoreError
from tierstore.keys import AttemptId
from tierstore.operations.advice import of_tier
from tierstore.operations.copies import Located, TierCopy, locate, open_copy
from tierstore.operations.tiers import opened

if TYPE_CHECKING:
    from tierstore.checkpoint.commit import Commit
    from tierstore.checkpoint.manifest import Manifest
    from tierstore.ladder.survey import Survey
    from tierstore.ladder.tiers import OpenTier
    from tierstore.operations.tiers import Ladder

Unseen = tuple[tuple[str, TierstoreError], ...]
"""The tiers that could not be listed, or not for one run, each with its error."""
RESTORABLE = ("part", "latest", "timeline")
"""The lines of what is neither abandoned nor deleted."""


@dataclass(frozen=True, slots=True)
class ListedStep:
    """One attempt and the tiers that hold its commit.

    Attributes:
        run: the run.
        step: the step saved.
        launch: which launch saved it.
        number: which try.
        nonce: of the launch, which tells it from another of its number; empty if deleted.
        line: "latest", "timeline" (what a restore can choose), "part" (newer, and every tier that
            has it holds some of its ranks), "abandoned" or "deleted".
        tiers: where it is committed.
    """

    run: str
    step: int
    launch: int
    number: int
    nonce: str
    line: str
    tiers: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return it under the names that `Details.to_json` uses."""
        numbers = {"step": self.step, "launch": self.launch, "try": self.number}
        line = {"nonce": self.nonce, "line": self.line, "tiers": [*self.tiers]}
        return {"run": self.run, **numbers, **line}


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of a ladder.

    Attributes:
        names: in order.
        unseen: the tiers that could not be listed: what they hold is missing here.
    """

    names: tuple[str, ...]
    unseen: Unseen = ()


@dataclass(frozen=True, slots=True)
class ListedSteps:
    """The checkpoints of a ladder.

    Attributes:
        steps: run by run, the newest first, then what is abandoned or deleted.
        tiers: the names of all tiers, fastest first.
        unseen: the tiers that could not be listed: what they hold is missing here.
    """

    steps: tuple[ListedStep, ...]
    tiers: tuple[str, ...]
    unseen: Unseen = ()


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor of a checkpoint: its name, type, shape, and in how many chunks it is stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Details:
    """What is in one checkpoint.

    Attributes:
        run: the run.
        step: the step saved.
        launch: which launch saved it.
        number: which try.
        nonce: of the launch.
        parent: number of the launch, and the step, that its launch went on from; None if it began
            anew, or nobody knows.
        world_size: ranks that saved it.
        nbytes: of all tensors.
        tensor_count: how many there are.
        chunks: in how many pieces they are stored.
        files: in how many files.
        format: version of the stored form.
        tiers: the folder's URL on each tier whose commit can be read.
        ranks: how many ranks each of them holds.
        tensors: those that were asked for; None if none were.
        values: plain values as they are stored, in JSON; nothing is unpickled to look at it.
        troubles: (tier, error) of each copy that cannot be read.
        unseen: the tiers that could not be listed, each with its error.
    """

    run: str
    step: int
    launch: int
    number: int
    nonce: str
    parent: tuple[int, int] | None
    world_size: int
    nbytes: int
    tensor_count: int
    chunks: int
    files: int
    format: int
    tiers: Mapping[str, str]
    ranks: Mapping[str, int]
    tensors: tuple[TensorRow, ...] | None
    values: Mapping[str, str]
    troubles: Unseen = ()
    unseen: Unseen = ()

    def to_json(self) -> dict[str, Any]:
        """Return it for programs, without troubles."""
        names = ("run", "step", "launch", "number", "nonce", "parent", "world_size", "nbytes")
        counts = ("tensor_count", "chunks", "files", "format", "tiers", "ranks")
        facts = {_JSON.get(n, n): getattr(self, n) for n in (*names, *counts)}
        facts["parent"] = self.parent and dict(zip(("launch", "step"), self.parent, strict=True))
        if self.tensors is not None:
            facts["tensors"] = [{**asdict(row), "shape": [*row.shape]} for row in self.tensors]
        return {**facts, "values": self.values}


_JSON = {"number": "try", "nbytes": "bytes"}


class NoCopyError(CheckpointError):
    """No tier has a copy that can be read.

    Args:
        run: the run.
        step: the step.
        errors: of each tier that holds its commit, in order.
    """

    def __init__(self, run: str, step: int, errors: Sequence[TierstoreError]) -> None:
        reasons = "; ".join(error.message for error in errors)
        super().__init__(
            f"run {run!r}, step {step} cannot be read: {reasons}", hint=errors[-1].hint
        )
        self.errors = tuple(errors)


def runs(ladder: Ladder = None) -> Runs:
    """List the runs of a ladder.

    Args:
        ladder: a configuration, URLs or open tiers.

    Raises:
        ConfigError: the configuration is wrong.
    """
    with opened(ladder) as tiers:
        return _runs(tiers)


def steps(ladder: Ladder = None, run: str | None = None) -> ListedSteps:
    """List checkpoints, and the tiers that hold them.

    Args:
        ladder: a configuration, URLs or open tiers.
        run: this run only.

    Raises:
        CheckpointNotFoundError: all tiers answered, and none has this run.
        ConfigError: the configuration is wrong.
    """
    with opened(ladder) as tiers:
        known = Runs((run,)) if run else _runs(tiers)
        unseen = [*known.unseen]
        rows = [row for name in known.names for row in _rows(tiers, name, unseen)]
        everyone = tuple(tier.name for tier in tiers)
    if run and not rows and not unseen:
        raise CheckpointNotFoundError(
            f"run {run!r} has no checkpoint on {', '.join(everyone)}",
            hint="`tierstore ls` lists every run",
        )
    return ListedSteps(tuple(rows), everyone, tuple(unseen))


def show(
    ladder: Ladder,
    run: str,
    step: int | None = None,
    *,
    tier: str | None = None,
    tensors: str | None = None,
) -> Details:
    """Look into one checkpoint.

    Args:
        ladder: a configuration, URLs or open tiers.
        run: the run.
        step: the step; the latest if None.
        tier: look at this tier only.
        tensors: a glob: list the tensors with such names.

    Raises:
        CheckpointNotFoundError: there is none.
        NoCopyError: no tier has a copy that can be read.
        ConfigError: the configuration or the glob is wrong.
        TierstoreError: none is seen, and a tier that may have one cannot be listed.
    """
    from tierstore.patterns import matcher

    like = None if tensors is None else matcher(tensors)
    with opened(ladder, tier) as tiers:
        located = locate(tiers, run, step)
        copies = [open_copy(located, one) for one in located.tiers]
        return _details(located, copies, like)


def _runs(tiers: Sequence[OpenTier]) -> Runs:
    from tierstore.checkpoint.store import list_runs

    names: set[str] = set()
    unseen = []
    for tier in tiers:
        try:
            names.update(list_runs(tier.backend))
        except TierstoreError as error:
            unseen.append((tier.name, error))
    return Runs(tuple(sorted(names)), tuple(unseen))


def _rows(
    tiers: Sequence[OpenTier], run: str, unseen: list[tuple[str, TierstoreError]]
) -> Iterator[ListedStep]:
    from tierstore.ladder.survey import survey

    away = [name for name, error in unseen if isinstance(error, StorageError)]
    seen = survey([tier for tier in tiers if tier.name not in away], run)
    unseen += seen.errors.items()
    saved, parts = seen.everything.saved, _parts(tiers, run, seen)
    line = seen.line(without=parts)
    deleted = seen.everything.deleted - {this.attempt for this in saved}
    others = saved - {*line, *parts} | {AttemptId(attempt, "") for attempt in deleted}
    kinds = dict.fromkeys(saved, "abandoned") | dict.fromkeys(line, "timeline")
    kinds |= dict.fromkeys(parts, "part") | dict.fromkeys(line[:1], "latest")
    for this in [*parts, *line, *sorted(others, reverse=True)]:
        kind, holders = kinds.get(this, "deleted"), tuple(seen.holders(this))
        step, launch, number = this.step, this.attempt.launch, this.attempt.number
        yield ListedStep(run, step, launch, number, this.nonce, kind, holders)


def _parts(tiers: Sequence[OpenTier], run: str, seen: Survey) -> list[AttemptId]:
    """Return what is newer than all that a restore can take, and no checkpoint: some ranks only."""
    parts: list[AttemptId] = []
    while (line := seen.line(without=parts)) and _is_part(tiers, run, seen, line[0]):
        parts.append(line[0])
    return parts


def _is_part(tiers: Sequence[OpenTier], run: str, seen: Survey, this: AttemptId) -> bool:
    from tierstore.checkpoint.store import RunStore

    if this in seen.everything.whole:
        return False
    holders = seen.holders(this)
    try:
        return not any(
            RunStore(tier.backend, run).read_commit(this.attempt).whole
            for tier in tiers
            if tier.name in holders
        )
    except TierstoreError:
        return False  # a restore says what is wrong with it


def _best(located: Located, copies: list[TierCopy]) -> tuple[Commit, Manifest]:
    """Return the first whole copy, or the first that can be read at all.

    Raises:
        NoCopyError: none can be read.
    """
    read = [(c.commit, c.manifest) for c in copies if c.commit and c.manifest]
    for commit, manifest in sorted(read, key=lambda pair: not pair[0].whole):
        return commit, manifest
    errors = [of_tier(copy.tier.name, copy.troubles[0][1]) for copy in copies]
    raise NoCopyError(located.run, located.attempt.step, errors)


def _details(
    located: Located, copies: list[TierCopy], like: Callable[[str], bool] | None
) -> Details:
    commit, manifest = _best(located, copies)
    parent = located.launch.parent if located.launch else None
    held = {copy.tier.name: copy.commit for copy in copies if copy.commit}
    backends = {tier.name: tier.backend for tier in located.tiers}
    return Details(
        run=located.run,
        step=located.attempt.step,
        launch=located.attempt.launch,
        number=located.attempt.number,
        nonce=located.id.nonce,
        parent=parent and (parent.launch.number, parent.step),
        world_size=commit.world_size,
        nbytes=commit.nbytes,
        tensor_count=commit.tensors,
        chunks=commit.chunks,
        files=commit.files,
        format=commit.format,
        tiers={
            name: f"{backends[name].url.rstrip('/')}/{_folder(located, one)}"
            for name, one in held.items()
        },
        ranks={name: len(one.ranks) for name, one in held.items()},
        tensors=None if like is None else tuple(_tensors(manifest, like)),
        values=_values(manifest),
        troubles=tuple((copy.tier.name, error) for copy in copies for _, error in copy.troubles),
        unseen=tuple(located.unseen.items()),
    )


def _folder(located: Located, commit: Commit) -> str:
    from tierstore.keys import RunKeys

    return RunKeys(located.run).attempt(located.attempt, commit.nonce).root


def _tensors(manifest: Manifest, like: Callable[[str], bool]) -> Iterator[TensorRow]:
    for name in manifest.names():
        tensor = manifest.find(name) if like(name) else None
        if tensor is not None:
            shape = tuple(tensor.shape)
            yield TensorRow(name, tensor.dtype, shape, math.prod(shape), len(tensor.chunks))


def _values(manifest: Manifest) -> dict[str, str]:
    return {
        value.name: value.data.decode()
        if value.kind == "json"
        else f"<opaque, {len(value.data)} bytes>"
        for value in manifest.values()
    }
