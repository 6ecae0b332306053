"""Listings in pages of the namenode, in the order of whole keys."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from tierstore.backend import ObjectInfo
from tierstore.errors import AccessError, InvalidKeyError, NotFoundError, StorageError
from tierstore.keys import check_key
from tierstore.scan import Found, Kind, LeftOut, Ways, in_order
from tierstore_hdfs.answers import OTHER, FileStatus, at, file_status, number
from tierstore_hdfs.errors import naming
from tierstore_hdfs.files import Files
from tierstore_hdfs.paths import is_hidden

Entry = tuple[str, FileStatus]
_SIGNED = bytes(byte ^ 0x80 for byte in range(256))  # HDFS compares names as signed bytes
_LONGEST = 1024  # bytes: no key has more


def entries(files: Files, folder: str, *, after: str = "") -> Iterator[Entry]:
    """Yield what is in a folder behind the name `after`, a page a request, in HDFS's own order.

    `folder` is a prefix, "" or ending in "/". A missing folder is empty, and so is a file.
    """
    path, op = files.paths.folder(folder), "LISTSTATUS_BATCH"
    while True:
        query = {"startAfter": after} if after else {}
        with naming(files.url, folder.rstrip("/")):
            try:
                page = at(files.client.call("GET", path, op, **query), op, "DirectoryListing")
            except NotFoundError:
                return
            found = at(page, op, "partialListing", "FileStatuses", "FileStatus")
            names = [file_status(each, op) for each in (found if isinstance(found, list) else [0])]
            more = number(page, op, "remainingEntries")
            last = names[-1].name if names else after
            if more and _hdfs_order(last) <= _hdfs_order(after):
                raise StorageError(f"{op}: the listing goes on without end", hint=OTHER)
        for status in names:
            if status.name:
                yield status.name, status
        if not more:
            return
        after = last


def _hdfs_order(name: str) -> bytes:
    return name.encode().translate(_SIGNED)


def in_key_order(found: Iterator[Entry]) -> Iterator[Entry]:
    """Yield entries in the order of the UTF-8 bytes of whole keys: a folder "a" sorts as "a/".

    HDFS compares names as signed bytes, so those with a byte above 127 come before ASCII. What
    comes after a name in ASCII sorts behind it in either order, so all that is held back and
    smaller can go; nothing is known from any other name.
    """
    held: list[tuple[bytes, int, Entry]] = []
    number = itertools.count()
    for name, status in found:
        raw = name.encode()
        if raw.isascii():
            while held and held[0][0] < raw:
                yield heapq.heappop(held)[2]
        sort = raw + b"/" if status.is_folder else raw
        heapq.heappush(held, (sort, next(number), (name, status)))
    while held:
        yield heapq.heappop(held)[2]


def scanning(files: Files, ways: Ways, after: str) -> Iterator[Found]:
    """Yield the objects, and what is left out; see `tierstore.scan.scan`."""
    return _below(files, "", "", after.encode(), delimiter=False, ways=ways)


def listing(files: Files, prefix: str, after: str, *, delimiter: bool) -> Iterator[ObjectInfo]:
    """Yield the objects, or with `delimiter` what is one level down; see `Backend.list`."""
    folder, _, start = prefix.rpartition("/")
    if folder:
        try:
            files.paths.of(check_key(folder))
        except InvalidKeyError:
            return  # no object has such a key
        folder += "/"
    elif prefix.startswith("/"):
        return
    below = _below(files, folder, start, after.encode(), delimiter=delimiter)
    yield from in_order((each for each in below if isinstance(each, ObjectInfo)), files.url)


def _below(
    files: Files,
    folder: str,
    start: str,
    after: bytes,
    *,
    delimiter: bool,
    ways: Ways | None = None,
) -> Iterator[Found]:
    for name, status in in_key_order(entries(files, folder)):
        if not name.startswith(start) or is_hidden(name):
            continue
        key = folder + name
        if not status.is_folder:
            if key.encode() > after:
                yield files.info(key, status)
            continue
        key += "/"
        raw = key.encode()
        if len(raw) > _LONGEST:
            if ways:
                yield LeftOut(key, "its keys would be longer than 1,024 bytes")
                continue
            raise StorageError(
                "what is in this folder has no legal keys",
                url=files.url,
                key=f"{key[:100]}...",
                hint="1,024 bytes at most",
            )
        if raw <= after and (delimiter or not after.startswith(raw)):
            continue  # all that is in it sorts before
        if ways and not ways.wants(key):
            yield LeftOut(key, "", Kind.UNWANTED)
            continue
        below = _below(files, key, "", b"" if delimiter else after, delimiter=False, ways=ways)
        if ways:
            yield from _readable(below, key)
        elif not delimiter:
            yield from below
        elif next(below, None):  # a folder without objects is none
            yield ObjectInfo(key, 0, 0.0)


def _readable(below: Iterator[Found], folder: str) -> Iterator[Found]:
    try:
        yield from below
    except AccessError as error:
        yield LeftOut(folder, f"it cannot be listed: {error.message}", Kind.UNREADABLE)
