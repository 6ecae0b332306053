"""Whether two ends are apart: the stores are asked, not the URLs.

A bucket has many addresses, and a folder many paths. So what is at one end is looked for at the
other, also further up and down; if an object of that key and size is there, something that nobody
else has is written to the destination, and looked for at the source.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tierstore.backend import Backend, ObjectInfo
from tierstore.blocks import crc32c
from tierstore.errors import (
    AccessError,
    ConfigError,
    InvalidKeyError,
    NotFoundError,
    StorageError,
    TransientError,
    UnsupportedError,
)
from tierstore.logs import logger
from tierstore.migration.ends import Ends
from tierstore.migration.mounts import share_folders
from tierstore.registry import parse_url
from tierstore.scan import place_check
from tierstore.transfer.engine.removal import is_one_file, path_of

_log = logger(__name__)
_MARK = "tierstore-probe-"


def check_apart(ends: Ends, *, writes: bool, hint: str = "") -> None:
    """Look whether what is written to the destination would be the source's own.

    Args:
        ends: both; folders of which one does not exist yet are told apart as they are listed.
        writes: False for a dry run: then objects that cannot be told apart count as one.
        hint: what to do if they are the same place.

    Raises:
        ConfigError: they are one place or object, one lies in the other, or nobody can tell.
        StorageError: an end cannot be asked.
    """
    if ends.only:
        _check_object(ends, ends.only, writes=writes, hint=hint)
        return
    source, target = ends.source, ends.target
    if _same_folder(source, target):
        raise _same(ends, hint)
    if _share_folders(source, target):
        raise _nested(ends, ", or have a folder in common by a mount")
    if not _missing(target):
        theirs = _first(target)
        # An empty destination shows nothing to look for, so that is written. Not where the source
        # is of another kind: some may only add to a store, and could not remove it again.
        blind = theirs is None and _scheme(source) == _scheme(target)
        places = [each for each in _places(target.url) if blind or _see(source, each, theirs)]
        place = _shown_at(ends, places, "", theirs, writes=writes)
        if place is not None:
            raise _nested(ends) if place else _same(ends, hint)
    ours = _first(source)
    for place in _places(source.url):
        seen = bool(place) and _see(target, place, ours)
        if seen and _shown_at(ends, [""], place, ours, writes=writes) is not None:
            raise _nested(ends)


def holds(whole: Backend, end: Backend, key: str) -> bool:
    """Whether an object of one place is also one of another, there or further down.

    Args:
        whole: where it is looked for, under all names that `end` may have there.
        end: has it.
        key: of the object at `end`.
    """
    info = end.stat(key)
    places = [place for place in _places(end.url) if _see(whole, place, info)]
    return any(_is_alike(Ends(whole, end), place, "", info) for place in places)


def holds_links(ends: Ends) -> bool:
    """Whether there is a symbolic link anywhere in the source's folder; only names are read."""
    root = None if ends.only else _root(ends.source)
    folders = [] if root is None else [str(root)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    return True
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return False


def _check_object(ends: Ends, keys: tuple[str, str], *, writes: bool, hint: str) -> None:
    key, other = keys
    mine, theirs = path_of(ends.source, key), path_of(ends.target, other)
    if mine and theirs and is_one_file(mine, theirs):
        raise _same(ends, hint)
    if key != other:
        return
    with suppress(NotFoundError):
        info = ends.source.stat(key)
        seen = _see(ends.target, "", info)
        if seen and _shown_at(ends, [""], "", info, writes=writes) is not None:
            raise _same(ends, hint)


def _shown_at(
    ends: Ends, places: Sequence[str], at_target: str, info: ObjectInfo | None, *, writes: bool
) -> str | None:
    """Return where the source shows what is at the destination, None if it does not.

    Args:
        ends: both.
        places: prefixes at the source, each of which may be that.
        at_target: a prefix at the destination.
        info: of an object that is below it, and below each of `places`; None if it is empty.
        writes: whether it is tried out; else equal versions count.
    """
    if not places:
        return None
    mark = _Mark(ends)
    try:
        if writes:
            ends.target.create(at_target + mark.name, mark.content)
        else:
            place_check(ends.target)(at_target + mark.name)
    except (AccessError, UnsupportedError) as error:
        if info is None:
            return None  # nothing can be written there, so nothing will
        raise _unclear(ends, str(error)) from error
    if not writes:
        return next((each for each in places if _is_alike(ends, each, at_target, info)), None)
    try:
        place = next((each for each in places if mark.seen(ends.source, each)), None)
        if place is None and not mark.seen(ends.target, at_target):
            raise _unclear(ends, "somebody removes what is written to the second")
        return place
    finally:
        try:
            ends.target.delete([at_target + mark.name])
        except StorageError as error:  # who may only add there goes on
            _log.warning("a mark of 16 bytes is left that can be deleted: %s", error)


class _Mark:
    """An object that nobody else has written.

    Its name is always the same for two ends: what is left of it by a kill goes with the next run.
    """

    def __init__(self, ends: Ends) -> None:
        self.name = f"{_MARK}{crc32c(f'{ends.source.url} {ends.target.url}'.encode()):08x}"
        self.content = secrets.token_bytes(16)

    def seen(self, end: Backend, place: str) -> bool:
        """Whether an end shows it below a prefix."""
        if not _see(end, place, ObjectInfo(self.name, len(self.content), 0.0)):
            return False
        content = bytearray(len(self.content))
        with suppress(NotFoundError):
            end.read_into(place + self.name, 0, memoryview(content))
        return bytes(content) == self.content


def _is_alike(ends: Ends, at_source: str, at_target: str, info: ObjectInfo | None) -> bool:
    if info is None:
        return False
    one, other = ends.source.stat(at_source + info.key), ends.target.stat(at_target + info.key)
    return (one.size, one.mtime, one.tag) == (other.size, other.mtime, other.tag)


def _unclear(ends: Ends, why: str) -> ConfigError:
    return ConfigError(
        f"nobody can tell whether {ends.source.url} and {ends.target.url} are one place: {why}",
        hint="give DST credentials that may write, and let nobody else write there",
    )


def _see(end: Backend, place: str, info: ObjectInfo | None) -> bool:
    """Whether an end has an object of that size below a prefix."""
    if info is None:
        return False
    try:
        return end.stat(place + info.key).size == info.size
    except TransientError:
        raise
    except (StorageError, InvalidKeyError):  # not there, or S3 refuses to say that it is not
        return False


def _first(end: Backend) -> ObjectInfo | None:
    return next((info for info in end.list("") if not info.key.endswith("/")), None)


def _places(url: str) -> Iterator[str]:
    """Yield "" and, as prefixes, all that a place may be called from further up."""
    address = parse_url(url)
    names = [name for name in (address.host, *address.path.split("/")) if name]
    for number in range(len(names) + 1):
        yield "".join(f"{name}/" for name in names[len(names) - number :])


def _scheme(end: Backend) -> str:
    return parse_url(end.url).scheme


def _root(end: Backend) -> Path | None:
    return parse_url(end.url).folder


def _missing(end: Backend) -> bool:
    """Whether it is a folder that is not there yet; it is not made only to find out."""
    root = _root(end)
    return root is not None and not root.is_dir()


def _same_folder(source: Backend, target: Backend) -> bool:
    one, other = _root(source), _root(target)
    try:
        return one is not None and other is not None and one.samefile(other)
    except OSError:
        return False


def _share_folders(source: Backend, target: Backend) -> bool:
    one, other = _root(source), _root(target)
    return one is not None and other is not None and share_folders(one, other)


def _same(ends: Ends, hint: str) -> ConfigError:
    place = ends.source.url + (f"/{ends.only[0]}" if ends.only else "")
    other = ends.target.url + (f"/{ends.only[1]}" if ends.only else "")
    as_other = "" if place == other else f", also called {other}"
    return ConfigError(f"SRC and DST are the same place: {place}{as_other}", hint=hint)


def _nested(ends: Ends, or_else: str = "") -> ConfigError:
    return ConfigError(
        f"SRC and DST lie one in the other{or_else}: {ends.source.url} and {ends.target.url}",
        hint="what is written would be read again; choose places beside each other",
    )
