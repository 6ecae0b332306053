"""Fragments in, manifest out: everything a commit vouches for is checked here.

All work is on whole columns, so that a million chunks take about a second. The result depends only
on the fragments, whatever their order: ranks ascend, tensors are sorted by name and chunks by
offset. So two committers write the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from tierstore.blocks import Buffer, block_count, crc32c
from tierstore.checkpoint.arrow_file import write_table
from tierstore.checkpoint.columns import Info, Ragged, Table, first_shared, pool, take
from tierstore.checkpoint.fragment import read_fragment
from tierstore.checkpoint.rows import TensorRows
from tierstore.errors import FormatError, IncompleteError, InvalidKeyError
from tierstore.keys import check_key


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """A manifest that was made and not yet stored.

    Attributes:
        info: what it belongs to.
        buffer: its bytes.
        crc32c: of `buffer`.
        tensors, chunks, files: how many it names.
        nbytes: bytes of all tensors.
        sizes: the size of each file it names, by name.
    """

    info: Info
    buffer: bytearray
    crc32c: int
    tensors: int
    chunks: int
    files: int
    nbytes: int
    sizes: dict[str, int]


def merge(fragments: Sequence[Buffer], names: Sequence[str] = ()) -> Merged:
    """Check a complete set of fragments and merge them into a manifest.

    Args:
        fragments: the stored bytes of one fragment per rank, in any order.
        names: their keys, for errors.

    Raises:
        IntegrityError: a fragment is damaged.
        IncompleteError: a rank, an element of a tensor or a declared item is missing.
        FormatError: fragments contradict each other or themselves: of other attempts, of other
            dtypes or shapes, elements written twice, bytes outside of their file.
    """
    labels = names or [f"fragment {index}" for index in range(len(fragments))]
    parsed = [read_fragment(data, label) for data, label in zip(fragments, labels, strict=True)]
    parsed.sort(key=lambda table: table.info.rank)
    info = replace(_agreed(parsed), rank=-1)
    files, sizes = _merge_files(parsed)
    rows = TensorRows.of(parsed)
    columns = rows.merged(files)
    values = _merge_values(parsed, columns.name)
    _check_declared(info, parsed, rows)
    buffer = write_table(Table(info, columns.arrow(), files, values))
    return Merged(
        info=info,
        buffer=buffer,
        crc32c=crc32c(buffer),
        tensors=len(columns.name),
        chunks=len(columns.file),
        files=len(files),
        nbytes=int(columns.nbytes.sum()),
        sizes=sizes,
    )


def _agreed(parsed: list[Table]) -> Info:
    """Return what all fragments say: they are of one attempt, and every rank is there once.

    How much was declared not every one has to know, see `for_all_ranks`.
    """
    if not parsed:
        raise IncompleteError("there are no fragments to merge")
    first = next((table for table in parsed if table.info.declared >= 0), parsed[0]).info
    for table in parsed:
        info = table.info
        declared = first.declared if info.declared == -1 else info.declared
        if (other := replace(info, rank=first.rank, declared=declared)) != first:
            raise FormatError(
                f"the fragments of ranks {first.rank} and {table.info.rank} are not of one "
                f"attempt: {_difference(first, other)}"
            )
    here = [table.info.rank for table in parsed]
    if missing := sorted(set(first.ranks) - set(here)):
        raise IncompleteError(f"attempt {first.attempt}: no fragment of ranks {_some(missing)}")
    if len(here) != len(set(here)):
        raise FormatError(f"attempt {first.attempt}: a rank has more than one fragment")
    return first


def _difference(first: Info, other: Info) -> str:
    names = (field.name for field in fields(first))
    name = next(name for name in names if getattr(first, name) != getattr(other, name))
    return f"{name} is {getattr(first, name)} and {getattr(other, name)}"


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:10])
    return f"{shown} and {len(numbers) - 10} more" if len(numbers) > 10 else shown


def _check_declared(info: Info, parsed: list[Table], rows: TensorRows) -> None:
    values = sum(len(table.values) for table in parsed)
    chunks = len(rows.owner)
    if info.declared >= 0 and chunks + values != info.declared:
        raise IncompleteError(
            f"attempt {info.attempt}: {info.declared} items were declared, but the fragments hold "
            f"{chunks} chunks and {values} values"
        )


def _merge_files(parsed: list[Table]) -> tuple[Any, dict[str, int]]:
    """All files in order of rank, and their sizes by name."""
    import pyarrow as pa

    sizes: dict[str, int] = {}
    for table in parsed:
        name_list, size_list, crcs = table.files.flatten()
        blocks = Ragged.of(crcs).lengths.tolist()
        for name, size, count in zip(
            name_list.to_pylist(), size_list.to_pylist(), blocks, strict=True
        ):
            who = f"file {name!r} of rank {table.info.rank}"
            # The prefix keeps a fragment from naming another rank's bytes, or none of a segment's.
            if not name.startswith(f"{table.info.rank:05d}-") or "/" in name or name in sizes:
                raise FormatError(f"{who}: the name is another rank's, taken, or not legal")
            try:
                check_key(name)
            except InvalidKeyError as error:
                raise FormatError(f"{who}: {error}") from error
            if size < 0 or block_count(size) != count:
                raise FormatError(f"{who} has {size} bytes but {count} block CRCs")
            sizes[name] = size
    return pa.concat_arrays([table.files for table in parsed], pool()), sizes


def _merge_values(parsed: list[Table], tensors: Any) -> Any:
    """All values, sorted by name."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = pa.concat_arrays([table.values for table in parsed], pool())
    rank = np.repeat([table.info.rank for table in parsed], [len(table.values) for table in parsed])
    names = values.field("name")
    order = pc.sort_indices(names, memory_pool=pool()).to_numpy()
    names = take(names, order)
    twice = _where(pc.equal(names[1:], names[:-1], memory_pool=pool()))
    if len(twice):
        at = int(twice[0])
        one, two = sorted(rank[order[at : at + 2]].tolist())
        raise FormatError(
            f"value {names[at].as_py()!r} was written by rank {one} and by rank {two}",
            hint="give per-rank values names of their own, such as a rank prefix",
        )
    if (clash := first_shared(names, tensors)) is not None:
        raise FormatError(f"{clash!r} is both a tensor and a value")
    return take(values, order)


def _where(mask: Any) -> Any:
    """The indices at which an Arrow array is true."""
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False))
