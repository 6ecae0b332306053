"""What is below a prefix: the source's listing, filtered, beside what the destination has.

Both ends list lazily in the same order, so a look at the next key of each tells what is there
already, a thousand objects a request instead of one request an object.

Checkpoints may be among it. Their commits come before their data and their launches in this order,
and are handed out behind them. A commit that was seen first is of data that was there already, so
a job may go on saving meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from tierstore.backend import Backend, ObjectInfo
from tierstore.checkpoint.commit import looks_deleted
from tierstore.checkpoint.tombstone import is_buried
from tierstore.errors import NotFoundError
from tierstore.keys import Part, parse_part
from tierstore.patterns import Selection
from tierstore.transfer.migrate.messages import Dead, Entry, Listed
from tierstore.transfer.migrate.records import Version

_PAGE = 256
DELETED = "the destination has deleted this checkpoint"
EXCLUDED = "not all of its checkpoint is selected"


@dataclass(frozen=True, slots=True)
class Ends:
    """Where objects come from and where they go.

    Attributes:
        source: where they are.
        target: where they shall be, under the same keys.
        only: if one object is migrated, its keys at the source and at the destination.
    """

    source: Backend
    target: Backend
    only: tuple[str, str] | None = None

    def target_key(self, key: str) -> str:
        """Return the key at the destination of a key at the source."""
        return self.only[1] if self.only else key


class Listing:
    """Hands out pages of what is to be migrated. To be used from one thread at a time."""

    def __init__(self, found: Iterable[Entry | Dead]) -> None:
        self._found = iter(found)

    def next(self) -> Listed:
        """Return the next page.

        Raises:
            TierstoreError: an end cannot be listed.
        """
        page = list(islice(self._found, _PAGE))
        entries = tuple(each for each in page if isinstance(each, Entry))
        dead = tuple(each for each in page if isinstance(each, Dead))
        return Listed(entries, last=len(page) < _PAGE, dead=dead)


def objects(ends: Ends, selection: Selection) -> Iterator[Entry | Dead]:
    """Yield the one object that is migrated, or all that are selected, in order of key."""
    return _one(ends) if ends.only else _joined(ends, selection)


def _one(ends: Ends) -> Iterator[Entry]:
    if ends.only:
        key, other = ends.only
        try:
            target = Version.of(ends.target.stat(other))
        except NotFoundError:
            target = None
        yield Entry(key, Version.of(ends.source.stat(key)), target)


def _joined(ends: Ends, selection: Selection) -> Iterator[Entry | Dead]:
    there, behind = Beside(ends.target.list("")), _Behind(ends)
    for info in ends.source.list(""):
        if info.key.endswith("/"):  # a folder's marker, as consoles make them, is nobody's object
            continue
        part = parse_part(info.key)
        yield from behind.due(info.key)
        if not selection.wants(info.key):
            if part:
                behind.excluded(part)
            continue
        entry = Entry(info.key, Version.of(info), there.find(info.key))
        yield from behind.place(entry, part) if part else (entry,)
    yield from behind.due(None)


class _Behind:
    """Keeps the commits of a run until its data and its launches were listed."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._root = ""
        self._commits: dict[str, Entry] = {}
        self._dead: dict[str, str] = {}

    def due(self, key: str | None) -> Iterator[Entry]:
        """Yield the commits that were kept, if a key is no longer of their run."""
        if self._commits and (key is None or not key.startswith(self._root)):
            yield from self._commits.values()
            self._commits = {}

    def place(self, entry: Entry, part: Part) -> Iterator[Entry | Dead]:
        """Yield an object of a run, or keep it, or leave it out if its checkpoint was deleted."""
        group = part.group
        if part.kind == "commits":
            if part.root != self._root:
                self._root, self._dead = part.root, {}
            self._commit(entry, part)
        elif group in self._dead:
            if commit := self._dead[group]:
                self._dead[group] = ""
                yield Dead(commit, group)
        elif part.kind == "launches" or group in self._commits:
            yield replace(entry, group=group)
        else:
            yield entry

    def excluded(self, part: Part) -> None:
        """Take note that something is left out."""
        for name, commit in self._commits.items():
            if part.group in commit.seals:
                self._commits[name] = replace(commit, trouble=EXCLUDED)

    def _commit(self, entry: Entry, part: Part) -> None:
        if is_dead(self._ends.source, entry.key, entry.version.size):
            self._dead[part.group] = entry.key
            return
        there = entry.target
        deleted = there is not None and is_dead(self._ends.target, entry.key, there.size)
        trouble = DELETED if deleted else ""
        seals = (part.group, part.launches)
        self._commits[part.group] = replace(entry, seals=seals, trouble=trouble)


def is_dead(backend: Backend, key: str, size: int) -> bool:
    """Whether what a listing has at a commit's key is a tombstone."""
    return looks_deleted(size) and is_buried(backend, key)


class Beside:
    """A listing that is asked for keys in order."""

    def __init__(self, infos: Iterable[ObjectInfo]) -> None:
        self._infos = iter(infos)
        self._next = next(self._infos, None)

    def find(self, key: str) -> Version | None:
        """Return the version of an object, None if there is none of that key."""
        wanted = key.encode()
        while self._next is not None and self._next.key.encode() < wanted:
            self._next = next(self._infos, None)
        found = self._next
        return Version.of(found) if found is not None and found.key == key else None
