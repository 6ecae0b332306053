"""Launch records, as a look at a run reads them."""

from __future__ import annotations

from random import Random

from tests.attempts import claim, contents, save
from tests.fuzz.commit import reseal
from tests.mutations import mutate_json
from tests.shards import tier
from tierstore.backends.memory import MemoryBackend
from tierstore.checkpoint.store import RunStore
from tierstore.keys import Attempt
from tierstore.ladder.survey import survey

__all__ = ["SEEDS", "mutate", "parse", "reseal"]

_URL = "memory://fuzz-launch"


def SEEDS() -> list[bytes]:
    found = []
    for parent in (None, Attempt(100, 1, 1)):
        store = RunStore(MemoryBackend(_URL), "run")
        store.backend.delete([store.keys.launch(2)])
        claim(store, 2, parent)
        found.append(contents(store.backend, store.keys.launches)[store.keys.launch(2)])
    claim(store, 1)
    save(store, Attempt(100, 1, 1))
    return found


def parse(data: bytes) -> None:
    backend = MemoryBackend(_URL)
    store = RunStore(backend, "run")
    backend.create(store.keys.launch(2), data)
    seen = survey([tier("memory", backend)], "run")
    if not seen.timeline:
        list(map(str, seen.errors.values()))


def mutate(data: bytes, rng: Random) -> bytes:
    return mutate_json(data, rng)
