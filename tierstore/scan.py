"""All that is below a root, in order: objects, and what a listing passes over in silence.

A folder of a disk may hold links, pipes, names that are no text, and folders that nobody may read.
Whoever moves data has to say so; whoever looks for checkpoints need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, TypeVar, runtime_checkable

from tierstore.backend import Backend, ObjectInfo
from tierstore.errors import UnsupportedError
from tierstore.keys import check_key


class Kind(Enum):
    """Why something is left out."""

    SPECIAL = auto()
    """It is no file, or no key can name it."""
    OBJECT = auto()
    """It is an object, with a key that nothing else can have."""
    LINK = auto()
    """It is a link, and links are not followed."""
    UNWANTED = auto()
    """It is a folder in which nothing is wanted."""
    UNREADABLE = auto()
    """It may hold objects, but they cannot be listed."""
    OTHER = auto()
    """It is the folder that was not to be walked into."""
    INTO_OTHER = auto()
    """It is a link into that folder, or leads there behind a link."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something below a root that is no object.

    Attributes:
        key: where it is; of a folder it ends in "/" and stands for all below. The bytes of a name
            that is not UTF-8 are lone surrogates in it (PEP 383).
        why: what it is, for people.
        kind: why it is left out.
    """

    key: str
    why: str
    kind: Kind = Kind.SPECIAL

    @property
    def is_folder(self) -> bool:
        """Whether it stands for all below it."""
        return self.key.endswith("/") and self.kind is not Kind.OBJECT

    @property
    def name(self) -> str:
        """The key as it can be shown."""
        return self.key.encode(errors="surrogateescape").decode(errors="backslashreplace")


@dataclass(frozen=True, slots=True)
class Ways:
    """How to walk.

    Attributes:
        follow: links are what they point to; else they are left out.
        wants: whether anything below a folder, whose key ends in "/", may be wanted.
        other: the path of a folder that is not walked into, or empty.
    """

    follow: bool = True
    wants: Callable[[str], bool] = lambda _folder: True
    other: str = ""


Found = ObjectInfo | LeftOut
F = TypeVar("F", bound=Found)


@runtime_checkable
class Scans(Protocol):
    """A backend below whose root may be what is no object."""

    def scan(self, ways: Ways, *, after: str | None = None) -> Iterator[Found]:
        """Yield what is below the root, in the order of `list`, from behind `after`."""
        ...


def scan(backend: Backend, ways: Ways, *, after: str | None = None) -> Iterator[Found]:
    """Yield all that is below the root of a backend, in order.

    Raises:
        TierstoreError: the root cannot be listed, or not in order.
    """
    if isinstance(backend, Scans):
        return in_order(backend.scan(ways, after=after), backend.url)
    return in_order(backend.list("", after=after), backend.url)


def in_order(found: Iterable[F], url: str) -> Iterator[F]:
    """Yield what is found, as long as each key is behind the one before.

    Whoever joins two listings would take what comes too late for missing, and remove its copy.

    Raises:
        UnsupportedError: a key is not.
    """
    last = ""
    for each in found:
        if isinstance(each, ObjectInfo):
            if each.key <= last:
                raise UnsupportedError(
                    f"it lists {each.key!r} behind {last!r}, so in no order that can be relied on",
                    url=url,
                    hint="this store can hold one end only of what compares two listings: name "
                    "the objects one by one, or use another gateway",
                )
            last = each.key
        yield each


@runtime_checkable
class ChecksKeys(Protocol):
    """A backend that cannot hold every key."""

    def check_key(self, key: str) -> None:
        """Raise InvalidKeyError of a key that it cannot hold, without asking the store."""
        ...


@runtime_checkable
class ChecksPlaces(Protocol):
    """A backend that finds out cheaply whether something else has a key's place."""

    def check_place(self, key: str) -> None:
        """Raise what writing an object of this key would, as far as it shows without."""
        ...


def place_check(backend: Backend) -> Callable[[str], object]:
    """Return what raises of a key what writing would, as far as it shows without: see `key_check`.

    Where it is cheap to find out that is also that something else has the key's place.
    """
    return backend.check_place if isinstance(backend, ChecksPlaces) else key_check(backend)


def key_check(backend: Backend) -> Callable[[str], object]:
    """Return what raises InvalidKeyError of a key that a backend cannot hold, without asking it."""
    return backend.check_key if isinstance(backend, ChecksKeys) else check_key
