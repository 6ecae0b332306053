"""What an engine is to do, the phases of one object, and the reasons why one fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

from tierstore.transfer.engine.entries import Missed

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
class Destination:
    """What the machine has to know of a store that objects go to.

    Attributes:
        part_size_for: bytes of every part but the last of an object of so many bytes.
        reads_back: it does not check what it is sent, so it has to be read.
        clean_copies: of an object that is copied whole a kill leaves nothing there.
        parallel: parts may be sent in any order, several at once.
    """

    part_size_for: Callable[[int], int]
    reads_back: bool = True
    clean_copies: bool = False
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class Orders:
    """What the machine has to know of its destinations and of what is wanted.

    Attributes:
        targets: the stores that objects go to, by name.
        conflict: what to do where the destination has something else.
        removes: what is verified at the destination is removed from the source.
        only_links: of that only what is a link: what it leads to may have to be copied once more.
        heavy: how many commands about small objects one about a larger one counts for.
        window: objects that the feed gave and that are not yet begun, at most twice as many.
        dry: nothing is written: what would be copied counts as that once it was tried.
        trusts: what the journal says of versions counts; else everything is compared, and uploads
            of earlier lives are begun anew.
        goes_on: a failure ends nothing but its object; whoever feeds it will know what to do.
    """

    targets: Mapping[str, Destination]
    conflict: Conflict = "fail"
    removes: bool = False
    only_links: bool = False
    heavy: int = 1
    window: int = 4096
    dry: bool = False
    trusts: bool = True
    goes_on: bool = False

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
    TURN = auto()
    """The first source has failed: the next one is asked what it has."""
    OVER = auto()


class Beginning(Enum):
    """What earlier lives have made of an object: not all of it, all, or it is wanted no more."""

    NEW = auto()
    FINISHED = auto()
    ABANDONED = auto()


@dataclass(frozen=True, slots=True)
class Earlier:
    """What earlier tries at an object have left.

    Attributes:
        tries: how many there were.
        ours: what is at the destination was written by one of them, and is to be replaced.
        missed: the sources that did not give it.
    """

    tries: int = 0
    ours: bool = False
    missed: tuple[Missed, ...] = ()


FIRST = Earlier()
