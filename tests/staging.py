"""Shards that are staged as a trainer does, and looked at as another process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.shards import Image as Made
from tests.shards import launch, stage
from tierstore.backends.images import ImagesBackend
from tierstore.image.pool import Image, StagingPool
from tierstore.keys import Attempt
from tierstore.ladder.shard import Shard
from tierstore.ladder.staged import StagedShard, find_staged

FIRST, SECOND = Attempt(7, 1, 1), Attempt(8, 1, 1)


def copied(pool: StagingPool, shard: Shard, source: Made) -> Image:
    """An image that a trainer has copied a shard into; nobody knows of it yet."""
    image = pool.acquire(shard.layout.size, timeout=1, spans=shard.layout.spans)
    image.buffer[: len(source.buffer)] = source.buffer
    return image


def staged(pool: StagingPool, attempt: Attempt = FIRST, **options: Any) -> tuple[Shard, Image]:
    """A shard that a trainer has staged, with its image."""
    shard, source = stage(attempt, launch(attempt.launch, world=options.get("world", 1)), **options)
    image = copied(pool, shard, source)
    told = shard.description("run")
    image.describe(told.name, told.to_bytes())
    return shard, image


def only(images: ImagesBackend) -> StagedShard:
    found = find_staged(images)
    assert (found.incomplete, found.damaged) == ((), ())
    (shard,) = found.shards
    return shard


def whole(images: ImagesBackend, key: str) -> bytes:
    buffer = bytearray(images.stat(key).size)
    images.read_into(key, 0, memoryview(buffer))
    return bytes(buffer)


def change(image: Image, name: str, at: int) -> None:
    with (Path(str(image.path)) / name).open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
