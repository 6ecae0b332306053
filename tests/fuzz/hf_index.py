"""Indices of Hugging Face models, beside the files that they name."""

from __future__ import annotations

import json
from random import Random

from tests.mutations import mutate_json
from tierstore.backends.memory import MemoryBackend
from tierstore.convert import huggingface
from tierstore.convert.formats import guess_source
from tierstore.convert.imports import plan_import
from tierstore.convert.place import Place
from tierstore.convert.selection import TensorSelection
from tierstore.image.layout import Chunk, plan_layout

_INDEX = "model.safetensors.index.json"
_FILES = {f"model-0000{n}-of-00002.safetensors": f"w{n}" for n in (1, 2)}


def SEEDS() -> list[bytes]:
    backend = MemoryBackend("memory://fuzz-index")
    for file, name in _FILES.items():
        (segment,) = plan_layout([Chunk(name, "int8", (8,), (0,), (8,))], rank=0).segments
        backend.create(file, segment.header.ljust(segment.size))
    weights = {name: file for file, name in _FILES.items()}
    return [json.dumps({"metadata": {"total_size": 16}, "weight_map": weights}, indent=2).encode()]


def parse(data: bytes) -> None:
    backend = MemoryBackend("memory://fuzz-index")
    backend.create(_INDEX, data)
    place = Place(backend, "", None)
    assert guess_source(place) == "hf"
    with huggingface.read(place, allow_pickle=False) as incoming:
        plan = plan_import(incoming, TensorSelection())
        assert {item.chunk.name for item in plan.items} <= {"w1", "w2"}


def mutate(data: bytes, rng: Random) -> bytes:
    return mutate_json(data, rng)
