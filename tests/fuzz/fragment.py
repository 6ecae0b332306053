"""Fragments, as whoever looks at a run meets them: what is complete is committed, and restored."""

from __future__ import annotations

from contextlib import suppress
from random import Random

from tests.fuzz import manifest
from tierstore.blocks import crc32c
from tierstore.checkpoint.fragment import for_all_ranks
from tierstore.checkpoint.manifest import Manifest
from tierstore.checkpoint.merge import merge
from tierstore.errors import IncompleteError

_TRAILER = 8  # bytes
_SECOND = manifest.checkpoints()[0][1].to_bytes()


def SEEDS() -> list[bytes]:
    return [bytes(parts[0].to_bytes()) for parts in manifest.checkpoints()]


def parse(data: bytes) -> None:
    if len(data) % 4 == 0:
        for_all_ranks(data)
    try:
        merged = merge([data])
    except IncompleteError:  # it is of a job of two
        merged = merge([_SECOND, data])
    with suppress(IncompleteError):
        manifest.restore(Manifest.open(merged.buffer), merged.buffer)


def mutate(data: bytes, rng: Random) -> bytes:
    return manifest.mutate(data[:-_TRAILER], rng) + data[-_TRAILER:]


def reseal(data: bytes) -> bytes:
    """Put the fragment's CRC32C right."""
    body = data[:-_TRAILER]
    return body + b"TSF1" + crc32c(body).to_bytes(4, "little")
