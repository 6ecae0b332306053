"""`tierstore verify`: read everything again and hold it against its checksum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
    count,
    open_tiers,
    print_json,
    print_unseen,
    said,
    say,
    size,
)
from tierstore.cli.progress import bars
from tierstore.errors import TierstoreError, TransientError

if TYPE_CHECKING:
    from tierstore.checkpoint.fragment import FileEntry
    from tierstore.checkpoint.manifest import Manifest
    from tierstore.keys import AttemptKeys

_SHOWN = 8
"""Damaged blocks of one file that are listed for people; programs get all."""


@dataclass(slots=True)
class Result:
    """What was found on one tier.

    Attributes:
        tier: its name.
        files: how many segments were looked at.
        bytes: what they should have.
        damage: {"tier", "file", "block", "outcome"} of everything that is bad; a record, which
            is checked as a whole, has None for a block.
        error: why the tier could not be read to its end; empty if it was.
    """

    tier: str
    files: int = 0
    bytes: int = 0
    damage: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether the copy was read whole, and is what was written."""
        return not self.damage and not self.error

    def note(self, file: str, outcome: str, block: int | None = None) -> None:
        """Add one damage."""
        where = {"tier": self.tier, "file": file, "block": block}
        self.damage.append({**where, "outcome": outcome})

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "good": self.good,
            "files": self.files,
            "bytes": self.bytes,
            "damage": self.damage,
            "error": self.error,
        }


@click.command
@run_argument("run")
@step_argument("step")
@config_option("config")
@tier_option("tier")
@json_option("as_json")
def run(
    run: str, step: int | None, config: tuple[str, ...], tier: str | None, as_json: bool
) -> None:
    """Read one checkpoint whole on every tier that holds it and report all damage.

    Looks at the commit, the manifest, the fragments and every block of every segment. Exits with 1
    if anything is damaged or a tier cannot be read.
    """
    with open_tiers(config, tier) as tiers:
        target = find(tiers, run, step)
    with open_tiers(config, tier, patience=None) as tiers:  # they answer: now wait for each block
        target.tiers[:] = [one for one in tiers if one.name in {t.name for t in target.tiers}]
        results = _verify_all(target)
    attempt = target.attempt
    if as_json:
        unseen = {name: Result(name, error=said(error)) for name, error in target.unseen.items()}
        tiers_json = {name: found.to_json() for name, found in (results | unseen).items()}
        numbers = {"step": attempt.step, "launch": attempt.launch, "try": attempt.number}
        print_json({"run": run, **numbers, "tiers": tiers_json})
    else:
        _print(target, results)
    print_unseen(target.unseen.items())
    if target.unseen or not all(result.good for result in results.values()):
        raise click.exceptions.Exit(1)


def _verify_all(target: Target) -> dict[str, Result]:
    copies = [open_copy(target, tier) for tier in target.tiers]
    results = {}
    with bars() as bar:
        for copy in copies:
            manifest = copy.manifest or _stand_in(copy, copies)
            total = sum(file.size for file in manifest.files) if manifest else 0
            advance = bar(copy.tier.name, total)
            results[copy.tier.name] = _verify(target, copy, manifest, advance)
    return results


def _stand_in(copy: Copy, copies: Sequence[Copy]) -> Manifest | None:
    """Return another tier's manifest of the same files, for a tier whose own is damaged."""
    for other in copies:
        if other.commit is None or other.manifest is None:
            continue
        if copy.commit is None or copy.commit.manifest == other.commit.manifest:
            return other.manifest
    return None


def _verify(
    target: Target, copy: Copy, manifest: Manifest | None, progress: Callable[[int], None]
) -> Result:
    from tierstore.keys import RunKeys

    result = Result(copy.tier.name)
    nonce = copy.commit.nonce if copy.commit else manifest.nonce if manifest else ""
    try:
        for file, error in copy.troubles:
            _note(result, file, error)
        if nonce:
            keys = RunKeys(target.run).attempt(target.attempt, nonce)
            _check_fragments(copy, keys, result)
            _check_segments(copy, keys, manifest.files if manifest else (), result, progress)
    except TransientError as error:
        result.error = said(error)
    if manifest is None:
        lost = "no tier has a good manifest: its segments could not be checked"
        result.error = result.error or lost
    return result


def _note(result: Result, file: str, error: TierstoreError) -> None:
    """Note what is damaged.

    Raises:
        TransientError: it is not; the tier does not answer.
    """
    if isinstance(error, TransientError):
        raise error
    result.note(file, said(error))


def _check_fragments(copy: Copy, keys: AttemptKeys, result: Result) -> None:
    from tierstore.checkpoint.fragment import read_fragment
    from tierstore.checkpoint.objects import read_objects

    backend = copy.tier.backend
    for info in list(backend.list(keys.fragments)):
        try:
            read_fragment(read_objects(backend, [info])[0], info.key)
        except TierstoreError as error:
            _note(result, info.key, error)


def _check_segments(
    copy: Copy,
    keys: AttemptKeys,
    files: Sequence[FileEntry],
    result: Result,
    progress: Callable[[int], None],
) -> None:
    from tierstore.transfer.read import Replica
    from tierstore.transfer.verify import verify_files

    replica = Replica(copy.tier.name, copy.tier.backend, keys)
    for file in files:
        try:  # one by one: a file that cannot be read does not hide the next one's damage
            (check,) = verify_files(replica, [file], progress=progress)
        except TierstoreError as error:
            _note(result, keys.segment(file.name), error)
        else:
            for damage in check.damage:
                result.note(damage.file, damage.outcome, damage.block)
        result.files += 1
        result.bytes += file.size


def _print(target: Target, results: dict[str, Result]) -> None:
    for name, result in results.items():
        say(f"{target.run} step {target.attempt.step} on {name}: ", nl=False)
        state = "good" if result.good else "damaged" if result.damage else "unreadable"
        say(state, fg="green" if result.good else "red", bold=not result.good, nl=False)
        say(f", {count(result.files, 'file')}, {size(result.bytes)} read")
        for line in _lines(result):
            say(f"  {line}")
        if result.error:
            say(f"  {result.error}")


def _lines(result: Result) -> Iterator[str]:
    shown: dict[str, int] = {}
    for damage in result.damage:
        file, block = damage["file"], damage["block"]
        shown[file] = shown.get(file, 0) + 1
        if shown[file] <= _SHOWN:
            yield f"{file}{'' if block is None else f' block {block}'}: {damage['outcome']}"
    for file, blocks in shown.items():
        if blocks > _SHOWN:
            yield f"{file}: and {count(blocks - _SHOWN, 'more block')}"
