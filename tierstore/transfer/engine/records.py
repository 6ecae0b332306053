"""What the journal of an engine says, and what tells an object from another one of its key.

A record is a command: it is carried out before those that rely on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tierstore.backend import ObjectInfo

TARGET = "target"
"""The store that objects go to unless their entries name another one."""


@dataclass(frozen=True, slots=True)
class Version:
    """What tells an object from another one of the same key.

    Attributes:
        size: bytes.
        mtime: seconds since 1970 by its store's clock.
        tag: what its store changes with the content, such as an ETag, or a file's times and inode;
            empty where it has none.
    """

    size: int
    mtime: float
    tag: str = ""

    @classmethod
    def of(cls, info: ObjectInfo) -> Version:
        """Return the version of what a store tells of."""
        return cls(info.size, float(info.mtime), info.tag)

    @property
    def stamp(self) -> str | float:
        """What changes with the content; S3 lists milliseconds and answers in seconds."""
        return self.tag or self.mtime

    def same(self, other: Version) -> bool:
        """Whether both are of the same object."""
        return (self.size, self.stamp) == (other.size, other.stamp)


@dataclass(frozen=True, slots=True)
class Begun:
    """An upload exists at the destination and can be resumed; with an empty token it soon may.

    Attributes:
        upload: its number.
        key: at the destination.
        version: of the source's object.
        part: bytes of every part but the last.
        token: to resume it by.
        store: the destination.
    """

    upload: int
    key: str
    version: Version
    part: int
    token: str
    store: str = TARGET


@dataclass(frozen=True, slots=True)
class Receipt:
    """The destination holds a part."""

    upload: int
    index: int
    crc: int


@dataclass(frozen=True, slots=True)
class Void:
    """An upload is of no more use."""

    upload: int


@dataclass(frozen=True, slots=True)
class Finished:
    """An object is at the destination and verified.

    Attributes:
        upload: its number.
        key: at the destination.
        version: of the source's object.
        target: of the destination's.
        store: the destination.
    """

    upload: int
    key: str
    version: Version
    target: Version
    store: str = TARGET


Record = Begun | Receipt | Void | Finished


@dataclass(frozen=True, slots=True)
class Held:
    """An upload that an earlier life of the engine began: its record and its receipts."""

    begun: Begun
    crcs: Mapping[int, int]
