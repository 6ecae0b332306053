"""How much memory there is left to stage in.

Pages of tmpfs and of anonymous mappings are charged to the process's control group. Beyond its
limit the kernel does not answer ENOSPC but kills, so the limit is asked before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

TMPFS_RESERVE = 8
"""One part in so many of a tmpfs is left to its other users, such as data loader workers."""


def tmpfs_room(directory: str | os.PathLike[str]) -> int | None:
    """Return the bytes a new image may have in `directory`, or None where nothing limits it."""
    stat = os.statvfs(directory)
    if stat.f_blocks == 0:  # a tmpfs mounted with size=0
        return None
    return max(0, stat.f_bavail - stat.f_blocks // TMPFS_RESERVE) * stat.f_frsize


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that can be allocated before something is killed; None if unknown.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    rooms = list(_group_rooms(root))
    try:
        fields = _fields(root / "proc/meminfo")
        rooms.append((fields["MemAvailable:"] + fields.get("SwapFree:", 0)) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    return max(0, min(rooms)) if rooms else None


def _group_rooms(root: Path) -> Iterator[int]:
    """Yield what each control group above this process leaves, versions 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # In a container the path may be the host's while the mount is the container's own: groups
        # that are not there are passed over, up to the mount itself.
        group = base / path.strip("/")
        for place in (group, *group.parents):
            room = _room(place, limit, usage)
            if room is not None:
                yield room
            if place == base:
                break


def _room(group: Path, limit: str, usage: str) -> int | None:
    try:
        bound = int((group / limit).read_text())
        used = int((group / usage).read_text())
        stat = _fields(group / "memory.stat")
    except (OSError, ValueError):  # no such group, or "max"
        return None
    # Files' cached pages count as used, but give way.
    total = "total_" if "total_inactive_file" in stat else ""
    cache = stat.get(f"{total}inactive_file", 0) + stat.get(f"{total}active_file", 0)
    return bound - used + cache


def _fields(path: Path) -> dict[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2}
