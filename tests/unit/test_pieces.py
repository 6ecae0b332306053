"""Files that are put together from pieces while they are written."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import CheckpointError
from tierstore.image.layout import Chunk, plan_layout
from tierstore.transfer.pieces import PiecedSource, Slice, Stretch, segment_pieces
from tierstore.transfer.source import AlignedBuffers

BUFFERS = AlignedBuffers(4096, 2)


@dataclass(frozen=True)
class Tensor:
    """Bytes that lie anywhere in a larger row of them."""

    chunk: Chunk
    data: bytes
    at: int = 0


def tensor(data: bytes, name: str = "t", at: int = 0) -> Tensor:
    return Tensor(Chunk(name, "uint8", (len(data),), (0,), (len(data),)), data, at)


def fill(slices: Sequence[Slice[Tensor]]) -> None:
    for part in slices:
        end = part.begin + part.into.nbytes
        assert part.begin < end, "nothing is asked for that holds nothing"
        part.into[:] = part.item.data[part.begin : end]


PIECES = st.lists(
    st.tuples(st.booleans(), st.integers(0, 40)).map(
        lambda drawn: (
            random.Random(drawn[1]).randbytes(drawn[1])
            if drawn[0]
            else tensor(random.Random(drawn[1]).randbytes(drawn[1]))
        )
    ),
    min_size=1,
    max_size=8,
)


@given(PIECES, st.integers(1, 100))
def test_every_part_is_what_the_file_holds_there(pieces: list[bytes | Tensor], step: int) -> None:
    whole = b"".join(piece if isinstance(piece, bytes) else piece.data for piece in pieces)
    sent: list[Stretch[Tensor]] = []
    source = PiecedSource(pieces, BUFFERS, fill, sent=sent.extend)
    for offset in range(0, len(whole), step):
        length = min(step, len(whole) - offset)
        with source.view(offset, length) as part:
            assert bytes(part) == whole[offset : offset + length]
    tensors = [piece for piece in pieces if isinstance(piece, Tensor)]
    assert sum(each.length for each in sent) == sum(len(each.data) for each in tensors)


def test_what_lies_side_by_side_is_lent_and_not_copied() -> None:
    memory = memoryview(random.Random(0).randbytes(60))
    one, two = tensor(bytes(memory[:20]), at=0), tensor(bytes(memory[20:]), at=20)

    def lend(stretches: Sequence[Stretch[Tensor]]) -> memoryview:
        begin = stretches[0].item.at + stretches[0].begin
        return memory[begin : begin + sum(each.length for each in stretches)]

    source = PiecedSource([b"head", one, two], BUFFERS, fill, lend=lend)
    with source.view(4 + 10, 30) as part:
        assert part.obj is memory.obj
        assert part == memory[10:40]
    with source.view(2, 30) as part:  # some of it is no tensor
        assert part.obj is not memory.obj
        assert bytes(part) == b"ad" + bytes(memory[:28])
    with source.view(0, 0) as part:
        assert not part.nbytes


def test_what_could_not_be_sent_does_not_count_as_sent() -> None:
    sent: list[Stretch[Tensor]] = []
    source = PiecedSource([tensor(b"bytes")], BUFFERS, fill, sent=sent.extend)
    with pytest.raises(OSError, match="no"), source.view(0, 5):
        raise OSError("no")
    assert not sent
    with source.view(1, 3):
        pass
    assert sent == [Stretch(source._pieces[0], 1, 3)]


def test_a_segment_is_its_header_and_its_tensors_in_order() -> None:
    items = [tensor(b"x" * size, f"t{size}") for size in (3, 0, 5000, 1)]
    layout = plan_layout([item.chunk for item in items], rank=0)
    [pieces] = segment_pieces(layout, items)
    [segment] = layout.segments
    assert pieces[0] == segment.header
    assert sorted(len(item.data) for item in pieces[1:]) == [0, 1, 3, 5000]
    offsets = dict(zip(items, (place.offset for place in layout.placements), strict=True))
    at = len(segment.header)
    for item in pieces[1:]:
        assert offsets[item] == at
        at += len(item.data)
    longer = replace(items[0], chunk=replace(items[0].chunk, shape=(4,), sizes=(4,)))
    with pytest.raises(CheckpointError, match="not laid out as its header says"):
        segment_pieces(layout, [longer, *items[1:]])
