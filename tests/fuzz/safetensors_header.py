"""Headers of safetensors files: our own segments', and those that are imported."""

from __future__ import annotations

import json
from random import Random

from tests.attempts import rows_of
from tests.mutations import mutate_json
from tierstore.backends.memory import MemoryBackend
from tierstore.convert import huggingface
from tierstore.convert.imports import plan_import
from tierstore.convert.place import Place
from tierstore.convert.selection import TensorSelection
from tierstore.image.header import PREFIX, header_bytes, read_header
from tierstore.image.layout import Chunk, plan_layout

_FILE = "model.safetensors"
_DATA = 64 * 1024  # bytes behind a header are not kept beyond this


def SEEDS() -> list[bytes]:
    shapes = [
        ("f", "float32", (2, 3)),
        ("s", "bfloat16", ()),
        ("e", "int8", (0, 5)),
        ("ü@1", "bool", (4,)),
    ]
    chunks = [Chunk(n, d, s, (0,) * len(s), s) for n, d, s in shapes]
    found = []
    for held in (rows_of(1, 2), rows_of(0, 1), chunks, []):
        layout = plan_layout(held, rank=0)
        found += [s.header.ljust(s.size, b"\1") for s in layout.segments]
    text = b'{"__metadata__":{"format":"pt"},"x":{"dtype":"F4","shape":[2,2],"data_offsets":[0,2]}}'
    return [*found, header_bytes(text) + b"\1\1"]


def parse(data: bytes) -> None:
    for foreign in (False, True):
        for entry in read_header(data, foreign=foreign):
            assert entry.offset >= PREFIX
            assert not (foreign and entry.chunk)
    backend = MemoryBackend("memory://fuzz-header")
    backend.create(_FILE, data)
    with huggingface.read(Place(backend, _FILE, None), allow_pickle=False) as incoming:
        plan = plan_import(incoming, TensorSelection())
        assert plan.nbytes < len(data)
        for item in incoming.items:
            item.read(0, memoryview(bytearray(item.chunk.nbytes)))


def mutate(data: bytes, rng: Random) -> bytes:
    size = PREFIX + int.from_bytes(data[:PREFIX], "little")
    text = mutate_json(data[PREFIX:size], rng)
    return header_bytes(text) + data[size:]


def reseal(data: bytes) -> bytes:
    """Have the length of the JSON be right, and the file as long as its tensors say."""
    end = data.rfind(b"}") + 1
    text, rest = data[PREFIX:end], data[end:]
    header = header_bytes(text)
    try:
        ends = [entry["data_offsets"][1] for entry in json.loads(text).values() if "dtype" in entry]
        if 0 <= max(ends, default=0) < _DATA:
            rest = bytes(max(ends, default=0))
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        pass
    return header + rest
