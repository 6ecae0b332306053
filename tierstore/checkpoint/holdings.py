"""What one tier holds of a run: its checkpoints, and the launches that saved them.

Three listings, and of each launch one commit, which says all that orders launches. Claims are read
only of launches that no commit describes: those that saved nothing, or saved in format 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tierstore.backend import ObjectInfo
from tierstore.blocks import Buffer
from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.objects import read_each
from tierstore.checkpoint.store import CommitEntry, RunStore
from tierstore.checkpoint.timeline import Launch, timeline
from tierstore.errors import (
    AttemptDeletedError,
    BlockedError,
    FormatError,
    NewerFormatError,
    TierstoreError,
    TransientError,
)
from tierstore.keys import Attempt, AttemptId, LaunchId
from tierstore.logs import logger
from tierstore.scan import place_check

_log = logger(__name__)
_Folders = Mapping[Attempt, list[AttemptId]]


@dataclass(slots=True)
class Holdings:
    """What a tier, or several, hold of a run.

    Attributes:
        saved: the checkpoints that exist, readable or not.
        whole: those of them whose commit was read and covers all ranks.
        deleted: the attempts that a tombstone stands for.
        launches: what is known of launches, also of those that saved nothing.
        numbers: of launches that left any trace.
    """

    saved: set[AttemptId] = field(default_factory=set)
    whole: set[AttemptId] = field(default_factory=set)
    deleted: set[Attempt] = field(default_factory=set)
    launches: dict[LaunchId, Launch] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)

    @property
    def timeline(self) -> list[AttemptId]:
        """The checkpoints that lead to the newest launch, newest first."""
        return timeline(self.launches, self.saved)

    def add(self, other: Holdings) -> None:
        """Take in what another tier holds."""
        self.saved |= other.saved
        self.whole |= other.whole
        self.deleted |= other.deleted
        self.launches = other.launches | self.launches
        self.numbers |= other.numbers


def holdings(store: RunStore, *, commit_complete: bool = False) -> Holdings:
    """Look at a tier.

    Args:
        store: the run on the tier.
        commit_complete: commit the attempts that all ranks wrote and whose last writer died, if
            they are newer than every commit.

    Raises:
        StorageError: the tier cannot be listed, or something else lies in its place.
    """
    entries = store.entries()
    folders: dict[Attempt, list[AttemptId]] = {}
    for this in store.attempts():
        folders.setdefault(this.attempt, []).append(this)
    if commit_complete and _commit_complete(store, entries, folders):
        entries = store.entries()
    found = Holdings(numbers={attempt.launch for attempt in (*entries, *folders)})
    # Without data there is nothing that a wrong answer could lose.
    found.deleted = {
        attempt
        for attempt, entry in entries.items()
        if not entry.alive and (attempt not in folders or store.deleted(attempt, entry))
    }
    alive = {a: entry for a, entry in entries.items() if a not in found.deleted}
    _attribute(store, alive, folders, found)
    _claimed(store, found)
    if not found.saved:
        _check_empty(store)
    return found


def _check_empty(store: RunStore) -> None:
    """Tell a tier without commits from one where something else lies in place of their folder.

    Raises:
        BlockedError: it is one.
    """
    try:
        place_check(store.backend)(store.keys.commit(Attempt(0, 1, 1)))
    except BlockedError:
        raise
    except TierstoreError:
        pass  # such as one that may only be read


def _attribute(
    store: RunStore,
    entries: Mapping[Attempt, CommitEntry],
    folders: _Folders,
    found: Holdings,
) -> None:
    """Find out which launch saved what, and what its commits say of it.

    An attempt whose only folder is one launch's is that launch's; any other commit is read.
    """
    unclear = [attempt for attempt in entries if len(folders.get(attempt, ())) != 1]
    found.saved = {folders[attempt][0] for attempt in entries.keys() - {*unclear}}
    of_launch: dict[LaunchId, list[Attempt]] = {}
    for this in sorted(found.saved):
        of_launch.setdefault(this.launch, []).append(this.attempt)
    wanted = [*unclear, *(attempts[-1] for attempts in of_launch.values())]
    read = _read(store, entries, wanted)
    for attempt in unclear:
        commit = read[attempt]
        if isinstance(commit, Commit):
            found.saved.add(commit.id)
        elif attempt not in folders and _is_no_commit(commit):
            found.deleted.add(attempt)
            _log.warning("%s, and it has no data: it counts as deleted", commit)
        else:
            found.saved.add(_guess(attempt, folders, found.saved))
    for attempts in of_launch.values():
        while attempts and not isinstance(read[attempts[-1]], Commit):  # its newest is unreadable
            attempts.pop()
            read |= _read(store, entries, attempts[-1:])
    commits = [commit for commit in read.values() if isinstance(commit, Commit)]
    found.whole = {commit.id for commit in commits if commit.whole}
    for commit in commits:
        if (launch := Launch.of(commit)) is not None:
            found.launches[launch.id] = launch


def _is_no_commit(error: TierstoreError) -> bool:
    """Whether a commit that was read so is a tombstone, or damaged, as a tombstone may be."""
    damaged = isinstance(error, FormatError) and not isinstance(error, NewerFormatError)
    return damaged or isinstance(error, AttemptDeletedError)


def _read(
    store: RunStore, entries: Mapping[Attempt, CommitEntry], attempts: Sequence[Attempt]
) -> dict[Attempt, Commit | TierstoreError]:
    """Return the commits of attempts, or of each why it cannot be read."""
    infos = [ObjectInfo(store.keys.commit(a), entries[a].size, 0.0) for a in attempts]

    def parse(data: Buffer, key: str) -> Commit:
        commit = Commit.from_bytes(data, key)
        if key != store.keys.commit(commit.attempt):
            raise FormatError(f"{key} is the commit of {commit.attempt}")
        return commit

    return dict(zip(attempts, read_each(store.backend, infos, parse), strict=True))


def _guess(attempt: Attempt, folders: _Folders, saved: Iterable[AttemptId]) -> AttemptId:
    """Whose a commit is that cannot be read, and that its folders do not tell."""
    likely = [this.launch for this in saved if this.launch.number == attempt.launch]
    ids = folders.get(attempt) or [AttemptId(attempt, launch.nonce) for launch in likely]
    return ids[-1] if ids else AttemptId(attempt, "")


def _claimed(store: RunStore, found: Holdings) -> None:
    """Take from the claims what no commit tells."""
    known = {launch.number for launch in found.launches}
    claims = store.claims()
    found.numbers |= claims.keys()

    def parse(data: Buffer, key: str) -> Launch:
        launch = Launch.from_bytes(data, key)
        if key != store.keys.launch(launch.number):
            raise FormatError(f"{key} is the record of launch {launch.number}")
        return launch

    wanted = [info for number, info in claims.items() if number not in known]
    for launch in read_each(store.backend, wanted, parse):
        if isinstance(launch, TierstoreError):
            _log.warning("%s: %s; nothing that is saved depends on it", store.backend.url, launch)
        else:
            found.launches[launch.id] = launch


def _commit_complete(
    store: RunStore, entries: Mapping[Attempt, CommitEntry], folders: _Folders
) -> bool:
    """Commit the complete attempts that are newer than every commit; False if there are none."""
    newest = max(((a.launch, a.step, a.number) for a in entries), default=(0, 0, 0))
    done = False
    for attempt, ids in folders.items():
        if attempt in entries or (attempt.launch, attempt.step, attempt.number) < newest:
            continue
        for this in ids:
            try:
                if store.try_commit(*this) is not None:
                    done = True
                    _log.warning("step %d was complete and is committed now", attempt.step)
            except AttemptDeletedError:
                done = True
            except TransientError:
                raise
            except TierstoreError as error:
                _log.warning("step %d was never committed: %s", attempt.step, str(error))
    return done
