"""The parts of DCP's reader and writer, each by itself."""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan

from tests.attempts import launch_of, save
from tierstore.backends.memory import MemoryBackend
from tierstore.checkpoint.fragment import FileEntry, Fragment, ValueEntry
from tierstore.checkpoint.manifest import Manifest
from tierstore.checkpoint.merge import merge
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch
from tierstore.config import load_config
from tierstore.errors import (
    CheckpointError,
    CorruptBlockError,
    InvalidKeyError,
    PlanError,
    TierstoreError,
    UnreachableError,
)
from tierstore.image.layout import Chunk, plan_layout
from tierstore.keys import Attempt, AttemptId
from tierstore.ladder.tiers import OpenTier
from tierstore.transfer.source import AlignedBuffers
from tierstore_torch.dcp import notice as dcp_notice
from tierstore_torch.dcp.checkpoint_id import parse_id
from tierstore_torch.dcp.errors import cause, portable
from tierstore_torch.dcp.metadata import metadata_failing, metadata_of, path_text
from tierstore_torch.dcp.notice import Notice, Parcel
from tierstore_torch.dcp.session import Life, session_of
from tierstore_torch.dcp.source import gather_sources
from tierstore_torch.state.regions import PIECE, region_wants

pytestmark = pytest.mark.torch


# checkpoint_id


@pytest.mark.parametrize(
    ("text", "run", "step"),
    [
        ("llama-8b/100", "llama-8b", 100),
        ("llama-8b/step-100", "llama-8b", 100),
        ("llama-8b/step_000100", "llama-8b", 100),
        ("llama-8b/0", "llama-8b", 0),
        ("llama-8b", "llama-8b", None),
        ("llama-8b/latest", "llama-8b", None),
        (Path("llama-8b/7"), "llama-8b", 7),
    ],
)
def test_an_id_is_run_and_step(text: Any, run: str, step: int | None) -> None:
    parsed = parse_id(text)
    assert (parsed.run, parsed.step) == (run, step)


@pytest.mark.parametrize(
    "text",
    ["", "/", "run/", "/100", "a/b/100", "run/epoch=3", "run/-1", "run/1.5", "run/1e3", "r n/1",
     "run/step-", "run/steps-1", "run/" + "1" * 13, "run/\u0661"],
)  # fmt: skip
def test_anything_else_is_no_id(text: str) -> None:
    with pytest.raises(InvalidKeyError, match="checkpoint_id"):
        parse_id(text)


def test_with_a_run_given_only_the_last_part_of_an_id_counts() -> None:
    assert str(parse_id("outputs/checkpoint/step-100", "llama")) == "llama/100"
    assert str(parse_id("/abs/path/latest", "llama")) == "llama/latest"
    with pytest.raises(InvalidKeyError, match="does not end in a step"):
        parse_id("outputs/final", "llama")


# notice


def notice(step: int = 1) -> Notice:
    return Notice(Attempt(step, 1, 1), Launch(1, "0" * 16, None, 2, 1.5), 2, 5)


def test_a_notice_arrives_by_being_unpickled_and_leaves_nothing_in_the_plan() -> None:
    dcp_notice.expect()
    plan = SavePlan([], storage_data=Parcel(notice(3)))
    arrived = pickle.loads(pickle.dumps(plan))
    assert arrived.storage_data is None  # what plan caching keeps
    assert dcp_notice.collect() == notice(3)


def test_a_notice_is_read_once_and_never_that_of_an_earlier_save() -> None:
    dcp_notice.deliver(notice())
    dcp_notice.expect()
    with pytest.raises(CheckpointError, match="was not told which attempt"):
        dcp_notice.collect()
    dcp_notice.deliver(notice())
    dcp_notice.collect()
    with pytest.raises(CheckpointError):
        dcp_notice.collect()


# errors


def test_what_cannot_be_pickled_is_raised_as_something_that_can() -> None:
    class Local(Exception):  # noqa: N818
        pass

    with pytest.raises(CheckpointError, match=r"Local: gone") as caught, portable():
        raise Local("gone")
    assert isinstance(caught.value.__cause__, Local)
    with pytest.raises(KeyError), portable():
        raise KeyError("as it is")


def test_the_cause_of_dcp_s_exception_is_ours_also_after_pickling() -> None:
    inner = CorruptBlockError("data/x", 3, ["s3: CRC32C 1 instead of 2"])
    nowhere = traceback.StackSummary()
    outer = CheckpointException("read", {2: (inner, nowhere), 5: (ValueError("later"), nowhere)})
    found = cause(pickle.loads(pickle.dumps(outer)))
    assert isinstance(found, CorruptBlockError)
    assert (found.file, found.block, str(found)) == ("data/x", 3, str(inner))
    assert found.__notes__ == ["raised on rank 2"]
    plain = ValueError("not DCP's")
    assert cause(plain) is plain


# session


def tier(url: str = "memory://sessions") -> OpenTier:
    config = load_config(url).tiers[0]
    return OpenTier(config, MemoryBackend(url), (0,))


def test_one_life_is_one_launch_and_every_save_of_a_step_another_try(tmp_path: Path) -> None:
    tiers = [tier()]
    session = session_of("one", load_config(tmp_path.as_uri()))
    for expected in (Attempt(5, 1, 1), Attempt(5, 1, 2), Attempt(6, 1, 1)):
        launch, attempt = session.begin(tiers, expected.step, 1)
        assert attempt == expected
        assert launch.nonce == session.life.nonce
    assert session_of("one", load_config(tmp_path.as_uri())) is session


def test_in_another_process_the_launch_is_found_by_the_trainer_s_nonce(tmp_path: Path) -> None:
    tiers = [tier()]
    config = load_config(tmp_path.as_uri())
    trainer = session_of("two", config)
    trainer.begin(tiers, 5, 1)
    saver = session_of("two", config, Life(trainer.life.nonce, None))
    assert saver is trainer  # the same life
    # A save process has no session yet: it gets one of the same life.
    other = session_of("two", load_config((tmp_path / "other").as_uri()), trainer.life)
    assert other is not trainer
    assert other.begin(tiers, 7, 1)[1] == Attempt(7, 1, 1)


def test_a_rollback_begins_a_new_launch_and_reading_the_own_head_does_not(tmp_path: Path) -> None:
    tiers = [tier()]
    session = session_of("three", load_config(tmp_path.as_uri()))
    session.goes_to(50)
    launch, attempt = session.begin(tiers, 50, 1)
    first = AttemptId(attempt, launch.nonce)
    session.restored(first)
    session.goes_to(200)
    assert session.begin(tiers, 200, 1)[0] == launch
    session.restored(first)
    session.goes_to(60)
    launch, attempt = session.begin(tiers, 60, 1)
    assert (launch.number, launch.parent) == (2, first)


def test_going_back_without_a_load_is_a_line_of_its_own(tmp_path: Path) -> None:
    tiers = [tier("memory://back")]
    config = load_config(tmp_path.as_uri())
    session = session_of("four", config)
    session.goes_to(200)
    trainers, launch = session.life, session.begin(tiers, 200, 1)[0]
    save(RunStore(tiers[0].backend, "four"), Attempt(200, 1, 1), launch=launch)
    session.goes_to(5)
    assert session.begin(tiers, 5, 1)[0].number == 2
    # A save process that only knows whose life it is, and not how far that came.
    other = session_of("four", load_config((tmp_path / "other").as_uri()), trainers)
    other.goes_to(7)
    assert other.begin(tiers, 7, 1)[0].number == 3
    other.goes_to(8)
    assert other.begin(tiers, 8, 1)[0].number == 3


# metadata


def manifest_of(chunks: Sequence[Chunk], values: Sequence[ValueEntry] = ()) -> Manifest:
    layout = plan_layout(chunks, rank=0)
    files = [FileEntry(s.name, s.size, [0] * -(-s.size // 2**22)) for s in layout.segments]
    count = len(chunks) + len(values)
    fragment = Fragment(
        Attempt(1, 1, 1), launch_of(1), 0, (0,), 1, count, chunks, layout.placements, files, values
    )
    return Manifest.open(merge([fragment.to_bytes()]).buffer)


def test_metadata_is_made_only_where_it_is_looked_at() -> None:
    chunks = [
        Chunk(f"t{i}", "bfloat16", (4, 3), (row, 0), (2, 3)) for i in range(9) for row in (0, 2)
    ]
    manifest = manifest_of(chunks, [ValueEntry("step", "", "json", b"7")])
    metadata = metadata_of(manifest, StorageMeta())
    entries = metadata.state_dict_metadata
    entry = entries["t3"]
    assert isinstance(entry, TensorStorageMetadata)
    assert (entry.size, entry.properties.dtype) == (torch.Size((4, 3)), torch.bfloat16)
    assert [(tuple(c.offsets), tuple(c.sizes)) for c in entry.chunks] == [
        ((0, 0), (2, 3)),
        ((2, 0), (2, 3)),
    ]
    assert isinstance(entries["step"], BytesStorageMetadata)
    assert list(entries) == [*(f"t{i}" for i in range(9)), "step"]
    assert len(entries) == 10
    assert "t8" in entries
    assert "t9" not in entries
    with pytest.raises(KeyError):
        entries["t9"]
    assert set(entries._made) == {"t3", "step", "t8"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("stored", "path"),
    [
        (path_text(("a", 0, "b.c")), ("a", 0, "b.c")),
        (json.dumps(["a", {"item": 2}, {"key": 5}]), ("a", 2, "5")),
        (json.dumps([{"rank": 3}, "rng"]), ("x",)),
        ("", ("x",)),
    ],
)
def test_a_path_is_given_back_as_planners_have_it(stored: str, path: tuple[Any, ...]) -> None:
    manifest = manifest_of([Chunk("x", "float32", (1,), (0,), (1,), stored)])
    assert metadata_of(manifest, StorageMeta()).planner_data["x"] == path


def test_metadata_that_could_not_be_read_fails_at_the_first_look() -> None:
    error = UnreachableError("no route")
    failing = metadata_failing(error, StorageMeta())
    for look in (len, list, lambda m: "x" in m, lambda m: m["x"]):
        with pytest.raises(UnreachableError):
            look(failing.state_dict_metadata)


# gather source


@st.composite
def memories(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """(dtype, elements, gap in front) of tensors that may be neighbours in one storage."""
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(["uint8", "int16", "float32", "float64"]),
                st.integers(0, 40),
                st.sampled_from([0, 0, 0, 8]),
            ),
            min_size=1,
            max_size=12,
        )
    )


@settings(max_examples=60, deadline=None)
@given(memories(), st.integers(1, 5000), st.booleans())
def test_gathered_parts_are_the_file(
    tensors: list[tuple[str, int, int]], step: int, staged: bool
) -> None:
    chunks, held = [], []
    base = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 16_384).astype(np.uint8))
    at = 0
    for index, (dtype, count, gap) in enumerate(tensors):
        chunk = Chunk(f"t{index:02d}", dtype, (count,), (0,), (count,))
        at = -(-(at + gap) // 8) * 8
        data = base[at : at + chunk.nbytes].view(getattr(torch, dtype))
        chunks.append(chunk)
        held.append(data if staged else data.clone())
        at += chunk.nbytes
    layout = plan_layout(chunks, rank=0, segment_bytes=6000)
    expected = [bytearray(segment.size) for segment in layout.segments]
    for segment, image in zip(layout.segments, expected, strict=True):
        image[: len(segment.header)] = segment.header
    for place, tensor in zip(layout.placements, held, strict=True):
        raw = tensor.numpy().tobytes()
        expected[place.segment][place.offset : place.offset + len(raw)] = raw
    sources = gather_sources(layout, chunks, [lambda t=t: t for t in held], AlignedBuffers(8192, 2))
    for segment, source, image in zip(layout.segments, sources, expected, strict=True):
        for offset in range(0, segment.size, step):
            length = min(step, segment.size - offset)
            with source.view(offset, length) as part:
                assert bytes(part) == image[offset : offset + length]


def test_a_stretch_of_memory_is_lent_as_it_is_and_a_copy_dropped_after_use() -> None:
    whole = torch.arange(2000, dtype=torch.float32)
    chunks = [Chunk("a", "float32", (1000,), (0,), (1000,)),
              Chunk("b", "float32", (1000,), (0,), (1000,))]  # fmt: skip
    layout = plan_layout(chunks, rank=0)
    parts = [whole[:1000], whole[1000:]]
    resolved: list[int] = []

    def resolver(index: int) -> Any:
        def resolve() -> torch.Tensor:
            resolved.append(index)
            return parts[index]

        return resolve

    [source] = gather_sources(layout, chunks, [resolver(0), resolver(1)], AlignedBuffers(8192, 1))
    begin = len(layout.segments[0].header)
    with source.view(begin + 400, 4000) as part:  # across both tensors
        assert np.frombuffer(part, np.uint8).ctypes.data == whole.data_ptr() + 400
    with source.view(begin, 4000), source.view(begin + 4000, 4000):
        pass
    assert resolved == [0, 1]  # once each: kept until all bytes were sent
    with source.view(begin, 4000):
        pass
    assert resolved == [0, 1, 0]


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(3, dtype=torch.float64), "plan caching does not notice a new dtype"),
        (torch.zeros(4), r"shape \(4,\)"),
        (torch.eye(3)[0].to_sparse(), "no plain bytes"),
    ],
)
def test_a_tensor_that_is_not_what_was_planned_is_refused(tensor: Any, words: str) -> None:
    chunks = [Chunk("w", "float32", (3,), (0,), (3,))]
    layout = plan_layout(chunks, rank=0)
    [source] = gather_sources(layout, chunks, [lambda: tensor], AlignedBuffers(8192, 1))
    with pytest.raises(PlanError, match=words), source.view(0, layout.segments[0].size):
        pass


# regions


@st.composite
def boxes(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    sizes = draw(st.lists(st.integers(1, 7), min_size=0, max_size=4))
    low = [draw(st.integers(0, size - 1)) for size in sizes]
    length = [draw(st.integers(0, size - at)) for size, at in zip(sizes, low, strict=True)]
    return sizes, low, length


def fetch_from(data: bytes, wants: Any) -> int:
    total = 0
    for want in wants:
        piece = data[want.offset : want.offset + want.length]
        assert len(piece) == want.length
        total += want.length
        if want.into is not None:
            want.into[:] = piece
        else:
            want.sink(memoryview(bytearray(piece)))
    return total


@settings(max_examples=200, deadline=None)
@given(
    boxes(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.booleans(),
    st.integers(16, 2**20),
)
def test_any_part_of_a_chunk_reaches_any_tensor(
    box: tuple[list[int], list[int], list[int]], dtype: torch.dtype, transposed: bool, piece: int
) -> None:
    sizes, low, length = box
    stored = torch.arange(prod(sizes), dtype=torch.float32).reshape(sizes)
    data = b"head" * 5 + stored.numpy().tobytes()
    into = torch.full([length[i] for i in range(len(length))], -1.0, dtype=dtype)
    if transposed and into.dim() > 1:
        into = torch.full(length[::-1], -1.0, dtype=dtype).permute(*range(into.dim())[::-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tierstore_torch.state.regions.PIECE", piece)
        wants = list(region_wants("f", 20, tuple(sizes), "float32", tuple(low), into))
    fetch_from(data, wants)
    slices = tuple(slice(a, a + n) for a, n in zip(low, length, strict=True))
    assert torch.equal(into, stored[slices].to(dtype))
    assert all(want.into is not None or want.length <= max(piece, 4) for want in wants)


def test_a_row_range_goes_straight_into_the_tensor_and_a_column_range_in_pieces() -> None:
    target = torch.empty(10, 1000)
    [want] = region_wants("f", 4096, (100, 1000), "float32", (5, 0), target)
    assert want.into is not None
    assert (want.offset, want.length) == (4096 + 5 * 4000, 40_000)
    wide = torch.empty(4096, 10)
    pieces = list(region_wants("f", 0, (4096, 4096), "float32", (0, 100), wide))
    assert all(want.sink is not None and want.length <= PIECE for want in pieces)
    assert len(pieces) == 4096 * 4096 * 4 // PIECE


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int4", "uint1", "bits8", "bits16", "float8_e4m3fn", "float8_e8m0fnu",
     "float4_e2m1fn_x2", "complex32", "complex64", "complex128", "uint64", "bfloat16"],
)  # fmt: skip
def test_bits_are_kept_for_every_dtype_whatever_the_strides(dtype: str) -> None:
    kind: torch.dtype = getattr(torch, dtype)
    raw = torch.from_numpy(np.random.default_rng(1).integers(0, 2, 6 * 8 * kind.itemsize, np.uint8))
    stored = raw.view(kind).reshape(6, 8)
    into = torch.empty(8 * 6 * kind.itemsize, dtype=torch.uint8).view(kind)
    target = into.reshape(8, 6).t()[:, 2:5]
    fetch_from(raw.numpy().tobytes(), region_wants("f", 0, (6, 8), dtype, (0, 2), target))
    want = stored[:, 2:5]
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
    assert torch.equal(target.view(bits[kind.itemsize]), want.view(bits[kind.itemsize]))


def test_errors_of_tierstore_are_portable_themselves() -> None:
    with pytest.raises(TierstoreError), portable():
        raise UnreachableError("x", url="s3://b", key="k", retry_after=1.5)
