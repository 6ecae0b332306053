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
from itertools import islice

from tierstore.backend import ObjectInfo
from tierstore.backends.scratch import NAME

_RUN = 65_536
_HIDDEN = NAME.encode() + b"/"


def walk(root: str, prefix: str, after: str, *, delimiter: bool) -> Iterator[ObjectInfo]:
    """Yield the objects below `root`; see `tierstore.backend.Backend.list`."""
    folder = prefix.rpartition("/")[0]
    yield from _walk(root, f"{folder}/" if folder else "", prefix, after, delimiter=delimiter)


def _walk(
    root: str, folder: str, prefix: str, after: str, *, delimiter: bool
) -> Iterator[ObjectInfo]:
    for raw in _names(os.path.join(root, folder)):
        name = _decoded(raw)
        if not name or raw == _HIDDEN:
            continue
        key = folder + name
        if not key.startswith(prefix):
            continue
        if key.endswith("/"):
            if delimiter:
                if key > after and _has_objects(root, key):
                    yield ObjectInfo(key, 0, 0.0)
            elif key > after or after.startswith(key):
                yield from _walk(root, key, prefix, after, delimiter=False)
        elif key > after and (found := _info(root, key)):
            yield found


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


def _names(path: str) -> Iterator[bytes]:
    """Return the names in one folder, in order; a folder's ends in "/"."""
    runs: list[bytes] = []
    try:
        with os.scandir(os.fsencode(path)) as entries:
            while run := sorted(_marked(entry) for entry in islice(entries, _RUN)):
                runs.append(b"\0".join([*run, b""]))
    except (FileNotFoundError, NotADirectoryError):
        return iter(())
    return heapq.merge(*map(_split, runs))


def _marked(entry: os.DirEntry[bytes]) -> bytes:
    return entry.name + (b"/" if entry.is_dir(follow_symlinks=False) else b"")


def _split(run: bytes) -> Iterator[bytes]:
    start = 0
    while (end := run.find(b"\0", start)) >= 0:
        yield run[start:end]
        start = end + 1


def _decoded(raw: bytes) -> str:
    """Return a name, "" for one that is not Unicode: no backend has written it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ""


def _has_objects(root: str, folder: str) -> bool:
    return next(_walk(root, folder, folder, "", delimiter=False), None) is not None
