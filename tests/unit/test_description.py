"""The description of a staged shard: told and understood exactly, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.attempts import fragment
from tests.fuzz.manifest import checkpoints
from tierstore.checkpoint.commit import seal
from tierstore.checkpoint.description import Description
from tierstore.checkpoint.fragment import FileEntry, Fragment
from tierstore.errors import FormatError, IncompleteError, IntegrityError, NewerFormatError
from tierstore.image.folder import ShardName
from tierstore.keys import Attempt

ATTEMPT = Attempt(7, 2, 1)
WORLD = 2


def described(**changes: Any) -> Description:
    """Rank 1's: one chunk and one value; rank 0 writes two chunks and one value."""
    return Description("run", [3, 2], fragment(ATTEMPT, 1, WORLD, **changes))


def bare(part: Fragment) -> Fragment:
    return replace(part, files=[FileEntry(file.name, file.size, ()) for file in part.files])


def test_it_is_read_as_it_was_told() -> None:
    told = described()
    read = Description.from_bytes(told.to_bytes())
    assert (read.run, read.declared, read.checkable) == ("run", [3, 2], True)
    assert read.name == ShardName.parse(f"run@{ATTEMPT}-{'2'.zfill(16)}@00001.shard")
    assert read.to_bytes() == told.to_bytes()
    assert read.nbytes == sum(file.size for file in told.fragment.files)


@pytest.mark.parametrize("parts", checkpoints(), ids=range(len(checkpoints())))
def test_every_fragment_comes_back(parts: list[Fragment]) -> None:
    for part in parts:
        counts = [len(each.chunks) + len(each.values) for each in parts]
        told = replace(part, declared=sum(counts))
        read = Description.from_bytes(Description("r", counts, told).to_bytes())
        assert read.fragment.to_bytes() == told.to_bytes()


def test_without_crcs_it_cannot_be_checked() -> None:
    told = described()
    read = Description.from_bytes(replace(told, fragment=bare(told.fragment)).to_bytes())
    assert not read.checkable
    assert [len(file.crcs) for file in read.fragment.files] == [0]


def test_the_fragment_of_a_tier_names_its_ranks_and_what_they_declared() -> None:
    files = [FileEntry("x", 5, [1])]
    part = described().fragment_for([1], files)
    assert (part.ranks, part.declared, part.files) == ((1,), 2, files)
    assert described().fragment_for([0, 1], files).declared == 5


def head(**changes: Any) -> bytes:
    said = {"declared": [3, 2], "format": 2, "shard": str(described().name)} | changes
    return seal(said) + described().fragment.to_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        head(declared=[3, 1]),
        head(declared=[2, 3]),
        head(declared=[3]),
        head(declared=[3, True]),
        head(declared=[3, -1]),
        head(declared={"a": 1}),
        head(shard=f"@{described().name.id}@00001.shard"),
        head(shard=None),
        head(shard=str(described().name).replace("@00001", "@00000")),
        described(declared=-1).to_bytes(),
        described(ranks=(1,), declared=2).to_bytes(),
        described(files=[FileEntry("00000-000.safetensors", 4200, [0])]).to_bytes(),
        described(files=[FileEntry("00001-001.safetensors", 4200, [0])]).to_bytes(),
        described(files=[FileEntry("00001-000.safetensors", 4200, [0, 0])]).to_bytes(),
        described(files=[FileEntry("00001-000.safetensors", 4100, [0])]).to_bytes(),
        described(files=[FileEntry("00001-000.safetensors", 0, [])]).to_bytes(),
        described(files=[FileEntry("00001-000.safetensors", 2**60, [])]).to_bytes(),
    ],
)
def test_what_cannot_be_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Description.from_bytes(data)


def test_damage_is_noticed() -> None:
    data = described().to_bytes()
    line = data.index(b"\n")
    for at in (*range(0, line, 7), *range(line + 1, len(data), 97)):
        with pytest.raises((FormatError, IntegrityError)):
            Description.from_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for size in range(0, len(data), 101):
        with pytest.raises((FormatError, IntegrityError)):
            Description.from_bytes(data[:size])


def test_a_newer_one_is_named_so() -> None:
    with pytest.raises(NewerFormatError):
        Description.from_bytes(head(format=3))


def test_a_tensor_that_one_rank_alone_holds_must_be_whole() -> None:
    part = fragment(ATTEMPT, 0, 1, declared=2)
    holed = replace(part, chunks=part.chunks[:1], placements=part.placements[:1])
    chunk = replace(holed.chunks[0], shape=(3, 3))
    told = Description("run", [2], replace(holed, chunks=[chunk]))
    with pytest.raises(IncompleteError):
        Description.from_bytes(told.to_bytes())
