"""What a mirror has and its original has not, and its removal, commits first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from tierstore.checkpoint.tombstone import bury
from tierstore.keys import parse_part
from tierstore.patterns import Selection
from tierstore.transfer.migrate.listing import Beside, Ends, is_dead

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
    """

    def __init__(self, ends: Ends, selection: Selection) -> None:
        self._ends, self._selection = ends, selection

    def extra(self) -> Extra:
        """Count what is to be removed.

        Raises:
            StorageError: an end cannot be listed.
        """
        objects = nbytes = total = 0
        for held in self._compared():
            total += 1
            objects += held.gone
            nbytes += held.gone * held.size
        return Extra(objects, nbytes, total)

    def remove(self) -> Iterator[list[str]]:
        """Remove it; yield the keys of each batch that is gone.

        Raises:
            StorageError: something cannot be removed; the rest stays.
        """
        gone = (held for held in self._compared() if held.gone)
        while batch := list(islice(gone, _BATCH)):
            for held in batch:
                if held.commit:
                    bury(self._ends.target, held.key)
            self._ends.target.delete([held.key for held in batch if not held.commit])
            yield [held.key for held in batch]

    def _compared(self) -> Iterator[_Held]:
        there, kept = Beside(self._ends.source.list("")), set()
        for info in self._ends.target.list(""):
            if info.key.endswith("/") or not self._selection.wants(info.key):
                continue
            original, part = there.find(info.key), parse_part(info.key)
            gone, commit = original is None, False
            if part and part.kind == "commits":
                alive = not is_dead(self._ends.target, info.key, info.size)
                wanted = original and not is_dead(self._ends.source, info.key, original.size)
                gone, commit = alive and not wanted, True
                if alive and wanted:
                    kept.add(part.group)
            elif part:
                gone = gone and part.kind == "data" and part.group not in kept
            yield _Held(info.key, info.size, gone, commit)


class _Held(NamedTuple):
    """An object that the mirror has; whether it is to go, and whether it is a commit."""

    key: str
    size: int
    gone: bool
    commit: bool
