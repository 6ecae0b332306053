"""Merging: whole sets become one manifest, and nothing that is wrong does."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.attempts import fragment, launch_of, rows_of
from tests.unit.test_tiling import cut
from tierstore.checkpoint.fragment import FileEntry, Fragment, ValueEntry
from tierstore.checkpoint.manifest import Manifest
from tierstore.checkpoint.merge import merge
from tierstore.errors import FormatError, IncompleteError, IntegrityError
from tierstore.image.layout import Chunk, Placement
from tierstore.keys import Attempt

ATTEMPT = Attempt(100, 1, 1)


def parts(world: int = 3, **changes: Any) -> list[Fragment]:
    return [fragment(ATTEMPT, rank, world, **changes) for rank in range(world)]


def merge_of(fragments: list[Fragment]) -> Manifest:
    return Manifest.open(merge([part.to_bytes() for part in fragments]).buffer)


def test_totals() -> None:
    merged = merge([part.to_bytes() for part in parts()])
    assert (merged.tensors, merged.chunks, merged.files) == (2, 4, 3)
    assert merged.nbytes == 3 * 2 * 3 * 4 + 7 * 2
    assert list(merged.sizes) == [f"{rank:05d}-000.safetensors" for rank in range(3)]


def test_the_order_of_fragments_does_not_matter() -> None:
    stored = [part.to_bytes() for part in parts()]
    results = {bytes(merge(order).buffer) for order in itertools.permutations(stored)}
    assert len(results) == 1


def test_equal_fragments_are_equal_bytes_whatever_the_order_of_their_rows() -> None:
    part = parts()[0]
    turned = replace(part, chunks=part.chunks[::-1], placements=part.placements[::-1])
    assert part.to_bytes() == turned.to_bytes()


def test_a_missing_rank() -> None:
    stored = [part.to_bytes() for part in parts()]
    with pytest.raises(IncompleteError, match=r"no fragment of ranks 1$"):
        merge([stored[0], stored[2]])
    with pytest.raises(IncompleteError):
        merge([])


def test_a_rank_twice() -> None:
    stored = [part.to_bytes() for part in parts()]
    with pytest.raises(FormatError, match="more than one"):
        merge([*stored, stored[1]])


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("attempt", {"attempt": Attempt(100, 1, 2)}),
        ("attempt", {"attempt": Attempt(101, 1, 1)}),
        ("nonce", {"launch": replace(launch_of(1), nonce="f" * 16)}),
        ("started", {"launch": replace(launch_of(1), started=2.0)}),
        ("world_size", {"world_size": 4}),
        ("ranks", {"ranks": (0, 2)}),
        ("declared", {"declared": 8}),
    ],
)
def test_fragments_of_different_attempts(what: str, change: dict[str, Any]) -> None:
    one, two, three = parts()
    with pytest.raises(FormatError, match=f"ranks 0 and 2 .*{what}"):
        merge_of([one, two, replace(three, **change)])


@pytest.mark.parametrize("declared", [6, 8])
def test_other_than_the_declared_number_of_items(declared: int) -> None:
    with pytest.raises(IncompleteError, match=f"{declared} items were declared"):
        merge_of(parts(declared=declared))


def with_chunks(rank: int, chunks: list[Chunk]) -> list[Fragment]:
    """A set of three in which one rank holds other chunks than it should."""
    return [
        fragment(ATTEMPT, r, 3, chunks=chunks if r == rank else None, declared=99) for r in range(3)
    ]


def test_a_hole_names_tensor_and_element() -> None:
    with pytest.raises(
        IncompleteError, match=r"'w': element \(2, 0\) of shape \(6, 3\) .* no rank"
    ):
        merge_of(with_chunks(1, []))


def test_an_overlap_names_tensor_element_and_ranks() -> None:
    doubled = [replace(rows_of(1, 3)[0], sizes=(3, 3))]
    with pytest.raises(FormatError, match=r"'w': element \(4, 0\) .* 2 times, by the ranks 1, 2"):
        merge_of(with_chunks(1, doubled))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "int32"}, "dtype 'int32', but rank 0 says 'float32'"),
        ({"shape": (8, 3)}, r"shape \(8, 3\), but rank 0 says \(6, 3\)"),
        ({"path": "x"}, "path 'x'"),
    ],
)
def test_ranks_that_disagree(change: dict[str, Any], said: str) -> None:
    with pytest.raises(FormatError, match=f"'w' of rank 1 has {said}"):
        merge_of(with_chunks(1, [replace(rows_of(1, 3)[0], **change)]))


def test_ranks_that_disagree_in_the_number_of_dimensions() -> None:
    flat = Chunk("w", "float32", (18,), (6,), (6,), '["w"]')
    with pytest.raises(FormatError, match=r"'w' of rank 1 has shape \(18,\), but rank 0"):
        merge_of(with_chunks(1, [flat]))


def test_a_chunk_outside_of_its_tensor() -> None:
    one, two, three = parts()
    with pytest.raises(FormatError, match=r"'w' of rank 2: the chunk at \(5, 0\) of size \(2, 3\)"):
        merge_of([one, two, replace(three, chunks=[replace(three.chunks[0], offsets=(5, 0))])])


def test_shapes_too_large_to_be_true() -> None:
    huge = (2**31, 2**31)
    chunk = Chunk("h", "uint8", huge, (0, 0), huge, "")
    part = fragment(ATTEMPT, 0, 1)
    place = Placement(0, 4096, 1)
    with pytest.raises(FormatError, match="too large"):
        merge_of([replace(part, chunks=[chunk], placements=[place])])


def test_a_box_of_other_dimensions_than_its_shape() -> None:
    part = fragment(ATTEMPT, 0, 1)
    chunk = replace(part.chunks[0], offsets=(0,))
    with pytest.raises(ValueError, match="'w': the chunk's box"):
        replace(part, chunks=[chunk, *part.chunks[1:]])


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (Placement(0, 1 << 40, 24), "outside"),
        (Placement(0, -1, 24), "outside"),
        (Placement(1, 4096, 24), "outside"),
        (Placement(-1, 4096, 24), "outside"),
        (Placement(0, 4096, 23), "cannot have 23 bytes"),
    ],
)
def test_bytes_outside_of_the_ranks_files(place: Placement, said: str) -> None:
    one, two, three = parts()
    with pytest.raises(FormatError, match=f"'w' of rank 1.*{said}"):
        merge_of([one, replace(two, placements=[place]), three])


def test_bytes_that_two_chunks_share() -> None:
    one, two, three = parts()
    first, second = one.placements
    places = [first, second._replace(offset=first.offset + 8)]
    with pytest.raises(FormatError, match=r"'(w|b)' of rank 0.* lies on bytes of tensor '(w|b)'"):
        merge_of([replace(one, placements=places), two, three])


def test_a_dtype_that_nobody_knows() -> None:
    one, two, three = parts()
    odd = replace(one.chunks[1], dtype="float7")
    with pytest.raises(FormatError, match="float7"):
        merge_of([replace(one, chunks=[one.chunks[0], odd]), two, three])


@pytest.mark.parametrize(
    "name", ["00001-000.safetensors", "x", "00000-../x", "00000-a/b", "00000-\n", ""]
)
def test_files_named_as_the_ranks_own(name: str) -> None:
    one, two, three = parts()
    with pytest.raises(FormatError, match="of rank 0"):
        merge_of([replace(one, files=[FileEntry(name, 4200, [1])]), two, three])


@pytest.mark.parametrize("crcs", [[], [1, 2]])
def test_as_many_crcs_as_blocks(crcs: list[int]) -> None:
    one, two, three = parts()
    files = [FileEntry(one.files[0].name, one.files[0].size, crcs)]
    with pytest.raises(FormatError, match="block CRCs"):
        merge_of([replace(one, files=files), two, three])


def test_one_value_from_two_ranks() -> None:
    values = [ValueEntry("rng", "", "json", b"1")]
    with pytest.raises(FormatError, match="'rng' was written by rank 0 and by rank 1"):
        merge_of(parts(values=values))


def test_a_value_with_a_tensors_name() -> None:
    one, two, three = parts()
    values = [ValueEntry("w", "", "json", b"1")]
    with pytest.raises(FormatError, match="both a tensor and a value"):
        merge_of([one, replace(two, values=values), three])


def test_every_flipped_byte_of_a_fragment_is_found() -> None:
    stored = [part.to_bytes() for part in parts()]
    for at in range(len(stored[1])):
        damaged = bytearray(stored[1])
        damaged[at] ^= 1 << (at % 8)
        with pytest.raises(IntegrityError, match=r"^key 1 is damaged"):
            merge([damaged, stored[0], stored[2]], ["key 1", "key 0", "key 2"])


@pytest.mark.parametrize("size", [0, 5, 8, 100, -1])
def test_a_fragment_cut_short(size: int) -> None:
    data = fragment(ATTEMPT, 0, 1).to_bytes()
    with pytest.raises(IntegrityError, match="damaged"):
        merge([data[:size]])


def test_a_fragment_that_contradicts_itself_cannot_be_made() -> None:
    part = fragment(ATTEMPT, 0, 2)
    for change in ({"rank": 5}, {"ranks": (1, 0)}, {"placements": []}):
        with pytest.raises(ValueError, match=r"rank|placements"):
            replace(part, **change)


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[int, dict[str, tuple[tuple[int, ...], Any]]]:
    """Tensors cut at random, each piece given to a rank."""
    world = draw(st.integers(1, 4))
    names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
    tensors = {}
    for name in draw(st.lists(names, max_size=5, unique=True)):
        shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
        pieces = cut(draw, ((0,) * len(shape), shape), 3)
        tensors[name] = shape, [(piece, draw(st.integers(0, world - 1))) for piece in pieces]
    return world, tensors


def pieces_in(tensors: dict[str, Any]) -> int:
    return sum(len(pieces) for _, pieces in tensors.values())


def fragments_of(world: int, tensors: dict[str, Any], declared: int) -> list[Fragment]:
    return [
        fragment(
            ATTEMPT,
            rank,
            world,
            chunks=[
                Chunk(name, "int16", shape, offsets, sizes, name)
                for name, (shape, pieces) in tensors.items()
                for (offsets, sizes), owner in pieces
                if owner == rank
            ],
            declared=declared,
            values=[],
        )
        for rank in range(world)
    ]


@given(checkpoints())
def test_random_checkpoints_come_back(checkpoint: tuple[int, dict[str, Any]]) -> None:
    world, tensors = checkpoint
    fragments = fragments_of(world, tensors, pieces_in(tensors))
    expected = {
        (chunk.name, chunk.offsets, chunk.sizes): (part.files[place.segment].name, *place[1:])
        for part in fragments
        for chunk, place in zip(part.chunks, part.placements, strict=True)
    }
    manifest = merge_of(fragments)
    assert list(manifest.names()) == sorted(tensors)
    found = {}
    for tensor in manifest:
        assert (tensor.shape, tensor.dtype, tensor.path) == (
            tensors[tensor.name][0],
            "int16",
            tensor.name,
        )
        assert tensor.chunks == sorted(tensor.chunks, key=lambda chunk: chunk.offsets)
        for chunk in tensor.chunks:
            place = (manifest.files[chunk.file].name, chunk.offset, chunk.nbytes)
            found[tensor.name, chunk.offsets, chunk.sizes] = place
            assert chunk.nbytes == 2 * int(np.prod(chunk.sizes))
    assert found == expected


@given(checkpoints(), st.data())
def test_a_random_checkpoint_less_one_chunk_is_refused(
    checkpoint: tuple[int, dict[str, Any]], data: st.DataObject
) -> None:
    world, tensors = checkpoint
    full = [name for name, (shape, _) in tensors.items() if 0 not in shape]
    if not full:
        return
    name = data.draw(st.sampled_from(full))
    declared, pieces = pieces_in(tensors), tensors[name][1]
    del pieces[data.draw(st.integers(0, len(pieces) - 1))]
    with pytest.raises(IncompleteError):
        merge_of(fragments_of(world, tensors, declared))
