"""What a migration is to do, the phases of one object, and the reasons why one fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

SMALL = 1024**2
"""Bytes of an object up to which it waits more than it moves."""
Conflict = Literal["skip", "fail", "overwrite", "mirror"]
"""Of a mirror everything is overwritten, and what is in the way goes once all else has arrived."""
Removes = Literal[False, True, "links"]
OTHER = "the destination already has something else there"
RIVAL = "the destination has another checkpoint of that name, or has deleted it"
STAYS = "it is at the destination, but has changed at the source since and was left there"
NOT_REMOVED = "it is at the destination, but could not be removed from the source"
CHANGED = "it changed again and again while it was read"
ALONE = "the workers that had it were lost, again and again"
LOST = "the destination lost what it had taken, again and again"
DAMAGED = "the destination gave back other bytes than it was sent, again and again"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the machine has to know of the two ends and of what is wanted.

    Attributes:
        part_size_for: bytes of every part but the last of an object of so many bytes.
        conflict: what to do where the destination has something else.
        reads_back: the destination does not check what it is sent, so it has to be read.
        removes: what is verified at the destination is removed from the source.
        only_links: of that only what is a link: what it leads to may have to be copied once more.
        clean_copies: of an object that is copied whole a kill leaves nothing at the destination.
        parallel: parts may be sent in any order, several at once.
        heavy: how many commands about small objects one about a larger one counts for.
        window: objects that the feed gave and that are not yet begun, at most twice as many.
        dry: nothing is written: what would be copied counts as that once it was tried.
        trusts: what the journal says of versions counts; else everything is compared, and uploads
            of earlier lives are begun anew.
    """

    part_size_for: Callable[[int], int]
    conflict: Conflict = "fail"
    reads_back: bool = True
    removes: bool = False
    only_links: bool = False
    clean_copies: bool = False
    parallel: bool = True
    heavy: int = 1
    window: int = 4096
    dry: bool = False
    trusts: bool = True

    @property
    def overwrites(self) -> bool:
        """Whether something else at the destination is replaced."""
        return self.conflict in ("overwrite", "mirror")


class Phase(Enum):
    """Where an object is on its way."""

    TRY = auto()
    LOOK = auto()
    COMPARE = auto()
    COPY = auto()
    OPEN = auto()
    SEND = auto()
    COMMIT = auto()
    CHECK = auto()
    DISCARD = auto()
    UNITE = auto()
    REMOVE = auto()
    OVER = auto()


class State(Enum):
    """What earlier lives have made of an object: not all of it, all, or it is wanted no more."""

    NEW = auto()
    FINISHED = auto()
    ABANDONED = auto()
