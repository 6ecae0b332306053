"""What a mirror has and its original has not, and its removal: commits, grace, all the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from tierstore.backend import ObjectInfo
from tierstore.checkpoint import GRACE
from tierstore.checkpoint.delete import Deletion
from tierstore.errors import BlockedError, NotFoundError, StorageError
from tierstore.keys import RunPart, parse_part
from tierstore.migration.ends import Ends
from tierstore.migration.listing import Beside, at_source, at_target, is_dead, refused
from tierstore.patterns import Selection
from tierstore.scan import Kind, LeftOut, Ways, key_check, scan

_BATCH = 1000  # what S3 deletes by one request


@dataclass(frozen=True, slots=True)
class Extra:
    """How much a mirror has too much.

    Attributes:
        objects: that would be removed.
        nbytes: their bytes.
        total: objects that the mirror has of what is selected.
    """

    objects: int
    nbytes: int
    total: int


class Mirror:
    """Compares the destination with the source, each time anew.

    A commit that the source has no more becomes a tombstone, and its data goes `grace` seconds
    later, by this call or, if it is killed, by the next. Launches and tombstones stay, and so does
    all that a commit relies on which stays.

    Args:
        ends: the original and the mirror.
        selection: what of them; all else is left alone.
        follow: as in `objects`.
        grace: seconds that readers of a deleted checkpoint have.
        sleep: how to wait for them.
    """

    def __init__(
        self,
        ends: Ends,
        selection: Selection,
        *,
        follow: bool = True,
        grace: float = GRACE,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ends, self._selection, self._follow = ends, selection, follow
        self._deletion = Deletion(ends.target, grace=grace, sleep=sleep)
        self._commits = 0  # that were counted and are to become tombstones

    def extra(self, coming: int = 0) -> Extra:
        """Count what is to be removed.

        Args:
            coming: objects that it will have besides, once all has arrived.

        Raises:
            StorageError: an end cannot be listed.
        """
        objects, nbytes, total, self._commits = 0, 0, coming, 0
        for held in self._compared():
            total += 1
            objects += held.gone
            nbytes += held.gone * held.size
            self._commits += held.gone and held.is_commit
            self._note(held)
        return Extra(objects, nbytes, total)

    def check_places(self, blocked: Collection[str]) -> None:
        """Look whether all that keeps keys from their places is to be removed.

        Args:
            blocked: keys that have no place.

        Raises:
            BlockedError: something of it stays: it is excluded, or no object.
            StorageError: an end cannot be listed.
        """
        meant, target = in_the_way(blocked), self._ends.target
        gone = {
            held.key
            for held in self._compared()
            if held.gone and not held.is_commit and meant(held.key)
        }
        for found in scan(target, Ways(follow=False)):
            if meant(found.key) and found.key not in gone:
                name = found.name if isinstance(found, LeftOut) else found.key
                key = next(each for each in blocked if in_the_way([each])(found.key))
                raise BlockedError(
                    f"failed: {key}: {target.url}/{name} is in its place and stays, so nothing was "
                    "deleted",
                    hint="it is excluded, part of a run, or no file that can be named: move it "
                    "yourself",
                )

    def remove(self, most: int, blocked: Collection[str] = ()) -> Iterator[list[str]]:
        """Remove what was counted; yield the keys of each batch that is gone, commits first.

        Args:
            most: objects that were counted; the source may be away by now, and all seem too much.
            blocked: only what keeps these keys from their places; none means all.

        Raises:
            StorageError: something cannot be removed, or there is more of it; the rest stays.
        """
        if self._commits:
            dead = (held for held in self._compared() if held.gone and held.is_commit)
            near = (held for held in dead if not blocked or _meets(held.group, blocked))
            for batch in self._batches(near, min(self._commits, most)):
                for held in batch:
                    self._deletion.bury(held.key)
                self._commits -= len(batch)
                most -= len(batch)
                yield [held.key for held in batch]
        self._deletion.wait()
        meant = in_the_way(blocked) if blocked else lambda _key: True
        # What a living commit relies on stays, even if the source has lost that one just now.
        rest = (held for held in self._compared() if held.gone and not held.lives)
        for batch in self._batches((held for held in rest if meant(held.key)), most):
            for held in batch:
                self._note(held)
            self._deletion.remove([held.key for held in batch])
            yield [held.key for held in batch]

    def _batches(self, gone: Iterator[_Held], most: int) -> Iterator[list[_Held]]:
        while batch := list(islice(gone, _BATCH)):
            most -= len(batch)
            if most < 0:
                message = "more is missing at SRC than was counted a moment ago; the rest stays"
                url = self._ends.source.url
                raise StorageError(
                    message, url=url, hint="check that SRC is complete, then try again"
                )
            yield batch

    def _note(self, held: _Held) -> None:
        """See that data which is to go is not removed before its tombstone is old enough."""
        if held.gone and held.commit and not held.lives:
            self._deletion.found(held.commit.key, held.commit.mtime)

    def _compared(self) -> Iterator[_Held]:
        source = at_source(self._ends, self._selection, follow=self._follow)
        there = Beside(source)
        commits: dict[str, _Commit | None] = {}
        for info in self._held():
            original, part = there.find(info.key), parse_part(info.key)
            gone = original is None and not there.hides(info.key)
            if part is None or part.kind == "launches":
                yield _Held(info, gone and part is None)
                continue
            if part.kind == "commits":
                lives = not is_dead(self._ends.target, info.key, info.size)
                wanted = there.hides(info.key) or (
                    original and not is_dead(self._ends.source, info.key, original.size)
                )
                commits[part.group] = _Commit(info.key, info.mtime, lives, bool(wanted))
                gone = lives and not wanted
            else:
                if gone and part.group not in commits:
                    commits[part.group] = self._excluded(part)
                commit = commits.get(part.group)
                gone = gone and not (commit and commit.lives and commit.wanted)
            yield _Held(info, gone, commits.get(part.group), part.group)

    def _excluded(self, part: RunPart) -> _Commit | None:
        """What there is of the commit of some data, if it was not listed: what it is not asked."""
        target = self._ends.target
        try:
            info = target.stat(part.commit)
        except NotFoundError:
            return None
        lives = not is_dead(target, info.key, info.size)
        return _Commit(info.key, info.mtime, lives, wanted=True)

    def _held(self) -> Iterator[ObjectInfo]:
        """Yield what the mirror has of what is selected; what lies behind a link is not its own."""
        target = self._ends.target
        check = key_check(target)  # what cannot be named cannot be removed
        for found in at_target(self._ends, self._selection, follow=False):
            if isinstance(found, ObjectInfo):
                if self._selection.wants(found.key) and not refused(found, check):
                    yield found
            elif found.kind is Kind.UNREADABLE:
                raise StorageError(found.why, url=target.url, key=found.name)


def in_the_way(blocked: Collection[str]) -> Callable[[str], bool]:
    """Return what tells whether a key keeps another one from its place.

    On a disk that is a file where a folder has to be, and all in a folder where a file has to be.

    Args:
        blocked: keys that have no place.
    """
    files = {folder for key in blocked for folder in _above(key)}
    return lambda key: key in files or any(above in blocked for above in _above(key))


def _meets(group: str, blocked: Collection[str]) -> bool:
    """Whether data of a checkpoint may keep one of these keys from its place."""
    return any(key.startswith(group) or group.startswith(f"{key}/") for key in blocked)


def _above(key: str) -> Iterator[str]:
    while folder := key.rpartition("/")[0]:
        yield folder
        key = folder


class _Commit(NamedTuple):
    """What the mirror has at a commit's key.

    Attributes:
        key: of it.
        mtime: when it was written.
        lives: it is no tombstone.
        wanted: the source has it, or it is excluded.
    """

    key: str
    mtime: float
    lives: bool
    wanted: bool


class _Held(NamedTuple):
    """An object that the mirror has.

    Attributes:
        info: of it.
        gone: it is to go, or a commit that is to become a tombstone.
        commit: the one that it is or is data of, if there is one.
        group: the prefix of the data of that checkpoint.
    """

    info: ObjectInfo
    gone: bool
    commit: _Commit | None = None
    group: str = ""

    @property
    def key(self) -> str:
        return self.info.key

    @property
    def size(self) -> int:
        return self.info.size

    @property
    def is_commit(self) -> bool:
        return self.commit is not None and self.commit.key == self.key

    @property
    def lives(self) -> bool:
        """Whether its commit does."""
        return self.commit is not None and self.commit.lives
