"""Commits, as a look at a run and a restore read them."""

from __future__ import annotations

import json
from random import Random

from tests.attempts import contents, nonce_of, save
from tests.mutations import mutate_json
from tests.shards import tier
from tierstore.backends.memory import MemoryBackend
from tierstore.checkpoint.commit import seal
from tierstore.checkpoint.store import RunStore
from tierstore.keys import Attempt
from tierstore.ladder.find import choose

_URL = "memory://fuzz-commit"
_ATTEMPT = Attempt(100, 1, 1)


def SEEDS() -> list[bytes]:
    store = RunStore(MemoryBackend(_URL), "run")
    save(store, _ATTEMPT)
    (whole,) = contents(store.backend, store.keys.commits).values()
    store.backend.delete(
        list(contents(store.backend, store.keys.attempt(_ATTEMPT, nonce_of(1)).fragments))
    )
    return [whole]  # and no fragments to make it anew from


def parse(data: bytes) -> None:
    backend = MemoryBackend(_URL)
    store = RunStore(backend, "run")
    backend.create(store.keys.commit(_ATTEMPT), data)
    tiers = [tier("memory", backend)]
    choose(tiers, "run")


def reseal(data: bytes) -> bytes:
    """Put the record's own CRC32C right."""
    try:
        record = json.loads(data)
        record.pop("crc32c", None)
        return seal(record)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data


def mutate(data: bytes, rng: Random) -> bytes:
    return mutate_json(data, rng)
