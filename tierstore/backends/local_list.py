"""Listing a folder lazily in the order of whole keys.

A folder "a" sorts as "a/", so that "a-b" < "a/b" < "a0" as in every flat store. Python compares
strings by code point, which is the order of their UTF-8 bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from tierstore.backend import ObjectInfo
from tierstore.backends.scratch import NAME


def walk(root: str, prefix: str, after: str, *, delimiter: bool) -> Iterator[ObjectInfo]:
    """Yield the objects below `root`; see `tierstore.backend.Backend.list`."""
    folder = prefix.rpartition("/")[0]
    yield from _walk(root, f"{folder}/" if folder else "", prefix, after, delimiter=delimiter)


def _walk(
    root: str, folder: str, prefix: str, after: str, *, delimiter: bool
) -> Iterator[ObjectInfo]:
    for key, entry in _entries(root, folder):
        if not key.startswith(prefix):
            continue
        if entry.is_dir(follow_symlinks=False):
            if delimiter:
                if key > after and _has_objects(root, key):
                    yield ObjectInfo(key, 0, 0.0)
            elif key > after or after.startswith(key):
                yield from _walk(root, key, prefix, after, delimiter=False)
        elif key > after and entry.is_file(follow_symlinks=False):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # deleted meanwhile
                continue
            yield ObjectInfo(key, status.st_size, status.st_mtime)


def _entries(root: str, folder: str) -> list[tuple[str, os.DirEntry[str]]]:
    """Return the entries of one folder with their keys, in order; a folder's key ends in "/"."""
    found = []
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                name = entry.name
                if not _is_name(name) or (not folder and name == NAME):
                    continue
                key = folder + name + ("/" if entry.is_dir(follow_symlinks=False) else "")
                found.append((key, entry))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda item: item[0])


def _is_name(name: str) -> bool:
    """Return whether a file's name is Unicode; others were not written by a backend."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_objects(root: str, folder: str) -> bool:
    return next(_walk(root, folder, folder, "", delimiter=False), None) is not None
