"""Listing a folder lazily in the order of whole keys.

A folder "a" sorts as "a/", so that "a-b" < "a/b" < "a0" as in every flat store. The names of one
folder have to be known before the first is yielded. They are kept as bytes, sorted in runs that are
merged as they are needed: a million take 20 MB and a second, where objects would take 500 MB.
"""

from __future__ import annotations

import heapq
import os
import stat as st
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from tierstore.backend import ObjectInfo
from tierstore.backends.local.scratch import NAME

_RUN = 65_536
HIDDEN = f"{NAME}/"
"""The name of a folder of unfinished files: one for each mount below a root."""


def walk(root: str, prefix: str, after: str, *, delimiter: bool) -> Iterator[ObjectInfo]:
    """Yield the objects below `root`; see `tierstore.backend.Backend.list`."""
    folder = prefix.rpartition("/")[0]
    folder = f"{folder}/" if folder else ""
    walked = [(folder, names_in(os.path.join(root, folder)))]
    while walked:
        folder, names = walked[-1]
        raw = next(names, None)
        if raw is None:
            walked.pop()
            continue
        name = _decoded(raw)
        key = folder + name
        if not name or name == HIDDEN or not key.startswith(prefix):
            continue
        if not key.endswith("/"):
            if key > after and (found := _info(root, key)):
                yield found
        elif delimiter:
            if key > after and next(walk(root, key, "", delimiter=False), None):
                yield ObjectInfo(key, 0, 0.0)
        elif key > after or after.startswith(key):
            walked.append((key, names_in(os.path.join(root, key))))


def _info(root: str, key: str) -> ObjectInfo | None:
    """Return what there is, None if it is no file, or was deleted meanwhile."""
    try:
        status = os.lstat(os.path.join(root, key))
    except FileNotFoundError:
        return None
    return told(key, status) if st.S_ISREG(status.st_mode) else None


def told(key: str, status: os.stat_result) -> ObjectInfo:
    """Return what a file's status says of an object."""
    return ObjectInfo(key, status.st_size, status.st_mtime, tag=tag_of(status))


def tag_of(status: os.stat_result) -> str:
    """Return what changes with a file: nobody sets ctime, and a rename brings another inode."""
    return f"{status.st_mtime_ns:x}-{status.st_ctime_ns:x}-{status.st_ino:x}"


def names_in(path: str, *, links: bool = False) -> Iterator[bytes]:
    """Return the names in one folder, in order.

    A folder's ends in "/" and, if `links` are looked at, that of a link to one in "//".
    """
    runs: list[bytes] = []
    try:
        with os.scandir(os.fsencode(path)) as entries:
            while run := sorted(_marked(entry, links) for entry in islice(entries, _RUN)):
                runs.append(b"\0".join([*run, b""]))
    except (FileNotFoundError, NotADirectoryError):
        return iter(())
    return heapq.merge(*map(_split, runs))


def _marked(entry: os.DirEntry[bytes], links: bool) -> bytes:
    if entry.is_dir(follow_symlinks=False):
        return entry.name + b"/"
    if links and entry.is_symlink():
        with suppress(OSError):  # it leads to itself, or through what nobody may read
            return entry.name + (b"//" if entry.is_dir() else b"")
    return entry.name


def _split(run: bytes) -> Iterator[bytes]:
    start = 0
    while (end := run.find(b"\0", start)) >= 0:
        yield run[start:end]
        start = end + 1


def _decoded(raw: bytes) -> str:
    """Return a name, "" for one that is not UTF-8: no backend has written it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ""
