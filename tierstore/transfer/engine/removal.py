"""Removing what has arrived from its source, without taking anything else along.

A file has many names: links lead to it, and the destination's may be the very file that is to go.
"""

from __future__ import annotations

import os
import stat as st
import threading
from pathlib import Path

from tierstore.backend import Backend, local_path
from tierstore.checkpoint.commit import looks_deleted
from tierstore.checkpoint.delete import bury, is_relied_on, remove_data
from tierstore.checkpoint.tombstone import is_buried
from tierstore.errors import CheckpointError, NotFoundError
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.entries import Entry
from tierstore.transfer.engine.records import Version
from tierstore.transfer.engine.stores import Stores
from tierstore.transfer.part import crc_at
from tierstore.transfer.source import Buffers

_TOUCHES = 64  # while a file is compared; others remove its other names
CANNOT_REMOVE = "nothing may be removed from its folder"
RELIED_ON = "its checkpoint is alive at the source and was not moved as a whole, so it stays"
ONE_FILE = "the source's file and the destination's are one and the same"
BEHIND = "it lies behind a link, and what a link leads to is never removed"


class Remover:
    """Removes objects, for any number of threads.

    Args:
        stores: of the engine.
        buffers: lend memory to compare an object that was touched.
    """

    def __init__(self, stores: Stores, buffers: Buffers) -> None:
        self._stores, self._buffers = stores, buffers
        self._touched = threading.Lock()

    def remove(self, task: m.Remove) -> m.Answer:
        """Carry out `Remove`."""
        entry, source = task.entry, self._stores[task.entry.source]
        if task.only_link and not is_link(source, entry.key):
            return m.Removed(task.job, kept=True)
        if why := stays(
            source, entry.key, self._stores[entry.target], entry.target_key
        ):  # also if it went by another way to it meanwhile
            return m.Failed(task.job, why)
        if is_relied_on(source, entry.key):
            return m.Failed(task.job, RELIED_ON)
        if task.dry:
            path = path_of(source, entry.key)
            may = path is None or os.access(path.parent, os.W_OK | os.X_OK)
            return m.Removed(task.job) if may else m.Failed(task.job, CANNOT_REMOVE)
        try:
            version = Version.of(source.stat(entry.key))
        except NotFoundError:
            return m.Removed(task.job)
        if entry.seals and looks_deleted(version.size) and is_buried(source, entry.key):
            return m.Removed(task.job)  # a worker was lost after it had done it
        if version.same(entry.version):
            self._delete(entry)
            return m.Removed(task.job)
        with self._touched:  # by one at a time: each removal touches what is left
            if version.size != entry.version.size or not self._only_touched(entry):
                return m.Removed(task.job, changed=True)
            self._delete(entry)
        return m.Removed(task.job)

    def _delete(self, entry: Entry) -> None:
        source = self._stores[entry.source]
        if entry.seals:
            bury(source, entry.key)
        else:
            source.delete([entry.key])

    def _only_touched(self, entry: Entry) -> bool:
        """Whether the source has another version, but still the bytes that the destination has.

        So it is with a file that has several names, when the first of them is removed.
        """
        source = self._stores[entry.source]
        version = Version.of(source.stat(entry.key))
        for _ in range(_TOUCHES):
            before = version
            if not self._equal(entry):
                return False
            version = Version.of(source.stat(entry.key))
            if version.same(before):
                return True
        return False

    def _equal(self, entry: Entry) -> bool:
        source, (store, key) = self._stores[entry.source], entry.place
        target, size = self._stores[store], entry.version.size
        part = target.capabilities.part_size
        for offset in range(0, size, part):
            with self._buffers.take(min(part, size - offset)) as data:
                crc = crc_at(source, entry.key, offset, data)
                if crc_at(target, key, offset, data) != crc:
                    return False
        return True

    def sweep(self, task: m.Sweep) -> m.Answer:
        """Carry out `Sweep`."""
        source, target = self._stores[task.dead.source], self._stores[task.dead.target]

        def check(key: str) -> None:
            if why := stays(source, key, target, key):
                raise CheckpointError(f"{key}: {why}")

        remove_data(source, task.dead.commit, check)
        return m.Removed(task.job)


def stays(source: Backend, key: str, target: Backend, target_key: str) -> str:
    """Return why an object is not to be removed from its source, or nothing."""
    path = path_of(source, key)
    if path is None:
        return ""
    root = Path(str(path)[: -len(key) - 1] or "/").resolve()
    if path.parent.resolve() != (root / key).parent:
        return BEHIND
    other = path_of(target, target_key)
    return ONE_FILE if other is not None and is_one_file(path, other) else ""


def is_link(end: Backend, key: str) -> bool:
    """Whether an object is a symbolic link."""
    path = path_of(end, key)
    return path is not None and path.is_symlink()


def path_of(end: Backend, key: str) -> Path | None:
    """Return the file of an object, None where it is none."""
    text = local_path(end, key)
    return None if text is None else Path(text)


def is_one_file(path: Path, other: Path) -> bool:
    """Whether a file of one name would go from the other one, too."""
    try:
        mine, theirs = path.lstat(), other.stat()
        if st.S_ISLNK(mine.st_mode) or not os.path.samestat(mine, theirs):
            return False
        real = other.resolve()  # two names of one file, or one name on two ways
        one_name = real.name == path.name and real.parent.samefile(path.parent)
    except (OSError, RuntimeError):  # of links in a circle
        return False
    return mine.st_nlink == 1 or one_name
