"""The manifest: searched where it lies, and never mistaken for something else."""

from __future__ import annotations

import gc
import mmap
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.manifest import fragments
from tests.attempts import fragment, nonce_of
from tierstore.checkpoint.columns import schema
from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.manifest import Manifest, Tensor, TensorChunk
from tierstore.checkpoint.merge import merge
from tierstore.errors import FormatError, NewerFormatError
from tierstore.image.layout import Chunk
from tierstore.keys import Attempt

ATTEMPT = Attempt(100, 1, 1)


@pytest.fixture
def stored() -> memoryview:
    return merge([fragment(ATTEMPT, rank).to_bytes() for rank in range(2)]).buffer


def test_what_it_belongs_to(stored: memoryview) -> None:
    manifest = Manifest.open(stored)
    assert (manifest.attempt, manifest.nonce) == (ATTEMPT, nonce_of(1))
    assert (manifest.world_size, manifest.ranks, len(manifest)) == (2, (0, 1), 2)


def test_find(stored: memoryview) -> None:
    manifest = Manifest.open(stored)
    tensor = manifest.find("w")
    assert tensor is not None
    assert (tensor.name, tensor.dtype, tensor.shape) == ("w", "float32", (4, 3))
    assert tensor.path == '["w"]'
    one, two = tensor.chunks
    assert two == TensorChunk((2, 0), (2, 3), 1, two.offset, 24)
    assert one.file == 0
    assert tensor.offsets.tolist() == [[0, 0], [2, 0]]
    assert tensor.sizes.dtype == np.int64
    for absent in ("", "a", "v", "ww", "x", "\U0010ffff"):
        assert manifest.find(absent) is None


def test_many_tensors_at_once_are_those_one_by_one(stored: memoryview) -> None:
    manifest = Manifest.open(stored)

    def seen(tensor: Tensor) -> list[object]:
        return [tensor.name, tensor.dtype, tensor.path, tensor.shape, tensor.chunks]

    one_by_one = [manifest.tensor(row) for row in range(len(manifest))]
    assert list(map(seen, manifest)) == list(map(seen, one_by_one))
    assert list(map(seen, manifest.tensors([1, 0, 1]))) == [
        seen(one_by_one[row]) for row in (1, 0, 1)
    ]
    for tensor in manifest:
        places = [(chunk.file, chunk.offset) for chunk in tensor.chunks]
        assert tensor.only_place == (places[0] if len(places) == 1 else None)


def test_files(stored: memoryview) -> None:
    files = Manifest.open(stored).files
    assert [file.name for file in files] == ["00000-000.safetensors", "00001-000.safetensors"]
    assert files[-1].name == files[1:][0].name == "00001-000.safetensors"
    assert np.asarray(files[0].crcs).dtype == np.uint32
    with pytest.raises(IndexError):
        files[2]


def test_values(stored: memoryview) -> None:
    manifest = Manifest.open(stored)
    assert [value.name for value in manifest.values()] == ["rng.0", "rng.1"]
    assert manifest.find_value("rng.1") == ValueEntry("rng.1", '["rng", 1]', "json", b'{"a":1}')
    assert manifest.find_value("rng") is None


def test_nothing_at_all_is_a_checkpoint_too() -> None:
    part = fragment(ATTEMPT, 0, 1, chunks=[], values=[], declared=0)
    manifest = Manifest.open(merge([part.to_bytes()]).buffer)
    assert list(manifest.names()) == list(manifest.values()) == list(manifest.files) == []
    assert manifest.find("w") is None


def test_names_sort_as_their_utf8_does() -> None:
    names = ["\uffff", "\U00010000", "é", "z", "Z", "\x01", "日本"]
    chunks = [Chunk(name, "int8", (1,), (0,), (1,)) for name in names]
    part = fragment(ATTEMPT, 0, 1, chunks=chunks, values=[], declared=len(names))
    manifest = Manifest.open(merge([part.to_bytes()]).buffer)
    assert list(manifest.names()) == sorted(names) == sorted(names, key=str.encode)
    assert all(manifest.find(name) for name in names)


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_cut_short(stored: memoryview, size: int) -> None:
    with pytest.raises(FormatError, match=r"^the key is not"):
        Manifest.open(stored[:size], "the key")


def arrow_file(kind: pa.Schema) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, kind):
        pass
    return memoryview(sink.getvalue())


def test_an_arrow_file_of_another_schema() -> None:
    with pytest.raises(FormatError, match="another schema"):
        Manifest.open(arrow_file(pa.schema([("x", pa.int8())])))


def test_one_of_a_newer_format_says_so_whatever_its_columns() -> None:
    newer = pa.schema([("x", pa.int8())], metadata={"tierstore.format": "3"})
    with pytest.raises(NewerFormatError, match="format 3"):
        Manifest.open(arrow_file(newer))


def test_the_right_schema_without_a_row() -> None:
    with pytest.raises(FormatError):
        Manifest.open(arrow_file(schema()))


STORED = {
    "info": "struct<attempt: string, nonce: string, world_size: int32, ranks: list<item: int32>, "
    "declared: int64, rank: int32, started: double, parent: string>",
    "tensors": "list<item: struct<name: large_string, dtype: string, shape: list<item: int64>, "
    "path: large_string, offsets: list<item: int64>, sizes: list<item: int64>, "
    "chunks: list<item: struct<file: int32, offset: int64, nbytes: int64>>>>",
    "files": "list<item: struct<name: string, size: int64, crcs: list<item: uint32>>>",
    "values": "list<item: struct<name: large_string, path: large_string, kind: string, "
    "data: large_binary>>",
}


def test_the_schema_is_what_is_stored_for_ever() -> None:
    """A change here needs a new format number and a reader for this one."""
    types = {field.name: str(field.type).replace(" not null", "") for field in schema()}
    assert types == STORED
    old = {field.name: str(field.type).replace(" not null", "") for field in schema(1)}
    assert old == STORED | {"info": STORED["info"].replace(", started: double, parent: string", "")}


def test_importing_needs_no_pyarrow() -> None:
    code = (
        "import sys, tierstore.checkpoint.store, tierstore.checkpoint.collect;"
        "sys.exit('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def no_gc() -> Iterator[None]:
    """No search for cycles among millions of objects that are in none."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.slow
@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize(("ranks", "tensors", "per"), [(1000, 1000, 1), (4, 250, 1000)])
def test_a_million_chunks(tmp_path: Path, ranks: int, tensors: int, per: int) -> None:
    """How long it takes: `python -m benchmarks manifest`."""
    merged = merge([each.to_bytes() for each in fragments(ranks, tensors, per)])
    assert merged.chunks == 1_000_000
    assert len(merged.buffer) < 60e6
    path = tmp_path / "manifest"
    path.write_bytes(merged.buffer)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensor = Manifest.open(memoryview(mapped)).find(f"layer.{tensors // 2}.weight")
    assert tensor is not None
    assert len(tensor.files) == 1_000_000 // tensors
