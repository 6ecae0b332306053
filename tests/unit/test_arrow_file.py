"""Arrow files that nobody vouches for: each is refused before it can crash or fill the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from tests.attempts import fragment
from tierstore.checkpoint.arrow_file import read_table
from tierstore.checkpoint.columns import schema
from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.merge import merge
from tierstore.errors import FormatError
from tierstore.keys import Attempt

ATTEMPT = Attempt(100, 1, 1)


def stored(size: int = 3) -> bytearray:
    """A manifest with a value of `size` bytes."""
    value = ValueEntry("v", "", "json", b" " * size)
    return merge([fragment(ATTEMPT, 0, 1, values=[value]).to_bytes()]).buffer


def batch_of(data: bytearray) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.py_buffer(data)).get_batch(0)


def written(*batches: pa.RecordBatch, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_file(sink, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def test_what_pyarrow_writes_is_read() -> None:
    assert read_table(written(batch_of(stored())), "x").info.attempt == ATTEMPT


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_nothing_is_decompressed(codec: str) -> None:
    bomb = written(batch_of(stored(32 * 1024**2)), compression=codec)
    assert len(bomb) < 256 * 1024
    before = pa.total_allocated_bytes()
    with pytest.raises(FormatError, match="not compressed"):
        read_table(bomb, "x")
    assert pa.total_allocated_bytes() - before < 1024**2


def test_one_batch_of_one_row() -> None:
    batch = batch_of(stored())
    with pytest.raises(FormatError, match="more than one batch"):
        read_table(written(batch, batch), "x")
    two = pa.Table.from_batches([batch, batch]).combine_chunks().to_batches()[0]
    for other in (two, batch.slice(0, 0)):
        with pytest.raises(FormatError, match="not one row"):
            read_table(written(other), "x")


def test_another_schema_with_a_dictionary() -> None:
    texts = pa.array(["a"]).dictionary_encode()
    kinds = pa.schema([("info", texts.type)], metadata=schema().metadata)
    with pytest.raises(FormatError, match="another schema"):
        read_table(written(pa.RecordBatch.from_arrays([texts], schema=kinds)), "x")


def test_a_batch_that_is_a_dictionary() -> None:
    """The schema is ours, and the message behind it is of another kind."""
    texts = pa.array(["a"]).dictionary_encode()
    other = written(pa.RecordBatch.from_arrays([texts], names=["info"]))
    ours = bytes(stored())
    start = [_end_of_schema(data) for data in (ours, other)]
    with pytest.raises(FormatError, match="something else than one batch"):
        read_table(ours[: start[0]] + other[start[1] :], "x")


def _end_of_schema(data: bytes) -> int:
    reader = pa.BufferReader(data[8:])
    pa.ipc.MessageReader.open_stream(reader).read_next_message()
    return 8 + reader.tell()


def replaced(array: pa.Array, child: str, change: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """A list of structs with another child."""
    rows = array.flatten()
    fields = list(rows.type)
    children = [
        change(rows.field(f.name)) if f.name == child else rows.field(f.name) for f in fields
    ]
    inner = pa.StructArray.from_arrays(children, fields=fields)
    return pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), inner)


def with_offsets(array: pa.Array, offsets: list[int]) -> pa.Array:
    """An array whose offsets, of texts or lists, are others."""
    width = pa.int64() if pa.types.is_large_string(array.type) else pa.int32()
    valid, _, *data = array.buffers()[:3]
    children = [array.values] if pa.types.is_list(array.type) else None
    buffers = [valid, pa.array(offsets, width).buffers()[1], *([] if children else data)]
    return pa.Array.from_buffers(array.type, len(array), buffers, children=children)


LIES: dict[str, tuple[str, str, Callable[[pa.Array], pa.Array]]] = {
    "a name's offset": ("tensors", "name", lambda a: with_offsets(a, [0, 1 << 40, 2])),
    "an offset that goes back": ("tensors", "name", lambda a: with_offsets(a, [0, 2, 1])),
    "a list's offset": ("tensors", "shape", lambda a: with_offsets(a, [0, 1 << 30, 3])),
    "no text": ("tensors", "name", lambda a: pa.array([b"\xff", b"\xfe"]).cast(
        pa.large_binary()).view(pa.large_string())),
    "no value": ("files", "size", lambda a: pa.array([None] * len(a), a.type)),
    "no name": ("tensors", "name", lambda a: pa.array([None] * len(a), a.type)),
    "no list": ("tensors", "shape", lambda a: pa.array([None] * len(a), a.type)),
    "no number in a list": ("tensors", "shape", lambda a: pa.array([[None]] * len(a), a.type)),
    "an unknown kind": ("values", "kind", lambda a: pa.array(["pickle"] * len(a), a.type)),
    "a value that is no text": ("values", "data", lambda a: pa.array([b"\xff"] * len(a), a.type)),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_every_offset_and_character_is_checked(lie: str) -> None:
    column, child, change = LIES[lie]
    batch = batch_of(stored())
    at = batch.schema.get_field_index(column)
    columns = batch.columns
    columns[at] = replaced(columns[at], child, change)
    data = written(pa.RecordBatch.from_arrays(columns, schema=batch.schema))
    with pytest.raises(FormatError, match=r"^x "):
        read_table(data, "x")


@pytest.mark.parametrize(
    "change",
    [
        {"world_size": 300_000_000},
        {"world_size": 1, "ranks": [0, 1]},
        {"ranks": []},
        {"ranks": [0, 0]},
        {"ranks": [1, 0]},
        {"ranks": [-1, 0]},
        {"rank": 5},
        {"rank": -2},
        {"declared": -2},
        {"nonce": "../x"},
        {"attempt": "5"},
    ],
    ids=str,
)
def test_whose_it_is_can_be_true(change: dict[str, object]) -> None:
    batch = batch_of(stored())
    info = batch.column(0)[0].as_py() | {"world_size": 2, "ranks": [0, 1]} | change
    columns = [pa.array([info], batch.schema.field("info").type), *batch.columns[1:]]
    with pytest.raises(FormatError, match=r"^x"):
        read_table(written(pa.RecordBatch.from_arrays(columns, schema=batch.schema)), "x")
