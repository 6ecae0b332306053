"""A manifest that is well-formed and cannot be true is not restored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.attempts import fragment
from tierstore.checkpoint.arrow_file import read_table, write_table
from tierstore.checkpoint.columns import Columns, Ragged, Table, file_rows, starts_of, value_rows
from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.manifest import Manifest
from tierstore.checkpoint.merge import merge
from tierstore.errors import FormatError, IncompleteError
from tierstore.keys import Attempt

ATTEMPT = Attempt(100, 1, 1)
MAX = 2**63 - 1


def truth(ranks: int = 2) -> tuple[Table, Commit]:
    """The table of "b", of one chunk, and "w", of two, and the commit of it."""
    merged = merge([fragment(ATTEMPT, rank).to_bytes() for rank in range(ranks)])
    commit = Commit(
        attempt=ATTEMPT,
        nonce=merged.info.nonce,
        manifest=f"manifest-{merged.crc32c:08x}.arrow",
        manifest_size=len(merged.buffer),
        manifest_crc32c=merged.crc32c,
        ranks=merged.info.ranks,
        world_size=merged.info.world_size,
        tensors=merged.tensors,
        chunks=merged.chunks,
        files=merged.files,
        nbytes=merged.nbytes,
    )
    return read_table(merged.buffer, "x"), commit


def test_the_truth() -> None:
    table, commit = truth()
    assert Manifest.open(write_table(table)).checked(commit).find("w") is not None


def changed(values: Any, at: int, new: int) -> Any:
    copy = np.array(values)
    copy[at] = new
    return copy


def number(name: str, at: int, new: int) -> Callable[[Columns], Columns]:
    """Another number in a column of the tensors."""

    def change(columns: Columns) -> Columns:
        column = getattr(columns, name)
        if isinstance(column, Ragged):
            return columns._replace(
                **{name: Ragged(column.starts, changed(column.values, at, new))}
            )
        return columns._replace(**{name: changed(column, at, new)})

    return change


def chunks_of(*rows: int, counts: tuple[int, int]) -> Callable[[Columns], Columns]:
    """Only these of the three chunks, the first of which is of "b"."""

    def change(c: Columns) -> Columns:
        of_b = sum(row == 0 for row in rows)
        kept = [row - 1 for row in rows if row > 0]

        def boxes(column: Ragged) -> Ragged:
            rest = column.values[1:].reshape(2, 2)[kept].reshape(-1)
            values = np.concatenate([column.values[:1].repeat(of_b), rest])
            return Ragged(starts_of([of_b, 2 * len(kept)]), values)

        places = {name: getattr(c, name)[list(rows)] for name in ("file", "offset", "nbytes")}
        return c._replace(
            offsets=boxes(c.offsets), sizes=boxes(c.sizes), chunks=starts_of(counts), **places
        )

    return change


def strings(name: str, *texts: str) -> Callable[[Columns], Columns]:
    def change(columns: Columns) -> Columns:
        return columns._replace(**{name: pa.array(texts, getattr(columns, name).type)})

    return change


def huge(columns: Columns) -> Columns:
    """2**60 elements of 16 bytes: their bytes are 0 to whoever counts in 64 bits."""
    return columns._replace(
        dtype=pa.array(["complex128", "float32"]),
        shape=Ragged(columns.shape.starts, changed(columns.shape.values, 0, 2**60)),
        sizes=Ragged(columns.sizes.starts, changed(columns.sizes.values, 0, 2**60)),
        nbytes=changed(columns.nbytes, 0, 0),
    )


TENSORS = {
    "no chunk": chunks_of(1, 2, counts=(0, 2)),
    "no chunk at the end": chunks_of(0, counts=(1, 0)),
    "half of them": chunks_of(0, 1, counts=(1, 1)),
    "one of them twice": chunks_of(0, 1, 1, counts=(1, 2)),
    "overlapping ones": number("sizes", 1, 3),
    "ones too short": number("sizes", 1, 1),
    "a box outside": number("offsets", 3, 3),
    "a negative box": number("offsets", 1, -1),
    "a negative size": number("sizes", 1, -2),
    "a negative shape": number("shape", 0, -7),
    "a larger shape": number("shape", 1, 5),
    "a huge shape": number("shape", 1, MAX),
    "bytes that overflow": huge,
    "file -1": number("file", 0, -1),
    "a file that is not there": number("file", 0, 2),
    "another one's bytes": number("file", 2, 0),
    "bytes that begin in another one's": number("offset", 0, 4096 + 20),
    "a negative offset": number("offset", 0, -8),
    "bytes behind the end": number("offset", 0, 1 << 40),
    "an offset that overflows": number("offset", 0, MAX),
    "fewer bytes": number("nbytes", 0, 13),
    "an unknown dtype": strings("dtype", "float31", "float32"),
    "another dtype": strings("dtype", "float32", "float32"),
    "names that are not sorted": strings("name", "w", "b"),
    "a name twice": strings("name", "w", "w"),
    "a value's name": strings("name", "b", "rng.0"),
}


@pytest.mark.parametrize("lie", TENSORS)
def test_tensors(lie: str) -> None:
    table, commit = truth()
    columns = TENSORS[lie](Columns.of(table.tensors))
    commit = replace(commit, chunks=len(columns.file))
    with pytest.raises((FormatError, IncompleteError), match=r"^the key"):
        Manifest.open(write_table(table._replace(tensors=columns.arrow())), "the key").checked(
            commit
        )


NAME = "00000-000.safetensors"
FILES = {
    "a block CRC too few": ([NAME, "x"], [4200, 4200], [[], [1]]),
    "a block CRC too many": ([NAME, "x"], [4200, 4200], [[1, 1], [1]]),
    "a negative size": ([NAME, "x"], [-1, 4200], [[], [1]]),
    "a size of which nothing can be stored": ([NAME, "x"], [MAX, 4200], [[1], [1]]),
    "a file twice": ([NAME, NAME], [4200, 4200], [[1], [1]]),
    "another folder": (["../x", "x"], [4200, 4200], [[1], [1]]),
    "a folder below": (["a/x", "x"], [4200, 4200], [[1], [1]]),
    "no name": (["", "x"], [4200, 4200], [[1], [1]]),
    "a control character": (["\x1b[31m", "x"], [4200, 4200], [[1], [1]]),
}


@pytest.mark.parametrize("lie", FILES)
def test_files(lie: str) -> None:
    table, commit = truth()
    data = write_table(table._replace(files=file_rows(*FILES[lie])))
    with pytest.raises(FormatError, match=r"^the key"):
        Manifest.open(data, "the key").checked(commit)


@pytest.mark.parametrize("names", [("v", "v"), ("w", "v")], ids=str)
def test_values(names: tuple[str, ...]) -> None:
    table, _ = truth()
    values = value_rows([(name, "", "json", b"1") for name in names])
    with pytest.raises(FormatError, match="is not sorted by name"):
        Manifest.open(write_table(table._replace(values=values)))


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": (0,), "world_size": 1},
        {"world_size": 3},
        {"tensors": 1},
        {"chunks": 2},
        {"files": 3},
    ],
    ids=str,
)
def test_it_is_what_its_commit_says(change: dict[str, Any]) -> None:
    table, commit = truth()
    manifest = Manifest.open(write_table(table))
    with pytest.raises(FormatError, match="not what its commit says"):
        manifest.checked(replace(commit, **change))


def test_that_of_a_node_need_not_fill_a_tensor() -> None:
    merged = merge([fragment(ATTEMPT, 1, ranks=(1,), declared=-1).to_bytes()])
    _, commit = truth()
    part = replace(commit, ranks=(1,), tensors=1, chunks=1, files=1)
    assert len(Manifest.open(merged.buffer).checked(part)) == 1


def test_a_file_before_the_first_is_not_the_last() -> None:
    """There the chunks have room, and NumPy takes -1 for it."""
    table, commit = truth()
    columns = Columns.of(table.tensors)
    last = columns.file.max()
    lies = columns._replace(file=np.where(columns.file == last, -1, columns.file).astype(np.int32))
    manifest = Manifest.open(write_table(table._replace(tensors=lies.arrow())))
    with pytest.raises(FormatError, match="of file -1, outside"):
        manifest.checked(commit)
