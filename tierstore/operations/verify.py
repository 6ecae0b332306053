"""Read everything of a checkpoint again, on every tier, and hold it against its checksums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tierstore.errors import TierstoreError, TransientError
from tierstore.operations.advice import said
from tierstore.operations.copies import Located, TierCopy, locate, open_copy
from tierstore.operations.progress import Progress, unseen
from tierstore.operations.tiers import opened

if TYPE_CHECKING:
    from tierstore.checkpoint.fragment import FileEntry
    from tierstore.checkpoint.manifest import Manifest
    from tierstore.keys import AttemptId, AttemptKeys
    from tierstore.operations.tiers import Ladder


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is bad.

    Attributes:
        tier: on which tier.
        file: its key below the tier's root.
        block: which block; None for a record, which is checked as a whole.
        outcome: what is wrong.
    """

    tier: str
    file: str
    block: int | None
    outcome: str


@dataclass(frozen=True, slots=True)
class CheckedCopy:
    """What was found on one tier.

    Attributes:
        tier: its name.
        files: how many segments were looked at.
        nbytes: what they should have.
        damage: everything that is bad.
        error: why the tier could not be read to its end; empty if it was.
    """

    tier: str
    files: int = 0
    nbytes: int = 0
    damage: tuple[Finding, ...] = ()
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether the copy was read whole, and is what was written."""
        return not self.damage and not self.error

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "good": self.good,
            "files": self.files,
            "bytes": self.nbytes,
            "damage": [asdict(found) for found in self.damage],
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found of one checkpoint.

    Attributes:
        run: the run.
        step: the step saved.
        launch: which launch saved it.
        number: which try.
        copies: what was found on each tier that holds its commit, fastest first.
        unseen: the tiers that could not be listed, each with its error.
    """

    run: str
    step: int
    launch: int
    number: int
    copies: Mapping[str, CheckedCopy]
    unseen: Mapping[str, TierstoreError]

    @property
    def good(self) -> bool:
        """Whether every tier answered, and every copy is what was written."""
        return not self.unseen and all(copy.good for copy in self.copies.values())

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        away = {name: CheckedCopy(name, error=said(error)) for name, error in self.unseen.items()}
        tiers = {name: found.to_json() for name, found in (dict(self.copies) | away).items()}
        numbers = {"step": self.step, "launch": self.launch, "try": self.number}
        return {"run": self.run, **numbers, "tiers": tiers}


def verify(
    ladder: Ladder,
    run: str,
    step: int | None = None,
    *,
    tier: str | None = None,
    progress: Progress = unseen,
    attempt: AttemptId | None = None,
) -> Verified:
    """Read one checkpoint whole on every tier that holds it, and find all damage.

    Looks at the commit, the manifest, the fragments and every block of every segment.

    Args:
        ladder: a configuration, URLs or open tiers.
        run: the run.
        step: the step; the latest if None.
        tier: look at this tier only.
        progress: begins a bar for each tier.
        attempt: this try at the step; the latest if None.

    Raises:
        CheckpointNotFoundError: there is none.
        ConfigError: the configuration is wrong.
        TierstoreError: none is seen, and a tier that may have one cannot be listed.
    """
    with opened(ladder, tier) as tiers:
        located = locate(tiers, run, step, attempt)
    with opened(ladder, tier, patience=None) as tiers:  # they answer: now wait for each block
        located.tiers[:] = [one for one in tiers if one.name in {t.name for t in located.tiers}]
        copies = _verify_all(located, progress)
    this = located.attempt
    return Verified(run, this.step, this.launch, this.number, copies, dict(located.unseen))


@dataclass(slots=True)
class _Notes:
    """What was found so far on one tier; see `CheckedCopy`."""

    tier: str
    files: int = 0
    nbytes: int = 0
    damage: list[Finding] = field(default_factory=list)
    error: str = ""

    def note(self, file: str, error: TierstoreError) -> None:
        """Note what is damaged.

        Raises:
            TransientError: it is not; the tier does not answer.
        """
        if isinstance(error, TransientError):
            raise error
        self.damage.append(Finding(self.tier, file, None, said(error)))

    def checked(self) -> CheckedCopy:
        """Return the result."""
        return CheckedCopy(self.tier, self.files, self.nbytes, tuple(self.damage), self.error)


def _verify_all(located: Located, progress: Progress) -> dict[str, CheckedCopy]:
    copies = [open_copy(located, tier) for tier in located.tiers]
    checked = {}
    for copy in copies:
        manifest = copy.manifest or _stand_in(copy, copies)
        total = sum(file.size for file in manifest.files) if manifest else 0
        advance = progress(copy.tier.name, total)
        checked[copy.tier.name] = _verify(located, copy, manifest, advance)
    return checked


def _stand_in(copy: TierCopy, copies: Sequence[TierCopy]) -> Manifest | None:
    """Return another tier's manifest of the same files, for a tier whose own is damaged."""
    for other in copies:
        if other.commit is None or other.manifest is None:
            continue
        if copy.commit is None or copy.commit.manifest == other.commit.manifest:
            return other.manifest
    return None


def _verify(
    located: Located, copy: TierCopy, manifest: Manifest | None, advance: Callable[[int], None]
) -> CheckedCopy:
    from tierstore.keys import RunKeys

    notes = _Notes(copy.tier.name)
    nonce = copy.commit.nonce if copy.commit else manifest.nonce if manifest else ""
    try:
        for file, error in copy.troubles:
            notes.note(file, error)
        if nonce:
            keys = RunKeys(located.run).attempt(located.attempt, nonce)
            _check_fragments(copy, keys, notes)
            _check_segments(copy, keys, manifest.files if manifest else (), notes, advance)
    except TransientError as error:
        notes.error = said(error)
    if manifest is None:
        lost = "no tier has a good manifest: its segments could not be checked"
        notes.error = notes.error or lost
    return notes.checked()


def _check_fragments(copy: TierCopy, keys: AttemptKeys, notes: _Notes) -> None:
    from tierstore.checkpoint.fragment import read_fragment
    from tierstore.checkpoint.objects import read_objects

    backend = copy.tier.backend
    for info in list(backend.list(keys.fragments)):
        try:
            read_fragment(read_objects(backend, [info])[0], info.key)
        except TierstoreError as error:
            notes.note(info.key, error)


def _check_segments(
    copy: TierCopy,
    keys: AttemptKeys,
    files: Sequence[FileEntry],
    notes: _Notes,
    advance: Callable[[int], None],
) -> None:
    from tierstore.transfer.read import Replica
    from tierstore.transfer.verify import verify_files

    replica = Replica(copy.tier.name, copy.tier.backend, keys)
    for file in files:
        try:  # one by one: a file that cannot be read does not hide the next one's damage
            (check,) = verify_files(replica, [file], progress=advance)
        except TierstoreError as error:
            notes.note(keys.segment(file.name), error)
        else:
            found = [Finding(notes.tier, d.file, d.block, d.outcome) for d in check.damage]
            notes.damage += found
        notes.files += 1
        notes.nbytes += file.size
