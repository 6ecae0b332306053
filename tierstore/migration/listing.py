"""What is below a prefix: the source's listing, filtered, beside what the destination has.

Both ends list lazily in the same order, so a look at the next key of each tells what is there
already, a thousand objects a request instead of one request an object.

Checkpoints may be among it. Their commits come before their data and their launches in this order,
and are handed out behind them. A commit that was seen first is of data that was there already, so
a job may go on saving meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from tierstore.backend import Backend, ObjectInfo
from tierstore.checkpoint.commit import looks_deleted
from tierstore.checkpoint.tombstone import is_buried
from tierstore.errors import ConfigError, InvalidKeyError, NotFoundError
from tierstore.keys import RunPart, parse_part
from tierstore.migration.ends import Ends
from tierstore.patterns import Selection
from tierstore.registry import parse_url
from tierstore.scan import Found, Kind, LeftOut, Ways, key_check, scan
from tierstore.transfer.engine.entries import Dead, Entry, Item
from tierstore.transfer.engine.records import Version

DELETED = "the destination has deleted this checkpoint"
EXCLUDED = "not all of its checkpoint is selected"
MARKER = "its name ends in '/', and it has content"


def objects(ends: Ends, selection: Selection, *, follow: bool = True) -> Iterator[Item]:
    """Yield the one object that is migrated, or all that are selected, in order of key.

    Args:
        ends: where from and where to.
        selection: what is wanted.
        follow: links in a folder are what they point to; else they are left out.
    """
    return _one(ends) if ends.only else _joined(ends, selection, follow=follow)


def _one(ends: Ends) -> Iterator[Entry]:
    if ends.only:
        key, other = ends.only
        try:
            there = Version.of(ends.target.stat(other))
        except NotFoundError:
            there = None
        yield Entry(key, Version.of(ends.source.stat(key)), there, new_key=other)


def _joined(ends: Ends, selection: Selection, *, follow: bool) -> Iterator[Item]:
    there, behind = Beside(at_target(ends, selection)), _Behind(ends)
    check = key_check(ends.target)
    for found in at_source(ends, selection, follow=follow):
        yield from behind.due(found.key)
        left = found if isinstance(found, LeftOut) else refused(found, check)
        if left:
            behind.missing(left)
            if left.kind is not Kind.UNWANTED:
                yield left
        elif isinstance(found, ObjectInfo):
            part = parse_part(found.key)
            entry = Entry(found.key, Version.of(found), there.find(found.key))
            yield from behind.place(entry, part) if part else (entry,)
    yield from behind.due(None)


def at_source(ends: Ends, selection: Selection, *, follow: bool) -> Iterator[Found]:
    """Yield what is wanted of the source, and what of it nobody can move or asked for.

    Raises:
        ConfigError: the destination lies in it.
        TierstoreError: it cannot be listed.
    """
    ways = Ways(follow, selection.may_want_below, _folder_of(ends.target))
    for found in scan(ends.source, ways):
        key, folder = found.key, found.key.endswith("/")
        if isinstance(found, LeftOut) and found.kind is Kind.OTHER:
            raise _one_in_other(ends, found)
        if not (selection.may_want_below(key) if folder else selection.wants(key)):
            yield LeftOut(key, "", Kind.UNWANTED)
        elif not (folder and isinstance(found, ObjectInfo)):
            yield found
        elif found.size:  # else it marks a folder, as consoles do, and is nobody's object
            yield LeftOut(key, MARKER, Kind.OBJECT)


def at_target(ends: Ends, selection: Selection, *, follow: bool = True) -> Iterator[Found]:
    """Yield what the destination has of what is wanted; what is written goes through its links.

    Args:
        ends: both.
        selection: what is wanted.
        follow: what is behind its links is told, too.

    Raises:
        ConfigError: the source lies in it, or a link in it leads there.
        TierstoreError: it cannot be listed.
    """
    ways = Ways(follow, selection.may_want_below, _folder_of(ends.source))
    for found in scan(ends.target, ways):
        if isinstance(found, LeftOut) and found.kind in (Kind.OTHER, Kind.INTO_OTHER):
            raise _one_in_other(ends, found)
        yield found


def _folder_of(end: Backend) -> str:
    return str(parse_url(end.url).folder or "")


def _one_in_other(ends: Ends, found: LeftOut) -> ConfigError:
    return ConfigError(
        f"SRC and DST lie one in the other: {ends.source.url} and {ends.target.url} meet at "
        f"{found.name}",
        hint="what is written would be read again; choose places beside each other",
    )


def refused(info: ObjectInfo, check: Callable[[str], object]) -> LeftOut | None:
    """Return why the destination cannot have an object of that key."""
    try:
        check(info.key)
    except InvalidKeyError as error:
        return LeftOut(info.key, str(error), Kind.OBJECT)
    return None


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

    def place(self, entry: Entry, part: RunPart) -> Iterator[Entry | Dead]:
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

    def missing(self, left: LeftOut) -> None:
        """Take note that something, or all below a folder, does not come."""
        trouble = EXCLUDED if left.kind is Kind.UNWANTED else f"{left.name}: {left.why}"
        for name, commit in self._commits.items():
            if any(_overlap(group, left) for group in commit.seals):
                self._commits[name] = replace(commit, trouble=trouble)

    def _commit(self, entry: Entry, part: RunPart) -> None:
        if is_dead(self._ends.source, entry.key, entry.version.size):
            self._dead[part.group] = entry.key
            return
        there = entry.there
        deleted = there is not None and is_dead(self._ends.target, entry.key, there.size)
        trouble = DELETED if deleted else ""
        seals = (part.group, part.launches)
        self._commits[part.group] = replace(entry, seals=seals, trouble=trouble)


def is_dead(backend: Backend, key: str, size: int) -> bool:
    """Whether what a listing has at a commit's key is a tombstone."""
    return looks_deleted(size) and is_buried(backend, key)


def _overlap(group: str, left: LeftOut) -> bool:
    """Whether something is part of a group, or has parts of it."""
    return left.key.startswith(group) or (left.is_folder and group.startswith(left.key))


class Beside:
    """A listing that is asked for keys in order."""

    def __init__(self, found: Iterable[Found]) -> None:
        self._found = iter(found)
        self._next = next(self._found, None)
        self._shut = ""  # the last folder that was passed and could not be looked into

    def find(self, key: str) -> Version | None:
        """Return the version of an object, None if there is none of that key."""
        while self._next is not None and _is_before(self._next, key):
            if isinstance(self._next, LeftOut) and self._next.is_folder:
                self._shut = self._next.key
            self._next = next(self._found, None)
        found = self._next if isinstance(self._next, ObjectInfo) else None
        return Version.of(found) if found is not None and found.key == key else None

    def hides(self, key: str) -> bool:
        """Whether something of the key that was asked for last may be there, and was left out."""
        left = isinstance(self._next, LeftOut) and self._next.key == key
        return left or bool(self._shut and key.startswith(self._shut))


def _is_before(found: Found, key: str) -> bool:
    if isinstance(found, LeftOut):  # bytes that are no text sort elsewhere as surrogates
        return found.key.encode(errors="surrogateescape") < key.encode()
    return found.key < key
