"""What an engine is fed with, and how that can end."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from tierstore.scan import LeftOut
from tierstore.transfer.engine.records import TARGET, Version

SOURCE = "source"
"""The store that objects come from unless their entries name others."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object to move.

    Attributes:
        key: at its sources.
        version: of the object of the first source.
        there: the version of what the destination has under that name; None for nothing.
        group: what it is part of, as a prefix of keys: the data of a checkpoint, or the launches
            of a run; empty for none.
        seals: for a commit, the groups that it relies on, its data first: all of them arrive
            before it does.
        blocks: the CRC32Cs of its 4 MiB blocks, where its checkpoint's manifest says them.
        partial: it is the commit of some ranks, to be joined with those of the others.
        trouble: why it cannot be moved, if that is known already.
        priority: of those that wait the highest is begun first.
        sources: the stores that have it, the one to read first; the next is read where that one
            lacks it, does not answer, or has damaged it.
        target: the store that it goes to.
        new_key: at the destination, if that is another one.
    """

    key: str
    version: Version
    there: Version | None = None
    group: str = ""
    seals: tuple[str, ...] = ()
    blocks: tuple[int, ...] = field(default=(), repr=False)
    partial: bool = False
    trouble: str = ""
    priority: int = 0
    sources: tuple[str, ...] = (SOURCE,)
    target: str = TARGET
    new_key: str = ""

    @property
    def source(self) -> str:
        """The store to read it from."""
        return self.sources[0]

    @property
    def target_key(self) -> str:
        """Its key at the destination."""
        return self.new_key or self.key

    @property
    def place(self) -> tuple[str, str]:
        """The store and the key that it goes to."""
        return self.target, self.target_key


@dataclass(frozen=True, slots=True)
class Dead:
    """A checkpoint that was deleted at the source, and has data there still.

    Attributes:
        commit: the key of its tombstone.
        group: the prefix of its data.
        source: the store that has them.
        target: the store that they may have gone to.
    """

    commit: str
    group: str
    source: str = SOURCE
    target: str = TARGET


Item = Entry | Dead | LeftOut
"""What a feed gives."""


@dataclass(frozen=True, slots=True)
class Missed:
    """A source that did not give an object.

    Attributes:
        source: the store.
        reason: why.
    """

    source: str
    reason: str


class Outcome(Enum):
    """How an object ended."""

    COPIED = "copied"
    SAME = "same"
    """It was there already and is identical."""
    KEPT = "kept"
    """The destination has something else there, which was left alone as asked."""
    WAITING = "waiting"
    """It arrived, and becomes a checkpoint once the parts of other nodes have arrived as well."""
    LEFT_OUT = "left_out"
    """It is no object, or no key of the destination can name it."""
    BLOCKED = "blocked"
    """What a mirror has in its place, and the original has not, has to go first."""
    FAILED = "failed"

    @property
    def is_nothing(self) -> bool:
        """Whether there was no object at all."""
        return self is Outcome.LEFT_OUT
