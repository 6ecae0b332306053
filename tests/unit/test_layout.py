"""Layouts: the rules of the stored form, and that the safetensors library agrees."""

from __future__ import annotations

import json
import random
import struct
import sys
from collections import Counter
from tempfile import NamedTemporaryFile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save

from tierstore.errors import FormatError, NewerFormatError, PlanError
from tierstore.image.dtypes import stored_type
from tierstore.image.header import header_bytes, header_size, parse_name, read_header, stored_name
from tierstore.image.layout import Chunk, ImageLayout, plan_layout

OWN = [
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
]
FOREIGN = {
    "complex128": torch.float64,
    "complex32": torch.float16,
    "bits16": torch.uint8,
    "int4": torch.uint8,
}


def whole(name: str, shape: tuple[int, ...] = (4,), dtype: str = "float32") -> Chunk:
    return Chunk(name, dtype, shape, (0,) * len(shape), shape)


def fill(layout: ImageLayout, contents: list[bytes]) -> bytearray:
    """Return the image, with every byte that is not a header's or a chunk's set to 0xEE."""
    image = bytearray(b"\xee" * layout.size)
    layout.write_headers(memoryview(image))
    for index, content in enumerate(contents):
        start = layout.image_offset(index)
        image[start : start + len(content)] = content
    return image


def files(layout: ImageLayout, image: bytearray) -> list[bytes]:
    return [bytes(image[s.image_offset : s.image_offset + s.size]) for s in layout.segments]


def contents_of(chunks: list[Chunk]) -> list[bytes]:
    source = random.Random(3)
    return [
        bytes(b & 1 for b in data) if chunk.dtype == "bool" else data
        for chunk in chunks
        for data in [source.randbytes(chunk.nbytes)]
    ]


def load(data: bytes) -> dict[str, torch.Tensor]:
    """What the safetensors library reads from a file (from bytes it lacks E8M0 and F4)."""
    with NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(data)
        file.flush()
        return load_file(file.name)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 0, 3), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", OWN)
def test_safetensors_gives_back_what_it_has_itself(dtype, shape):
    chunks = [whole("t", shape, dtype)]
    layout = plan_layout(chunks, rank=0)
    contents = contents_of(chunks)
    tensor = load(files(layout, fill(layout, contents))[0])["t"]
    assert tensor.dtype is getattr(torch, dtype)
    # A byte of float4 is two stored elements, of which 0-dim has none to double.
    assert tuple(tensor.shape) == ((1,) if dtype.startswith("float4") and shape == () else shape)
    assert bytes_of(tensor) == contents[0]


@pytest.mark.parametrize("shape", [(), (0,), (3, 2)], ids=str)
@pytest.mark.parametrize("dtype", sorted(FOREIGN))
def test_safetensors_opens_what_it_does_not_have(dtype, shape):
    chunks = [whole("t", shape, dtype)]
    layout = plan_layout(chunks, rank=0)
    contents = contents_of(chunks)
    tensor = load(files(layout, fill(layout, contents))[0])["t"]
    assert tensor.dtype is FOREIGN[dtype]
    assert tuple(tensor.shape) == stored_type(dtype).shape(shape)
    assert bytes_of(tensor) == contents[0]


def test_whole_tensors_keep_their_names_and_transformers_can_tell_the_framework(tmp_path):
    chunks = [whole("model.w"), Chunk("model.v", "float32", (8, 6), (4, 0), (4, 6))]
    layout = plan_layout(chunks, rank=3)
    (segment,) = layout.segments
    assert segment.name == "00003-000.safetensors"
    path = tmp_path / segment.name
    path.write_bytes(files(layout, fill(layout, contents_of(chunks)))[0])
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"model.w", "model.v@4,0"}
        assert file.metadata() == {"format": "pt", "tierstore": "1"}


def test_larger_elements_come_first_then_names_then_offsets():
    chunks = [
        whole("a", (3,), "uint8"),
        whole("b", (3,), "complex128"),
        whole("c", (3,), "float64"),
        whole("a2", (3,), "float64"),
        whole("d", (3,), "int16"),
        Chunk("e", "int16", (30,), (10,), (3,)),
        Chunk("e", "int16", (30,), (9,), (1,)),
    ]
    layout = plan_layout(chunks, rank=0)
    image = fill(layout, contents_of(chunks))
    entries = read_header(files(layout, image)[0])
    assert [(entry.name, entry.chunk) for entry in entries] == [
        ("b", None),
        ("a2", None),
        ("c", None),
        ("d", None),
        ("e", (9,)),
        ("e", (10,)),
        ("a", None),
    ]


def test_nothing_to_save_is_an_empty_image():
    layout = plan_layout([], rank=0)
    assert (layout.segments, layout.placements, layout.size) == ((), (), 0)


def test_a_chunk_larger_than_a_segment_is_alone():
    chunks = [whole("a", (3 << 10,)), whole("big", (1 << 16,)), whole("z", (3 << 10,))]
    layout = plan_layout(chunks, rank=0, segment_bytes=20_000)
    assert [place.segment for place in layout.placements] == [0, 1, 2]
    assert layout.segments[1].size > 20_000


def test_segments_close_before_they_outgrow_their_size():
    chunks = [whole(f"t{n:04}", (500,)) for n in range(100)]
    layout = plan_layout(chunks, rank=0, segment_bytes=32_768)
    assert len(layout.segments) > 5
    assert all(segment.size <= 32_768 for segment in layout.segments)
    # None could have taken one more.
    assert all(segment.size + 2_000 > 32_768 for segment in layout.segments[:-1])


def test_entries_of_a_segment_are_limited():
    chunks = [whole(f"t{n:06}", (1,), "uint8") for n in range(50_001)]
    layout = plan_layout(chunks, rank=0)
    assert len(layout.segments) == 2
    assert len(read_header(layout.segments[0].header)) == 50_000
    assert len(read_header(layout.segments[1].header)) == 1


def test_headers_stay_below_the_formats_limit():
    # Escaped as six characters each, three such names do not fit in one header.
    chunks = [whole(f"{n}" + "\x01" * 6_000_000, (1,), "uint8") for n in range(3)]
    layout = plan_layout(chunks, rank=0)
    assert [place.segment for place in layout.placements] == [0, 0, 1]
    with pytest.raises(PlanError, match="characters"):
        plan_layout([whole("\x01" * 17_000_000)], rank=0)


def test_more_segments_than_names_for_them():
    chunks = [whole(f"t{n:04}", (1,), "uint8") for n in range(1_001)]
    with pytest.raises(PlanError, match="raise segment_bytes"):
        plan_layout(chunks, rank=0, segment_bytes=1)


@pytest.mark.parametrize(
    "chunks",
    [
        [whole("a"), whole("a")],
        [whole("a"), whole("a", (9,), "uint8")],
        [
            Chunk("a", "float32", (8,), (4,), (4,)),
            Chunk("a", "float32", (8,), (4,), (2,)),
        ],
    ],
    ids=["same", "other type", "other size"],
)
def test_two_chunks_of_one_name_are_an_error(chunks):
    with pytest.raises(PlanError, match="two chunks"):
        plan_layout(chunks, rank=0)


@pytest.mark.parametrize(
    ("shape", "offsets", "sizes"),
    [
        ((4,), (2,), (3,)),
        ((4,), (-1,), (2,)),
        ((4,), (2,), (4,)),
        ((4, 4), (0,), (2,)),
        ((4,), (0, 0), (2,)),
        ((4,), (0,), (-1,)),
    ],
)
def test_a_chunk_outside_its_tensor_is_an_error(shape, offsets, sizes):
    with pytest.raises(PlanError, match="does not lie in"):
        plan_layout([Chunk("a", "float32", shape, offsets, sizes)], rank=0)


def test_a_name_that_is_no_unicode_is_an_error():
    with pytest.raises(PlanError, match="Unicode"):
        plan_layout([whole("a\ud800")], rank=0)


NAMES = [
    "w",
    "w@0",
    "w@0,1",
    "w@0,1@",
    "w@",
    "@",
    "@@",
    "@0",
    "",
    "__metadata__",
    "__metadata__@",
    "user@example.org",
    "w@0,",
    "w@,0",
    "w\n@0",
    "w@٣",
    'quote"\\\x00\u2028',
    "naïve.\U0001f600",
]


def test_awkward_names_stay_apart_and_come_back():
    chunks = [whole(name, (2, 2)) for name in NAMES]
    chunks += [Chunk(name, "float32", (4, 4), (0, 2), (2, 2)) for name in NAMES]
    layout = plan_layout(chunks, rank=0)
    (data,) = files(layout, fill(layout, contents_of(chunks)))
    assert len(load(data)) == len(chunks)
    entries = {(entry.name, entry.chunk) for entry in read_header(data)}
    assert entries == {(name, at) for name in NAMES for at in (None, (0, 2))}


@given(st.text(alphabet="w@0,_\n") | st.text(), st.lists(st.integers(0, 99), min_size=1))
def test_names_are_reversible(name, offsets):
    stored = stored_name(name, tuple(offsets), whole=False)
    assert parse_name(stored) == (name, tuple(offsets))
    stored = stored_name(name, tuple(offsets), whole=True)
    assert parse_name(stored) == (name, None)
    assert stored != "__metadata__"


@st.composite
def chunk_lists(draw):
    names = draw(
        st.lists(st.text(alphabet="abc@0,é", max_size=6), unique=True, min_size=1, max_size=12)
    )
    chunks = []
    for name in names:
        dtype = draw(st.sampled_from(OWN + sorted(FOREIGN)))
        shape = tuple(draw(st.lists(st.integers(0, 40), max_size=3)))
        if shape and shape[0] >= 2 and draw(st.booleans()):
            cut = draw(st.integers(1, shape[0] - 1))
            rest = (0,) * (len(shape) - 1)
            chunks.append(Chunk(name, dtype, shape, (0, *rest), (cut, *shape[1:])))
            chunks.append(Chunk(name, dtype, shape, (cut, *rest), (shape[0] - cut, *shape[1:])))
        else:
            chunks.append(whole(name, shape, dtype))
    return chunks


@given(chunk_lists(), st.sampled_from([1, 5_000, 20_000, 1 << 29]), st.randoms())
@settings(max_examples=150, deadline=None)
def test_every_layout_keeps_the_rules(chunks, segment_bytes, shuffler):
    layout = plan_layout(chunks, rank=1, segment_bytes=segment_bytes)
    contents = contents_of(chunks)
    image = fill(layout, contents)

    assert layout.size % 4096 == 0
    end = 0
    for segment in layout.segments:
        assert segment.image_offset % 4096 == 0
        assert len(segment.header) % 4096 == 0
        assert segment.image_offset == -(-end // 4096) * 4096
        end = segment.image_offset + segment.size
    assert 0 <= layout.size - end < 4096
    for chunk, place in zip(chunks, layout.placements, strict=True):
        assert place.nbytes == chunk.nbytes
        assert place.offset % stored_type(chunk.dtype).itemsize == 0
    for number, segment in enumerate(layout.segments):
        members = [place for place in layout.placements if place.segment == number]
        assert segment.size <= segment_bytes or len(members) == 1
        assert segment.size == len(segment.header) + sum(place.nbytes for place in members)

    wanted = {
        stored_name(chunk.name, chunk.offsets, whole=chunk.whole): content
        for chunk, content in zip(chunks, contents, strict=True)
    }
    found = {}
    for data in files(layout, image):
        found |= {name: bytes_of(tensor) for name, tensor in load(data).items()}
        for entry in read_header(data):
            stored = stored_name(entry.name, entry.chunk or (), whole=entry.chunk is None)
            assert data[entry.offset : entry.offset + entry.nbytes] == wanted[stored]
    assert found == wanted

    order = list(range(len(chunks)))
    shuffler.shuffle(order)
    again = plan_layout([chunks[i] for i in order], rank=1, segment_bytes=segment_bytes)
    assert again.segments == layout.segments
    assert again.placements == tuple(layout.placements[i] for i in order)


def test_planning_takes_a_few_calls_a_chunk():
    """Of Python and of C, all that it calls included; how long it takes, benchmarks tell."""

    def chunk(n: int) -> Chunk:
        dtype = "bfloat16" if n % 2 else "float32"
        name = f"model.layers.{n}.self_attn.q_proj.weight"
        return Chunk(name, dtype, (4096, 512), (1024, 0), (1024, 512))

    def calls(count: int) -> int:
        chunks, seen = [chunk(n) for n in range(count)], Counter()
        sys.setprofile(lambda _frame, event, _arg: seen.update([event]))
        try:
            plan_layout(chunks, rank=0, segment_bytes=1 << 40)
        finally:
            sys.setprofile(None)
        return seen["call"] + seen["c_call"]

    few, many = calls(100), calls(1000)
    assert few / 100 < 40
    assert many < 11 * few, "it grows with the chunks, not with their square"


def with_json(text: str | bytes) -> bytes:
    return header_bytes(text.encode() if isinstance(text, str) else text)


def one(**fields) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | fields
    return with_json(json.dumps({"t": entry}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        b"\x00" * 8,
        struct.pack("<Q", 100_000_001) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        b"\x80\x02}q\x00." * 10,
        with_json("[]"),
        with_json("nul"),
        with_json(b"\xff\xfe"),
        with_json('{"t":1}'),
        with_json('{"t":{}}'),
        with_json('{"t":[]}'),
        with_json('{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        with_json('{"__metadata__":[]}'),
        with_json('{"__metadata__":{"format":1}}'),
        with_json('{"__metadata__":{"tierstore":"x"}}'),
        with_json('{"__metadata__":{"tierstore":""}}'),
        with_json("[" * 100_000),
        with_json('{"t":' * 100_000),
        with_json("9" * 10_000),
        one(dtype="F33"),
        one(dtype=["F32"]),
        one(dtype=None),
        one(shape=[-2]),
        one(shape=[2.0]),
        one(shape=[True, 2]),
        one(shape=2),
        one(shape=[3]),
        one(shape=[1] * 100_000),
        one(data_offsets=[0]),
        one(data_offsets=[8, 0]),
        one(data_offsets=[0, 9]),
        one(data_offsets=[-8, 0]),
        one(data_offsets=[4, 12]),
        one(data_offsets=[0, 1e999]),
        one(dtype="F4", shape=[3], data_offsets=[0, 1]),
        with_json(
            '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
            '"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}'
        ),
    ],
    ids=lambda data: repr(data[8:48]),
)
def test_a_bad_header_is_a_format_error(data):
    with pytest.raises(FormatError):
        read_header(data)


def test_a_shape_of_huge_numbers_is_not_multiplied():
    """A header has room for 25,000 numbers of 4,000 digits, whose product takes hours."""
    with pytest.raises(FormatError, match="an impossible shape or place"):
        read_header(one(shape=[10**4000] * 3))


def test_a_newer_format_is_named():
    with pytest.raises(NewerFormatError, match="install a newer tierstore"):
        read_header(with_json('{"__metadata__":{"tierstore":"2"}}'))


@given(st.binary(max_size=200))
def test_any_bytes_give_entries_or_a_format_error(data):
    for candidate in (data, with_json(data)):
        try:
            read_header(candidate)
        except FormatError:
            continue


@given(chunk_lists(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_header_gives_entries_or_a_format_error(chunks, data):
    header = bytearray(plan_layout(chunks, rank=0).segments[0].header)
    text_end = len(bytes(header).rstrip())
    header[data.draw(st.integers(0, text_end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read_header(header)
    except FormatError:
        return


def test_foreign_files_can_be_read():
    data = save({"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.bfloat16)})
    entries = {entry.name: entry for entry in read_header(data)}
    assert entries["b"].shape == (3,)
    at = entries["a"].offset
    assert data[at : at + entries["a"].nbytes] == bytes_of(torch.ones(4, dtype=torch.bfloat16))
    assert header_size(data[:8]) == min(entry.offset for entry in entries.values())
