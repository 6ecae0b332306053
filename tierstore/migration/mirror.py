"""What a mirror has and its original has not, and its removal, commits first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from tierstore.backend import ObjectInfo
from tierstore.checkpoint.delete import bury
from tierstore.errors import BlockedError, StorageError
from tierstore.keys import parse_part
from tierstore.migration.listing import Beside, at_source, at_target, is_dead, refused
from tierstore.patterns import Selection
from tierstore.scan import Kind, LeftOut, Ways, key_check, scan
from tierstore.transfer.engine.ends import Ends

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

    A commit that the source has no more becomes a tombstone; it comes before its data in order of
    key, so before any of that goes. Launches and tombstones stay, and so does all that a commit
    relies on which stays.

    Args:
        ends: the original and the mirror.
        selection: what of them; all else is left alone.
        follow: as in `objects`.
    """

    def __init__(self, ends: Ends, selection: Selection, *, follow: bool = True) -> None:
        self._ends, self._selection, self._follow = ends, selection, follow

    def extra(self, coming: int = 0) -> Extra:
        """Count what is to be removed.

        Args:
            coming: objects that it will have besides, once all has arrived.

        Raises:
            StorageError: an end cannot be listed.
        """
        objects, nbytes, total = 0, 0, coming
        for held in self._compared():
            total += 1
            objects += held.gone
            nbytes += held.gone * held.size
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
        gone = {held.key for held in self._compared() if held.gone and meant(held.key)}
        for found in scan(target, Ways(follow=False)):
            if meant(found.key) and found.key not in gone:
                name = found.name if isinstance(found, LeftOut) else found.key
                key = next(each for each in blocked if in_the_way([each])(found.key))
                raise BlockedError(
                    f"failed: {key}: {target.url}/{name} is in its place and stays, so nothing was "
                    "deleted",
                    hint="it is excluded, or no file that can be named: move it yourself",
                )

    def remove(
        self, most: int, only: Callable[[str], bool] = lambda _key: True
    ) -> Iterator[list[str]]:
        """Remove it; yield the keys of each batch that is gone.

        Args:
            most: objects that were counted; the source may be away by now, and all seem too much.
            only: tells which of it.

        Raises:
            StorageError: something cannot be removed, or there is more of it; the rest stays.
        """
        gone = (held for held in self._compared() if held.gone and only(held.key))
        while batch := list(islice(gone, _BATCH)):
            most -= len(batch)
            if most < 0:
                message = "more is missing at SRC than was counted a moment ago; the rest stays"
                url = self._ends.source.url
                raise StorageError(
                    message, url=url, hint="check that SRC is complete, then try again"
                )
            for held in batch:
                if held.commit:
                    bury(self._ends.target, held.key)
            self._ends.target.delete([held.key for held in batch if not held.commit])
            yield [held.key for held in batch]

    def _compared(self) -> Iterator[_Held]:
        source = at_source(self._ends, self._selection, follow=self._follow)
        there, kept = Beside(source), set()
        for info in self._held():
            original, part = there.find(info.key), parse_part(info.key)
            gone, commit = original is None and not there.hides(info.key), False
            if part and part.kind == "commits":
                alive = not is_dead(self._ends.target, info.key, info.size)
                wanted = there.hides(info.key) or (
                    original and not is_dead(self._ends.source, info.key, original.size)
                )
                gone, commit = alive and not wanted, True
                if alive and wanted:
                    kept.add(part.group)
            elif part:
                gone = gone and part.kind == "data" and part.group not in kept
            yield _Held(info.key, info.size, gone, commit)

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


def _above(key: str) -> Iterator[str]:
    while folder := key.rpartition("/")[0]:
        yield folder
        key = folder


class _Held(NamedTuple):
    """An object that the mirror has; whether it is to go, and whether it is a commit."""

    key: str
    size: int
    gone: bool
    commit: bool
