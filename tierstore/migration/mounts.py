"""Which folders of which file systems are below a path, mounts included (mountinfo, proc(5))."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Subtree:
    """A folder of a file system, with all below it.

    Attributes:
        device: the file system's number.
        top: the folder's path in it.
    """

    device: str
    top: PurePosixPath

    def meets(self, other: Subtree) -> bool:
        """Whether a folder is in both."""
        one, two = self.top, other.top
        nested = one.is_relative_to(two) or two.is_relative_to(one)
        return self.device == other.device and nested


@dataclass(frozen=True, slots=True)
class _Mount:
    tree: Subtree
    point: PurePosixPath


def share_folders(one: Path, other: Path) -> bool:
    """Whether a folder is below both paths, which need not exist: by a mount, or as they are.

    Links below them are not followed.
    """
    mounts = _mounts()
    pairs = product(_trees(one, mounts), _trees(other, mounts))
    return any(mine.meets(theirs) for mine, theirs in pairs)


def _trees(path: Path, mounts: Sequence[_Mount]) -> list[Subtree]:
    real = PurePosixPath(path.resolve())
    found = [mount.tree for mount in mounts if mount.point.is_relative_to(real)]
    above = [mount for mount in mounts if real.is_relative_to(mount.point)]
    if above:  # of two on one point the later one hides the other
        mount = max(reversed(above), key=lambda each: len(each.point.parts))
        found.append(Subtree(mount.tree.device, mount.tree.top / real.relative_to(mount.point)))
    return found


def _mounts() -> list[_Mount]:
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, _, device, top, point, *_ = line.split(b" ")
        found.append(_Mount(Subtree(device.decode(), _path(top)), _path(point)))
    return found


def _path(text: bytes) -> PurePosixPath:
    plain = _ESCAPED.sub(lambda match: bytes([int(match[1], 8) & 255]), text)
    return PurePosixPath(plain.decode(errors="surrogateescape"))
