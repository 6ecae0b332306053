"""The checkpoints of a run as objects to migrate: launches, data, and the commits behind them.

The newest checkpoint is first. What its manifest says of its files goes along, so that damage at
the source is found as it is read, and an equal file at the destination without reading it here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace

from tierstore.checkpoint.fragment import FileEntry
from tierstore.checkpoint.holdings import Holdings, holdings
from tierstore.checkpoint.store import RunStore, list_runs
from tierstore.errors import (
    AlreadyExistsError,
    AttemptDeletedError,
    CheckpointNotFoundError,
    ConfigError,
    TierstoreError,
)
from tierstore.keys import Attempt
from tierstore.migration.ends import Ends
from tierstore.migration.listing import DELETED, Beside
from tierstore.patterns import matcher
from tierstore.scan import in_order
from tierstore.transfer.engine.entries import Dead, Entry, Item
from tierstore.transfer.engine.records import Version

_RANGE = re.compile(r"(\d*)(?:(:)(\d*))?")


@dataclass(frozen=True, slots=True)
class Steps:
    """Which steps are wanted.

    Attributes:
        ranges: (first, last) of each range, both included; none means all steps.
        latest: the newest on the timeline is wanted.
    """

    ranges: tuple[tuple[int, int], ...] = ()
    latest: bool = False

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Steps:
        """Return what is meant by texts like "100", "100:200", "100:", ":200" and "latest".

        Raises:
            ConfigError: one is something else.
        """
        return cls(
            tuple(_range(text) for text in texts if text != "latest"), latest="latest" in texts
        )

    def choose(self, attempts: Sequence[Attempt], newest: Attempt | None) -> list[Attempt]:
        """Return those of `attempts` that are wanted, the latest step first."""
        everything = not (self.ranges or self.latest)
        return [
            attempt
            for attempt in sorted(attempts, reverse=True)
            if everything
            or (self.latest and attempt == newest)
            or any(first <= attempt.step <= last for first, last in self.ranges)
        ]


def _range(text: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    if not match or text in ("", ":"):
        raise ConfigError(
            f"{text!r} is no step", hint="a step is 100, a range 100:200, or it is 'latest'"
        )
    first = int(match[1] or 0)
    last = int(match[3] or 10**12) if match[2] else first
    if last < first:
        raise ConfigError(f"the range of steps {text!r} is empty")
    return first, last


def checkpoints(ends: Ends, runs: Sequence[str], steps: Steps) -> Iterator[Item]:
    """Yield what makes the wanted checkpoints, each commit behind all that it relies on.

    Args:
        ends: two tiers.
        runs: the names of runs, or patterns of names.
        steps: which of their steps.

    Raises:
        CheckpointNotFoundError: there is no such run, or none of these steps.
        AlreadyExistsError: the destination has another job's run of that name.
        ConfigError: a pattern is malformed.
        TierstoreError: a tier cannot be listed.
    """
    return _of_runs(ends, runs, [matcher(run) for run in runs], steps)


def _of_runs(
    ends: Ends, runs: Sequence[str], wanted: Sequence[Callable[[str], bool]], steps: Steps
) -> Iterator[Item]:
    names = [run for run in list_runs(ends.source) if any(like(run) for like in wanted)]
    if not names:
        raise CheckpointNotFoundError(
            f"{ends.source.url} has no run {' or '.join(runs)}",
            hint=f"`tierstore ls -c {ends.source.url}` lists them",
        )
    chosen = 0
    for name in names:
        run = _Run(ends, name, steps)
        yield from run.entries()
        chosen += run.chosen
    if not chosen:
        raise CheckpointNotFoundError(
            f"{ends.source.url} has no checkpoint of these steps",
            hint=f"`tierstore ls {names[0]} -c {ends.source.url}` lists them",
        )


class _Run:
    """One run at both ends.

    Attributes:
        chosen: how many of its checkpoints are wanted, once they were listed.
    """

    def __init__(self, ends: Ends, name: str, steps: Steps) -> None:
        self._ends, self._steps, self.chosen = ends, steps, 0
        self._source, self._target = RunStore(ends.source, name), RunStore(ends.target, name)
        self._keys = self._source.keys

    def entries(self) -> Iterator[Item]:
        held, there = holdings(self._source), holdings(self._target)
        self._refuse_rival(held, there)
        alive, known = ({this.attempt for this in end.saved} for end in (held, there))
        line = held.timeline
        chosen = self._steps.choose([*alive, *held.deleted], line[0].attempt if line else None)
        self.chosen = len(chosen)
        if not chosen:
            return
        yield from self._listed(self._keys.launches, {})
        for attempt in chosen:
            if attempt in alive:
                yield from self._checkpoint(
                    attempt, known=attempt in known, deleted=attempt in there.deleted
                )
            elif any(True for _ in self._ends.source.list(self._keys.rivals(attempt))):
                yield Dead(self._keys.commit(attempt), self._keys.rivals(attempt))

    def _refuse_rival(self, held: Holdings, there: Holdings) -> None:
        ours = {launch.number: launch for launch in held.launches}
        for launch in sorted(there.launches):
            if launch.number in ours and launch not in held.launches:
                raise AlreadyExistsError(
                    f"run {self._keys.run!r} is another job's there: its launch {launch.number} "
                    "is not the source's",
                    url=self._ends.target.url,
                    key=self._keys.launch(launch.number),
                    hint="migrate to another root",
                )

    def _checkpoint(self, attempt: Attempt, *, known: bool, deleted: bool) -> Iterator[Entry]:
        key, group = self._keys.commit(attempt), self._keys.rivals(attempt)
        info = self._ends.source.stat(key)
        target = Version.of(self._ends.target.stat(key)) if known or deleted else None
        seal = Entry(key, Version.of(info), target, seals=(group, self._keys.launches))
        try:
            if deleted:
                raise AttemptDeletedError(DELETED)
            commit = self._source.read_commit(attempt)
            seal = replace(seal, partial=not commit.whole)
            manifest = self._source.open_manifest(commit).checked(commit)
            files: dict[str, FileEntry | None] = {f.name: f for f in manifest.files}
            root = self._keys.attempt(attempt, commit.nonce).root
            only = None if commit.whole else frozenset(files)  # others change when it is joined
            yield from self._listed(root, files, group, only)
        except TierstoreError as error:
            seal = replace(seal, trouble=str(error))
        else:
            missing = [name for name, file in files.items() if file is not None]
            if missing:
                more = f" and {len(missing) - 1} more" if missing[1:] else ""
                seal = replace(seal, trouble=f"the source has lost {missing[0]}{more}")
        yield seal

    def _listed(
        self,
        root: str,
        files: dict[str, FileEntry | None],
        group: str = "",
        only: Container[str] | None = None,
    ) -> Iterator[Entry]:
        """Yield what is below a prefix, or `only` that; those of `files` there become None."""
        source, target = self._ends.source, self._ends.target
        there = Beside(in_order(target.list(root), target.url))
        for info in in_order(source.list(root), source.url):
            if only is not None and info.key.removeprefix(root) not in only:
                continue
            entry = Entry(info.key, Version.of(info), there.find(info.key), group or root)
            file = files.get(name := info.key.removeprefix(root))
            if file is not None:
                files[name] = None
                entry = _as_manifest_says(entry, file)
            yield entry


def _as_manifest_says(entry: Entry, file: FileEntry) -> Entry:
    if entry.version.size != file.size:
        text = f"it has {entry.version.size} bytes at the source and {file.size} in its manifest"
        return replace(entry, trouble=text)
    return replace(entry, blocks=tuple(int(crc) for crc in file.crcs))
