"""Arrays of the door: numpy's basic indexing, over any chunks, reading and checking little."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tierstore
from tests.attempts import flip, fragment, nonce_of
from tests.stored import Saved, plain, save_arrays
from tierstore.backends.local.backend import LocalBackend
from tierstore.blocks import BLOCK_SIZE, block_crcs
from tierstore.checkpoint.delete import delete
from tierstore.checkpoint.fragment import FileEntry, ValueEntry
from tierstore.checkpoint.paths import marked
from tierstore.checkpoint.store import RunStore
from tierstore.errors import (
    AttemptDeletedError,
    CorruptBlockError,
    FormatError,
    PlanError,
    UnknownNameError,
    UnsafePickleError,
)
from tierstore.image.layout import Chunk, plan_layout
from tierstore.keys import Attempt

pytestmark = pytest.mark.usefixtures("no_leaks")

MIB = 1024**2
SHAPE = (7, 5, 6)
WHOLE = np.arange(7 * 5 * 6, dtype=np.int32).reshape(SHAPE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tier"


def backend(folder: Path) -> LocalBackend:
    return LocalBackend(str(folder))


@pytest.fixture
def cubes(folder: Path) -> Iterator[list[tierstore.Array]]:
    """One array, saved whole, by rows and in uneven boxes by three ranks."""
    cuts: dict[str, Any] = {"whole": (), "rows": ((2, 4),), "boxes": ((3,), (1, 4), (2, 5))}
    tensors = {name: plain(WHOLE, each) for name, each in cuts.items()}
    save_arrays(backend(folder), "r", tensors, world=3, segment_bytes=4096)
    with tierstore.open(folder.as_uri()) as store:
        checkpoint = store["r"].latest()
        yield [checkpoint[name] for name in checkpoint]


def basic() -> st.SearchStrategy[Any]:
    return hnp.basic_indices(SHAPE, allow_newaxis=True, allow_ellipsis=True)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=basic())
def test_an_index_gives_what_numpy_gives(cubes: list[tierstore.Array], index: Any) -> None:
    wanted = WHOLE[index]
    for array in cubes:
        found = array[index]
        assert type(found) is type(wanted)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "index",
    [7, -8, (0, 5), (0, 0, 0, 0), (..., ...), (0, 0, 0, 0, ...), slice(None, None, 0)],
    ids=str,
)
def test_a_wrong_index_is_refused_as_by_numpy(cubes: list[tierstore.Array], index: Any) -> None:
    with pytest.raises((IndexError, ValueError)) as wanted:
        WHOLE[index]
    with pytest.raises(wanted.type) as found:
        cubes[0][index]
    assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize(
    "index", [1.5, "x", [0, 1], np.array([0, 1]), True, np.ones(7, bool)], ids=str
)
def test_other_indices_are_refused(cubes: list[tierstore.Array], index: Any) -> None:
    with pytest.raises(IndexError, match="only integers, slices"):
        cubes[0][index]


def test_numpys_own_integers_are_indices(cubes: list[tierstore.Array]) -> None:
    assert cubes[0][np.int8(-1), np.array(2), np.uint64(3)] == WHOLE[-1, 2, 3]


def test_an_array_is_one_for_numpy(cubes: list[tierstore.Array]) -> None:
    for array in cubes:
        assert (array.shape, array.ndim, array.size) == (SHAPE, 3, WHOLE.size)
        assert (array.dtype, array.nbytes, len(array)) == (WHOLE.dtype, WHOLE.nbytes, 7)
        np.testing.assert_array_equal(np.asarray(array), WHOLE)
        np.testing.assert_array_equal(np.asarray(array, dtype=np.float64), WHOLE)
        np.testing.assert_array_equal(list(array), WHOLE)
        with pytest.raises(ValueError, match="copied"):
            np.asarray(array, copy=False)
        result = array[1:3]
        assert result.flags.c_contiguous
        assert result.flags.writeable
        assert result.flags.owndata or result.base is not None


# Dtypes


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "float32", "float64", "complex64", "complex128", "bfloat16"]
FLOAT8 = [f"float8_{kind}" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")]


@pytest.mark.parametrize("dtype", ["bool", *INTEGERS, *FLOATS, *FLOAT8])
def test_dtypes_come_as_numpy_has_them(folder: Path, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    data = np.array([[0.5, 1, 2], [4, 0.25, 1]]).astype(kind)
    scalar, empty = data[0, 1].reshape(()), np.empty((3, 0, 2), kind)
    tensors = {
        "x": Saved(data, dtype, ((1,),)),
        "s": Saved(scalar, dtype),
        "e": Saved(empty, dtype),
    }
    save_arrays(backend(folder), "r", tensors)
    with tierstore.open(folder.as_uri()) as store:
        found = store["r"].latest()
        assert found["x"].dtype == kind
        assert found["x"].stored_dtype == dtype
        np.testing.assert_array_equal(
            found["x"][::-1, 1:].view("u1"), data[::-1, 1:].copy().view("u1")
        )
        assert found["s"][...].shape == found["s"].shape == ()
        assert found["s"][()] == data[0, 1]
        assert type(found["s"][()]) is kind.type
        assert found["e"][...].shape == (3, 0, 2)
        assert found["e"][1:].shape == (2, 0, 2)
        for unsized in (len, iter):
            with pytest.raises(TypeError):
                unsized(found["s"])


@pytest.mark.parametrize(
    ("dtype", "width"), [("int4", 1), ("bits16", 2), ("float4_e2m1fn_x2", 1), ("complex32", 4)]
)
def test_a_dtype_that_numpy_lacks_is_refused_with_what_to_do(
    folder: Path, dtype: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ml_dtypes, "complex32", raising=False)  # as older ones are
    data = np.arange(6 * width, dtype=np.uint8).reshape(3, 2, width)
    save_arrays(backend(folder), "r", {"x": Saved(data, dtype, ((1,), (1,)), (3, 2))})
    with tierstore.open(folder.as_uri()) as store:
        array = store["r"].latest()["x"]
        assert (array.shape, array.nbytes) == ((3, 2), data.nbytes)
        assert dtype in repr(array)
        for touch in (lambda: array.dtype, lambda: array[0], lambda: np.asarray(array)):
            with pytest.raises(PlanError, match=rf"x is of {dtype}") as caught:
                touch()
            assert "`.raw`" in caught.value.hint
        wanted = data[..., 0] if width == 1 else data
        assert array.raw.shape == wanted.shape
        np.testing.assert_array_equal(array.raw[...], wanted)
        np.testing.assert_array_equal(array.raw[::2, ..., -1:], wanted[::2, ..., -1:])


def test_raw_gives_the_bytes_of_any_array(folder: Path) -> None:
    data = np.arange(12, dtype="<f4").reshape(4, 3)
    save_arrays(backend(folder), "r", {"x": plain(data, ((1,), (2,)))}, world=2)
    with tierstore.open(folder.as_uri()) as store:
        raw = store["r"].latest()["x"].raw
        wanted = data[..., None].view(np.uint8)
        assert (raw.shape, raw.dtype) == ((4, 3, 4), np.dtype(np.uint8))
        np.testing.assert_array_equal(raw[1:, ::2, 1:3], wanted[1:, ::2, 1:3])


@pytest.mark.parametrize("dtype", [">f8", "<M8[ns]", "<U3", "|S5", "<f8"])
def test_a_numpy_array_that_was_saved_comes_as_it_was(folder: Path, dtype: str) -> None:
    data = np.arange(12).astype(dtype).reshape(4, 3)
    path = marked('["x"]', data.dtype.str)
    plain_bytes = data.view(np.uint8).reshape(4, 3, -1)
    saved = Saved(plain_bytes, "uint8", ((1,),), path=path)
    if dtype == "<f8":
        saved = Saved(data, "float64", ((1,),), path=path)
    save_arrays(backend(folder), "r", {"x": saved})
    with tierstore.open(folder.as_uri()) as store:
        array = store["r"].latest()["x"]
        assert (array.shape, array.dtype) == (data.shape, data.dtype)
        np.testing.assert_array_equal(array[::-2, 1:], data[::-2, 1:])
        assert array[1, 1] == data[1, 1]


@pytest.mark.parametrize("mark", ["<U0", "<f4", "<M8[xx]"])
def test_an_array_that_cannot_be_is_refused(folder: Path, mark: str) -> None:
    data = np.zeros((2, 8), np.uint8)
    path = marked('["x"]', mark)
    save_arrays(backend(folder), "r", {"x": Saved(data, "uint8", path=path)})
    with tierstore.open(folder.as_uri()) as store, pytest.raises(FormatError, match="x: "):
        store["r"].latest()["x"]


# What is read


def read_by(store: tierstore.Store, action: Any) -> tuple[int, Any]:
    """Bytes that an action reads of the first tier, and its result."""
    (tier, *_) = store._ladder.tiers
    before = tier.backend.snapshot().bytes_read
    result = action()
    return tier.backend.snapshot().bytes_read - before, result


def test_a_slice_reads_only_the_blocks_that_hold_it(folder: Path) -> None:
    data = np.arange(64 * MIB // 4, dtype=np.float32).reshape(64, -1)  # a row is 1 MiB
    tensors = {"whole": plain(data), "rows": plain(data, ((13, 40),))}
    save_arrays(backend(folder), "r", tensors, world=2)
    with tierstore.open(folder.as_uri()) as store:
        run = store["r"]
        assert read_by(store, run.latest)[0] < 64 * 1024
        for array in (run.latest()[name] for name in tensors):
            for index, most in (
                (slice(30, 34), 3),
                (5, 2),
                ((7, slice(0, 10)), 1),
                (slice(None, None, 16), 4 * 2),  # 16 rows apart, of which each lies in 2 blocks
                (slice(60, 0, -30), 2 * 2),
                ((slice(3, 50, 20), slice(100, 200)), 3),
            ):
                read, found = read_by(store, lambda a=array, i=index: a[i])
                np.testing.assert_array_equal(found, data[index])
                assert read <= most * BLOCK_SIZE, index
        read, _ = read_by(store, lambda: run.latest()["whole"][...])
        assert read < data.nbytes + 2 * BLOCK_SIZE


def test_4_mib_of_a_tensor_of_1_gib_cost_at_most_12_mib(folder: Path) -> None:
    attempt, chunk = Attempt(1, 1, 1), Chunk("model.w", "float32", (256, MIB), (0, 0), (256, MIB))
    row = np.arange(MIB, dtype=np.float32)
    rows = (0, 17, 99, 255)
    layout = plan_layout([chunk], rank=0, segment_bytes=2**40)
    (segment,), (place,) = layout.segments, layout.placements
    store_of = RunStore(backend(folder), "r")
    path = folder / store_of.keys.attempt(attempt, nonce_of(1)).segment(segment.name)
    path.parent.mkdir(parents=True)
    with path.open("w+b") as file:  # most of it is a hole
        file.write(segment.header)
        file.truncate(segment.size)
        for index in rows:
            file.seek(place.offset + index * row.nbytes)
            file.write(row.tobytes())
        file.flush()
        with mmap.mmap(file.fileno(), 0) as mapped:
            crcs = block_crcs(memoryview(mapped))
    entry = FileEntry(segment.name, segment.size, crcs)
    parts = {"chunks": [chunk], "placements": layout.placements, "files": [entry], "values": ()}
    store_of.write_fragment(fragment(attempt, 0, 1, **parts, declared=1))
    assert store_of.try_commit(attempt, nonce_of(1))
    with tierstore.open(folder.as_uri()) as store:
        assert store["r"].latest()["model.w"].nbytes == 1024 * MIB
        for low in rows:
            read, found = read_by(store, lambda a=low: store["r"].latest()["model.w"][a : a + 1])
            assert read <= 12 * MIB
            assert found.nbytes == 4 * MIB
            np.testing.assert_array_equal(found[0], row)


# Damage


def test_a_damaged_block_is_read_from_the_next_tier(tmp_path: Path) -> None:
    data = np.arange(3 * MIB, dtype=np.int32)
    tiers = [tmp_path / "a", tmp_path / "b"]
    for tier in tiers:
        save_arrays(backend(tier), "r", {"x": plain(data)})
    key = RunStore(backend(tiers[0]), "r").keys.attempt(Attempt(1, 1, 1), f"{1:016x}")
    file = key.segment("00000-000.safetensors")
    flip(backend(tiers[0]), file, BLOCK_SIZE + 5)
    with tierstore.open(*(tier.as_uri() for tier in tiers)) as store:
        array = store["r"].latest()["x"]
        np.testing.assert_array_equal(array[...], data)
        flip(backend(tiers[1]), file, BLOCK_SIZE + 6)
        np.testing.assert_array_equal(array[:1000], data[:1000])  # its block is good
        with pytest.raises(CorruptBlockError) as caught:
            array[...]
        text = str(caught.value)
        assert all(word in text for word in ("00000-000.safetensors", "block 1", "local", "local2"))


def test_a_checkpoint_that_was_deleted_meanwhile_says_so(folder: Path) -> None:
    store_of = RunStore(backend(folder), "r")
    save_arrays(store_of.backend, "r", {"x": plain(WHOLE)})
    with tierstore.open(folder.as_uri()) as store:
        array = store["r"].latest()["x"]
        delete(store_of, Attempt(1, 1, 1), grace=0)
        with pytest.raises(AttemptDeletedError):
            array[0]


# Values and names


def value(name: str, data: bytes, kind: Any = "json") -> ValueEntry:
    return ValueEntry(name, "", kind, data)


def test_a_checkpoint_is_a_mapping_of_tensors_and_values(folder: Path) -> None:
    values = [value("a", b"3"), value("p", b"\x80", "opaque"), value("t", b'{"$tuple":[1,"x"]}')]
    save_arrays(backend(folder), "r", {"x": plain(WHOLE), "b": plain(WHOLE)}, values=values)
    with tierstore.open(folder.as_uri()) as store:
        found = store["r"].latest()
        assert found.keys() == list(found) == ["a", "b", "p", "t", "x"]
        assert (len(found), "b" in found, "p" in found, "c" in found, 3 in found) == (
            *(5, True, True, False, False),
        )
        assert (found["a"], found["t"]) == (3, (1, "x"))
        with pytest.raises(UnsafePickleError, match="p is stored as a pickle"):
            found["p"]
        with pytest.raises(UnknownNameError, match="nothing called 'xx'") as caught:
            found["xx"]
        assert caught.value.hint == "did you mean 'x'?"
        assert isinstance(caught.value, KeyError)
        assert str(caught.value).endswith("(did you mean 'x'?)")
