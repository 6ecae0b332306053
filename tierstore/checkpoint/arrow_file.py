"""A table as an Arrow IPC file: written alike by all, and read as if nobody vouched for it.

It is a *file* of one record batch, uncompressed, so that it is used as it lies in memory.
"""

from __future__ import annotations

import struct
from typing import Any

from tierstore.blocks import Buffer
from tierstore.checkpoint.columns import (
    FORMAT_KEY,
    Info,
    Table,
    arrow_array,
    arrow_list,
    info_kind,
    pool,
    schema,
    types,
)
from tierstore.checkpoint.commit import FORMAT, are_ranks, check_parent, check_started
from tierstore.errors import FormatError, NewerFormatError
from tierstore.keys import Attempt, RunKeys

_MAGIC = b"ARROW1"
_HEADER, _COMPRESSION = 2, 3  # members of Arrow's Message and RecordBatch
_KINDS = ("json", "opaque")


def write_table(table: Table, *, room: int = 0) -> bytearray:
    """Return the Arrow IPC file of a table, and `room` bytes behind it.

    Equal tables give equal bytes.
    """
    import pyarrow as pa

    info = table.info
    row = {
        "attempt": str(info.attempt),
        "nonce": info.nonce,
        "world_size": info.world_size,
        "ranks": list(info.ranks),
        "declared": info.declared,
        "rank": info.rank,
    }
    if info.format > 1:
        row |= {"started": info.started, "parent": str(info.parent or "")}
    lists = (table.tensors, table.files, table.values)
    columns = [arrow_array([row], types()[info_kind(info.format)])]
    columns += [arrow_list([0, len(x)], x) for x in lists]
    batch = pa.RecordBatch.from_arrays(columns, schema=schema(info.format))
    counted = pa.MockOutputStream()  # a buffer that grows takes twice the memory
    _write_batch(batch, counted)
    buffer = bytearray(counted.size() + room)
    _write_batch(batch, pa.FixedSizeBufferWriter(pa.py_buffer(buffer)))
    return buffer


def _write_batch(batch: Any, sink: Any) -> None:
    import pyarrow as pa

    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def read_table(buffer: Buffer, what: str) -> Table:
    """View an Arrow IPC file as a table without copying it.

    Nothing vouches for the bytes: Arrow checks every offset and every character, nothing is
    decompressed, and no value is null. What the numbers mean is for the caller to check.

    Args:
        buffer: the whole file, which must not change; the table keeps it alive.
        what: its name, for errors.

    Raises:
        NewerFormatError: a newer tierstore wrote it.
        FormatError: it is something else.
    """
    import pyarrow as pa

    try:
        version, batch = _only_batch(buffer, what)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, struct.error, StopIteration) as error:
        raise FormatError(f"{what} is not a readable Arrow file: {error!r}") from error
    if len(batch) != 1 or any(map(_has_null, batch.columns)):
        raise FormatError(f"{what} is not one row of values that are all there")
    return Table(_info(batch.column(0)[0].as_py(), version, what), *_lists(batch, what))


def _lists(batch: Any, what: str) -> list[Any]:
    """Return tensors, files and values; what is to be decoded of the last is text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = (column.flatten() for column in batch.columns[1:])
    # Arrow checks no offset where there is no row, but looks at the first one later.
    tensors, files, values = (rows if len(rows) else arrow_array([], rows.type) for rows in found)
    kinds, data = values.field("kind"), values.field("data")
    if not set(pc.unique(kinds, memory_pool=pool()).to_pylist()) <= set(_KINDS):
        raise FormatError(f"{what} has a value of an unknown kind")
    try:
        texts = pc.filter(data, pc.equal(kinds, "json", memory_pool=pool()), memory_pool=pool())
        pc.cast(texts, pa.large_string(), memory_pool=pool())
    except pa.ArrowInvalid as error:
        raise FormatError(f"{what} has a value that is no text") from error
    return [tensors, files, values]


def _only_batch(buffer: Buffer, what: str) -> tuple[int, Any]:
    """Return the format's version and the record batch of a file.

    It is a schema and one batch between magic words. The index at its end is not looked at: it
    would be a second opinion of what is in the file.
    """
    import pyarrow as pa

    whole = memoryview(buffer)
    if bytes(whole[:8]) != _MAGIC.ljust(8, b"\0") or bytes(whole[-6:]) != _MAGIC:
        raise FormatError(f"{what} is not an Arrow file, or not all of one")
    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(whole[8:]))
    found = pa.ipc.read_schema(messages.read_next_message())
    text = (found.metadata or {}).get(FORMAT_KEY, b"")
    version = int(text[:9]) if text.isdigit() else 0
    if version > FORMAT:
        raise NewerFormatError(
            f"{what} has format {version}; this tierstore reads up to {FORMAT}",
            hint="upgrade tierstore",
        )
    if not found.equals(schema(version or FORMAT), check_metadata=True):
        raise FormatError(f"{what} is an Arrow file of another schema")
    message = messages.read_next_message()
    if message.type != "record batch" or _is_compressed(memoryview(message.metadata)):
        raise FormatError(f"{what} holds something else than one batch that is not compressed")
    if next(messages, None) is not None:
        raise FormatError(f"{what} holds more than one batch")
    return version, pa.ipc.read_record_batch(message, schema(version))


def _is_compressed(metadata: memoryview) -> bool:
    """Whether a record batch's buffers are, which Arrow decompresses whatever their size.

    Its metadata, which Arrow has verified to be sound, is a FlatBuffers table of
    https://github.com/apache/arrow/blob/main/format/Message.fbs
    """
    (message,) = struct.unpack_from("<I", metadata)
    header = _member(metadata, message, _HEADER)
    (batch,) = struct.unpack_from("<I", metadata, header)
    return bool(_member(metadata, header + batch, _COMPRESSION))


def _member(data: memoryview, table: int, index: int) -> int:
    """Return where a FlatBuffers table has a member, 0 if it has none."""
    (back,) = struct.unpack_from("<i", data, table)
    (size,) = struct.unpack_from("<H", data, table - back)
    if size < 2 * index + 6:
        return 0
    (offset,) = struct.unpack_from("<H", data, table - back + 2 * index + 4)
    return table + offset if offset else 0


def _has_null(array: Any) -> bool:
    import pyarrow as pa

    if array.null_count:
        return True
    if pa.types.is_struct(array.type):
        return any(_has_null(array.field(i)) for i in range(array.type.num_fields))
    return pa.types.is_list(array.type) and _has_null(array.values)


def _info(row: dict[str, Any], version: int, what: str) -> Info:
    try:
        attempt = Attempt.parse(row["attempt"])
        RunKeys("run").attempt(attempt, row["nonce"])  # the nonce is one
        told: dict[str, Any] = {"attempt": attempt, "ranks": tuple(row["ranks"])}
        if version > 1:
            told["started"] = check_started(row["started"])
            told["parent"] = check_parent(row["parent"] or None, attempt.launch)
    except ValueError as error:
        raise FormatError(f"{what}: {error}") from error
    info = Info(**row | told | {"format": version})
    known = info.rank in (-1, *info.ranks) and info.declared >= -1
    if not known or not are_ranks(info.ranks, info.world_size):
        raise FormatError(f"{what} is of a rank that cannot be, or of such ranks")
    return info
