"""What `tierstore doctor` says about the memory in which this machine's trainers stage."""

from __future__ import annotations

import os
from collections.abc import Iterator

from tierstore.backend import Check
from tierstore.backends.images import ImagesBackend
from tierstore.backends.local.diagnosis import IN_MEMORY, kind_of
from tierstore.image.capacity import tmpfs_room

_LITTLE = 1024**3
_MIB = 1024**2
_LOST = "what is staged and on no tier yet is lost with the trainer"


def diagnose_staging(images: ImagesBackend) -> Iterator[Check]:
    """Yield whether what is staged survives its trainer, and what dead trainers have left."""
    yield _survives(images.directory)
    left = [image.shard for image in images.images() if image.shard and not image.owned]
    if left:
        one = left[0]
        detail = (
            f"dead trainers left {len(left)} staged shards, such as rank {one.rank} of step "
            f"{one.id.step} of run {one.run}, which may be on no tier"
        )
        advice = "send them before this user's next job on this machine, which removes them"
        yield Check("left staged", "warning", detail, advice)


def _survives(directory: str) -> Check:
    name = "survives the trainer"
    if not os.access(directory, os.W_OK | os.X_OK):
        advice = "mount a tmpfs there that this user may write to"
        return Check(name, "warning", f"nothing can be written: {_LOST}", advice)
    if (kind := kind_of(directory)) not in IN_MEMORY:
        advice = "mount a tmpfs there: this is not memory, and slow to stage into"
        return Check(name, "warning", f"the file system is {kind or 'not told'}", advice)
    room = tmpfs_room(directory)
    if room is not None and room < _LITTLE:
        advice = "give the container a larger one (--shm-size)"
        detail = f"there is room for {room // _MIB:,} MiB; of larger images, {_LOST}"
        return Check(name, "warning", detail, advice)
    size = "as much as memory allows" if room is None else f"{room // _MIB:,} MiB"
    return Check(name, "ok", f"{size} may be staged in {kind}, until the machine restarts")
