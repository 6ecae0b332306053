"""Whether an object can be removed from a folder without taking another one along.

A file has many names: links lead to it, and the destination's may be the very file that is to go.
"""

from __future__ import annotations

import os
import stat as st
from pathlib import Path

from tierstore.backend import Backend, local_path
from tierstore.transfer.engine.ends import Ends

ONE_FILE = "the source's file and the destination's are one and the same"
BEHIND = "it lies behind a link, and what a link leads to is never removed"


def stays(ends: Ends, key: str) -> str:
    """Return why an object is not to be removed from the source, or nothing.

    Args:
        ends: both.
        key: at the source.
    """
    path = path_of(ends.source, key)
    if path is None:
        return ""
    root = Path(str(path)[: -len(key) - 1] or "/").resolve()
    if path.parent.resolve() != (root / key).parent:
        return BEHIND
    other = path_of(ends.target, ends.target_key(key))
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
