"""Descriptions of staged shards, as a process meets them that had no part in the save."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.fuzz import commit, fragment, manifest
from tests.mutations import mutate_json
from tierstore.blocks import block_count
from tierstore.checkpoint.description import Description
from tierstore.checkpoint.fragment import FileEntry, read_fragment
from tierstore.image.dtypes import stored_type
from tierstore.image.folder import ShardName


def _samples() -> list[Description]:
    found = []
    for parts in manifest.checkpoints():
        counts = [len(part.chunks) + len(part.values) for part in parts]
        for part in parts:
            told = Description("run", counts, replace(part, declared=sum(counts)))
            bare = [FileEntry(file.name, file.size, ()) for file in part.files]
            found += [told, replace(told, fragment=replace(told.fragment, files=bare))]
    return found


def SEEDS() -> list[bytes]:
    return [told.to_bytes() for told in _samples()]


def parse(data: bytes) -> None:
    """Do what a sender does, but for the bytes."""
    told = Description.from_bytes(data)
    assert ShardName.parse(str(told.name)) == told.name
    part, sizes = told.fragment, [file.size for file in told.fragment.files]
    for chunk, place in zip(part.chunks, part.placements, strict=True):
        stored_type(chunk.dtype).shape(chunk.sizes)
        assert place.nbytes == chunk.nbytes
        assert 0 <= place.offset <= sizes[place.segment] - place.nbytes
    if told.checkable:
        assert all(len(file.crcs) == block_count(file.size) for file in part.files)
    sent = told.fragment_for([part.rank], part.files)
    assert read_fragment(sent.to_bytes()).info.declared == told.declared[part.rank]


def mutate(data: bytes, rng: Random) -> bytes:
    """Damage the line in front, or what a fragment's own fuzzer would."""
    end = data.find(b"\n") + 1
    if rng.random() < 0.3:
        return mutate_json(data[:end], rng) + b"\n" + data[end:]
    return data[:end] + fragment.mutate(data[end:], rng)


def reseal(data: bytes) -> bytes:
    """Put both checksums right."""
    end = data.find(b"\n") + 1
    rest = data[end:].lstrip(b"\n")
    return commit.reseal(data[:end]) + fragment.reseal(rest)
